"""Training on the sphere with an effective learning rate that follows a schedule."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from thalweg.lab.experiment import Ending
from thalweg.lab.training.loop import fit
from thalweg.lab.training.scale_invariant import task, train_mode_loss
from thalweg.lab.trial import Log, Trial
from thalweg.optim import SphereSGD

__all__ = ["factor", "train_with_elr_schedule"]

LATE = 10  # test errors are means over the last tenth of the epochs


def factor(schedule: str, done: float, *, stay: float, drop: float) -> float:
    """The ELR as a multiple of its first value, when a share ``done`` of the epochs is over.

    >>> [round(factor("two-stage", done, stay=0.5, drop=100.0), 3) for done in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.1, 0.01]
    """
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if schedule == "two-stage":
        return math.pow(drop, -max(0.0, done - stay) / (1 - stay))
    return 1.0


def train_with_elr_schedule(trial: Trial, log: Log) -> Ending:
    """Train one network; every epoch's row has the test error and loss.

    Args:
        trial: its config is a `ScaleSettings` with ``elr``, ``schedule``, ``stay`` and ``drop``.
        log: the run's log.
    """
    config: Any = trial.config
    work = task(trial)
    optimizer = SphereSGD(work.invariant, config.elr)

    def shape(epoch: int) -> float:
        return factor(config.schedule, epoch / config.epochs, stay=config.stay, drop=config.drop)

    fitted = fit(
        work.model,
        [optimizer],
        work.loss_fn,
        work.batches,
        epochs=config.epochs,
        log=log,
        schedulers=[LambdaLR(optimizer, shape)],
        measure=lambda epoch: work.test(),
    )
    rows = [row for row in log.rows() if row.get("epoch")]
    late = rows[-max(1, len(rows) // LATE) :]
    values = {key: fmean(row[key] for row in late) for key in ("test_error", "train_loss")}
    values["final_loss"] = train_mode_loss(work.model, work.loss_fn, work.batches)
    return Ending(values, fitted.outcome, fitted.seconds, work.data)
