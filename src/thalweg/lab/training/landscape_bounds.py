"""Every bound of seed 003 on one network beside the exact norm: at its initial weights, scaled, or after training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from thalweg.curvature import hessian_bounds
from thalweg.lab.experiment import Ending
from thalweg.lab.training.landscape_task import landscape_task
from thalweg.lab.trial import Log, Trial

__all__ = ["evaluate_bounds"]


def evaluate_bounds(trial: Trial, log: Log, *, scale: float, head_scale: float, points: int) -> Ending:
    """Draw He's weights, train if there are epochs, scale, and evaluate in double precision.

    Args:
        trial: the network, its data and training.
        log: the run's log.
        scale: factor of every weight.
        head_scale: another one of the linear layers that follow convolutions.
        points: training images whose Hessians are bounded.

    Returns:
        ``H_O``, ``H``, ``loss`` and ``log w``: medians over the images, and the logarithm of ``scale``. Of each bound
        its ``log10``, ``loose`` (median of bound/exact, as log10), ``exceeded`` (share of the images), ``excess`` (the
        largest exact/bound) and ``proved``, as "name: key".
    """
    config: Any = trial.config
    work = landscape_task(trial)
    convolutions = any(weight.ndim > 2 for weight in work.model.parameters())
    draw = trial.generator("He's weights")
    with torch.no_grad():
        for weight in work.model.parameters():
            fresh = nn.init.kaiming_normal_(torch.empty(weight.shape), generator=draw)
            weight.copy_(fresh)
    seconds = 0.0
    if config.epochs:
        fitted = work.train(trial, log)
        seconds = fitted.seconds
        if fitted.outcome == "diverged":
            return Ending({}, "diverged", seconds, data=work.data)
    model = work.model.double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale * (head_scale if convolutions and weight.ndim == 2 else 1.0))
    x, y = work.images[:points].double(), work.labels[:points]
    table = hessian_bounds(model, x, y)
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x), y))
    values = {"H_O": float(table.gauss_newton.median()), "H": float(table.hessian.median()), "loss": loss}
    for bound in table.bounds:
        over = bound.exact > bound.value + bound.rounding
        ratio = torch.where(over, bound.exact / bound.value, 0.0)
        values |= {
            f"{bound.name}: log10": _log10(float(bound.value.median())),
            f"{bound.name}: loose": _log10(bound.looseness),
            f"{bound.name}: exceeded": float(over.double().mean()),
            f"{bound.name}: excess": float(ratio.max()),
            f"{bound.name}: proved": float(bound.proved),
        }
    return Ending(values, seconds=seconds, data=work.data)


def _log10(value: float) -> float:
    """NaN for the bounds, zero, on a network that is dead at the median image."""
    return math.log10(value) if value > 0 else math.nan
