"""Optimizers whose step comes from the form in which the weights are written."""

from thalweg.optim.csgd import CSGD, reparam_direction, reparam_groups, stable_lr

__all__ = ["CSGD", "reparam_direction", "reparam_groups", "stable_lr"]
