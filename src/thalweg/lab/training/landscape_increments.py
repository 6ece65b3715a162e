"""Loss increments of a network in training: after a fixed number of epochs, and where it passes a level of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from thalweg.lab.experiment import Ending
from thalweg.lab.training.landscape_task import LandscapeTask, landscape_task
from thalweg.lab.trial import Log, Trial
from thalweg.landscape import expected_increments, per_sample_losses

__all__ = ["LossMoments", "passage", "train_for_increments"]

POINTS = 30  # sample sizes of a curve, evenly spaced in their logarithm
EXACT = 64  # up to here, and from 4 sqrt(N) on, a curve costs a third of a second; between, seconds


class LossMoments:
    """Per-sample losses after every epoch, and a rule for `fit` that stops when both moments have been seen.

    Args:
        task: whose training images are the samples.
        fixed: epochs of the first moment, named "fixed".
        level: the second, named "level", is the first epoch after which the mean loss is at most this.
    """

    def __init__(self, task: LandscapeTask, fixed: int, level: float) -> None:
        self.task, self.fixed, self.level = task, fixed, level
        self.taken: dict[str, Tensor] = {}
        self._losses = torch.empty(0)

    def measure(self, epoch: int) -> dict[str, float]:
        """``loss``: L_N, and ``deviation``: mean |l_i - L_N|, over the training images at fixed weights."""
        each = partial(cross_entropy, reduction="none")
        found = per_sample_losses(self.task.model, each, (self.task.images, self.task.labels))
        self._losses = found.double().cpu()
        mean = self._losses.mean()
        return {"loss": float(mean), "deviation": float((self._losses - mean).abs().mean())}

    def update(self, row: Mapping[str, float]) -> bool:
        if row["epoch"] == self.fixed:
            self.taken["fixed"] = self._losses
        if row["loss"] <= self.level and "level" not in self.taken:
            self.taken["level"] = self._losses
        return len(self.taken) == 2

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = dict(state["taken"])


def train_for_increments(trial: Trial, log: Log, *, fixed: int, level: float) -> Ending:
    """Train until both moments have been seen, and write down the increments at them.

    Rows have ``loss`` and ``deviation`` by epoch; then one for each sample size ``k`` with ``increment``, its
    expectation over orders after ``fixed`` epochs, and ``lower`` and ``upper``, its band. Values:

        fixed loss, fixed deviation, fixed d_10     after ``fixed`` epochs
        level deviation, level epoch                where the loss passes ``level`` (see `passage`); NaN if nowhere
    """
    work = landscape_task(trial)
    moments = LossMoments(work, fixed, level)
    fitted = work.train(trial, log, rules=[moments], measure=moments.measure)
    rows = [row for row in log.rows() if "epoch" in row]
    if fitted.outcome == "diverged" or any(row["loss"] is None for row in rows):
        return Ending({}, "diverged", fitted.seconds, data=work.data)
    curve = expected_increments(moments.taken["fixed"], sizes=_sizes(len(work.labels)))
    for k, mean, lower, upper in zip(curve.sizes, curve.mean, curve.lower, curve.upper, strict=True):
        log.row(k=int(k), increment=float(mean), lower=float(lower), upper=float(upper))
    values = {f"fixed {key}": rows[fixed][key] for key in ("loss", "deviation")}
    values["fixed d_10"] = float(curve.mean[curve.sizes == 10])
    values["level deviation"], values["level epoch"] = passage(rows, level)
    if math.isnan(values["level deviation"]):
        log.warn(f"the loss has not come down to {level:g} within {len(rows) - 1} epochs: no increment at that level")
    return Ending(values, fitted.outcome, fitted.seconds, data=work.data)


def _sizes(samples: int) -> list[int]:
    """Sample sizes from 1 to N - 1, those left out between which a curve is dear and nearly straight."""
    spaced = {10, *(round((samples - 1) ** (i / (POINTS - 1))) for i in range(POINTS))}
    return sorted(k for k in spaced if not EXACT < min(k, samples - k) <= 4 * samples**0.5)


def passage(rows: Sequence[Mapping[str, float]], level: float) -> tuple[float, float]:
    """Deviation and epoch at which the loss passes ``level``: both are interpolated in the logarithm of the loss.

    Rows are those of the epochs 0, 1, …. The initial weights, at which all samples have about the same loss, are no
    point to interpolate from: a network that is below the level after its first epoch is taken there.

    >>> rows = [{"loss": 2.3, "deviation": 0.1}, {"loss": 1.0, "deviation": 1.0}, {"loss": 0.25, "deviation": 0.5}]
    >>> [round(number, 6) for number in passage(rows, 0.5)]
    [0.707107, 1.5]
    >>> passage(rows, 0.1), passage(rows, 1.5)
    ((nan, nan), (1.0, 1.0))
    """
    for epoch, row in enumerate(rows):
        if epoch and row["loss"] <= level:
            before = rows[epoch - 1]
            if epoch == 1:
                return row["deviation"], 1.0
            share = math.log(before["loss"] / level) / math.log(before["loss"] / row["loss"])
            ratio = row["deviation"] / before["deviation"]
            return before["deviation"] * ratio**share, epoch - 1 + share
    return math.nan, math.nan
