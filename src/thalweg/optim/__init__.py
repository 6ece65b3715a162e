"""Optimizers whose step comes from the form in which the weights are written."""

from thalweg.optim.csgd import CSGD, direction_gain, reparam_direction, reparam_groups, stable_lr
from thalweg.optim.stability import StepStability, step_stability

__all__ = [
    "CSGD",
    "StepStability",
    "direction_gain",
    "reparam_direction",
    "reparam_groups",
    "stable_lr",
    "step_stability",
]
