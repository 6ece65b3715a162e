"""Optimizers whose step comes from the form in which the weights are written, and schedules of learning rates."""

from thalweg.optim.csgd import CSGD, direction_gain, reparam_direction, reparam_groups, stable_lr
from thalweg.optim.schedules import Schedule, ScheduleLR
from thalweg.optim.sphere import SphereSGD, elr_to_lr, lr_to_elr, sphere_step
from thalweg.optim.stability import StepStability, step_stability

__all__ = [
    "CSGD",
    "Schedule",
    "ScheduleLR",
    "SphereSGD",
    "StepStability",
    "direction_gain",
    "elr_to_lr",
    "lr_to_elr",
    "reparam_direction",
    "reparam_groups",
    "sphere_step",
    "stable_lr",
    "step_stability",
]
