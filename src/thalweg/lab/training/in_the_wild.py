"""Training as it is done in practice, watched for the regimes of seed 001: any optimizer, schedule and network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thalweg.invariance import Cycles, find_cycles
from thalweg.invariance.cycles import Verdict
from thalweg.lab.experiment import Ending
from thalweg.lab.training.scale_invariant import task
from thalweg.lab.training.whole_space import fit_recorded, loss_spikes
from thalweg.lab.trial import Log, Trial

__all__ = ["schedule_factor", "train_in_the_wild"]

STEPS = (0.5, 0.75)  # shares of the epochs after which the rate of "step" falls tenfold


def train_in_the_wild(trial: Trial, log: Log) -> Ending:
    """Train all parameters; the scale-invariant ones are measured at every step.

    The final values: ``verdict``, ``cycles``, ``spikes`` and, where there are any, ``period``, ``warm_up`` (iterations
    to the first bottom of the norm) and test error and training loss of the first, second and last minimum, the epoch
    before the norm's bottom; and of the end.

    Args:
        trial: its config is a `ScaleSettings` with ``lr``, ``wd``, ``momentum``, ``optimizer`` and ``schedule``.
        log: the run's log.
    """
    config: Any = trial.config
    work = task(trial)
    optimizer = _optimizer(config, [p for p in work.model.parameters() if p.requires_grad])
    schedule = LambdaLR(optimizer, lambda epoch: schedule_factor(config.schedule, epoch / config.epochs))
    means, losses, fitted = fit_recorded(
        work, optimizer, log, epochs=config.epochs, keep=("rho",), schedulers=[schedule]
    )
    rows = [row for row in log.rows() if row.get("epoch")]
    values = {f"{key}, end": rows[-1][key] for key in ("test_error", "train_loss")}
    if fitted.outcome == "finished":
        found = find_cycles(means.series["rho"], losses.values)
        values |= {
            "verdict": float(get_args(Verdict).index(found.verdict)),
            "cycles": float(len(found.cycles)),
            "spikes": float(loss_spikes(np.array(losses.values), len(work.batches))),
            **_minima(found, rows, len(work.batches)),
        }
    return Ending(values, fitted.outcome, fitted.seconds, work.data)


def schedule_factor(schedule: str, done: float) -> float:
    """The learning rate as a multiple of its first value, when a share ``done`` of the epochs is over.

    >>> schedule_factor("cosine", 0.5), schedule_factor("step", 0.6), schedule_factor("constant", 0.6)
    (0.5, 0.1, 1.0)
    """
    if schedule == "cosine":
        return round((1 + math.cos(math.pi * done)) / 2, 12)
    if schedule == "step":
        return math.pow(0.1, sum(done >= step for step in STEPS))
    return 1.0


def _optimizer(config: Any, parameters: Sequence[nn.Parameter]) -> Optimizer:
    if config.optimizer == "adamw":
        return AdamW(parameters, lr=config.lr, weight_decay=config.wd)
    return SGD(parameters, lr=config.lr, weight_decay=config.wd, momentum=config.momentum)


def _minima(found: Cycles, rows: Sequence[dict[str, Any]], epoch: int) -> dict[str, float]:
    """What the epochs before the first, second and last bottom of the norm had come to."""
    before = [rows[bottom // epoch - 1] for bottom in found.bottoms if bottom >= epoch]
    named = dict(zip(("first", "second"), before, strict=False)) | ({"last": before[-1]} if before else {})
    values = {f"{key}, {name}": row[key] for name, row in named.items() for key in ("test_error", "train_loss")}
    if found.period is not None:
        values["period"] = found.period
    return values | ({"warm_up": float(found.bottoms[0])} if found.bottoms else {})
