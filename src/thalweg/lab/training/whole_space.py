"""Training a scale-invariant network in the whole space with weight decay: equation (3) of seed 001, and its cycles.

Norm, effective gradient norm and angle are measured at every step. With ``norm="fixed"`` the norm is held: the step
(1 - ηλ)x - η∇f rescaled to |x| is SGD on the sphere with an ELR of η/((1 - ηλ)ρ²).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from thalweg.invariance import Cycles, ScaleMonitor, find_cycles
from thalweg.invariance.cycles import Verdict, zigzag
from thalweg.invariance.equilibrium import cosine_distance, step_tangent
from thalweg.invariance.norm import joint_norm
from thalweg.lab.experiment import Ending
from thalweg.lab.training.lockstep import Run, choose, fit_together, tasks
from thalweg.lab.training.loop import Fit, fit
from thalweg.lab.training.monitored import EpochMeans, Losses
from thalweg.lab.training.scale_invariant import Task, task
from thalweg.lab.trial import Log, Trial
from thalweg.optim import SphereSGD

__all__ = ["fit_recorded", "loss_spikes", "train_in_whole_space", "train_together_in_whole_space"]

Floats = NDArray[np.float64]

KEPT = ("rho", "effective_grad_norm", "cosine_distance")
SPIKE = 10.0  # times the loss's level between spikes
WINDOW = 10  # iterations either way, over which the smallest and the largest effective gradient norm are taken
DRAWN = 400  # records of the period that is shown
ROUNDING = 1e-3  # relative, of 1 - cos between weights in single precision


def train_in_whole_space(trial: Trial, log: Log) -> Ending:
    """Train one network by SGD with weight decay, or at the norm it begins with.

    Every epoch's row has the test error and loss and the means of `ScaleMonitor`'s quantities; rows with ``in_period``
    show the longest period iteration by iteration. The final values are those of `find_cycles`, ``spikes`` of the
    loss, the share of iterations within theorem 1's interval and within the bounds on 1 - cos.

    Args:
        trial: its config is a `ScaleSettings` with ``lr``, ``wd`` and ``norm``.
        log: the run's log.
    """
    config: Any = trial.config
    work = task(trial)
    recorded = fit_recorded(work, _optimizer(config, work.invariant), log, epochs=config.epochs, keep=KEPT)
    return _ending(config, log, work, *recorded)


def fit_recorded(
    work: Task,
    optimizer: torch.optim.Optimizer,
    log: Log,
    *,
    epochs: int,
    keep: tuple[str, ...],
    schedulers: Sequence[Any] = (),
) -> tuple[EpochMeans, Losses, Fit]:
    """`fit` with a `ScaleMonitor`: the series of ``keep``, the loss of every step, and how it ended."""
    losses = Losses(work.loss_fn)
    with warnings.catch_warnings(), ScaleMonitor(work.model, optimizer, work.groups, alarm=0.0) as monitor:
        warnings.simplefilter("ignore", RuntimeWarning)
        means = EpochMeans(monitor, keep)
        fitted = fit(
            work.model,
            [optimizer],
            losses,
            work.batches,
            epochs=epochs,
            log=log,
            rules=[means, losses],
            schedulers=schedulers,
            measure=_measure(work, means),
        )
    return means, losses, fitted


def train_together_in_whole_space(trials: Sequence[Trial], logs: Sequence[Log]) -> list[Ending]:
    """`train_in_whole_space` for runs that differ in scalars only, as one program where that takes less time.

    Args:
        trials: of one seed; weights, images and their order are the same for all.
        logs: the runs' logs, none with a checkpoint.
    """
    configs: list[Any] = [trial.config for trial in trials]
    works = tasks(trials)
    makers = [partial(_optimizer, config) for config in configs]
    program = choose(works, makers)
    if program is None:
        return [train_in_whole_space(trial, log) for trial, log in zip(trials, logs, strict=True)]
    runs, means, losses = [], [], [Losses(work.loss_fn) for work in works]
    for work, log, make, lost in zip(works, logs, makers, losses, strict=True):
        optimizer = make(work.invariant)
        monitor = ScaleMonitor(work.model, optimizer, work.groups, alarm=0.0)
        means.append(own := EpochMeans(monitor, KEPT))
        runs.append(Run(work, optimizer, monitor, [own, lost], log, _measure(work, own), lost))
    fits = fit_together(runs, program, epochs=configs[0].epochs)
    return [_ending(*run) for run in zip(configs, logs, works, means, losses, fits, strict=True)]


def _optimizer(config: Any, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if config.norm == "fixed":
        squared = joint_norm(params).item() ** 2
        return SphereSGD(params, config.lr / ((1 - config.lr * config.wd) * squared))
    return torch.optim.SGD(params, lr=config.lr, weight_decay=config.wd)


def _measure(work: Task, means: EpochMeans) -> Callable[[int], dict[str, float]]:
    return lambda epoch: {**work.test(), **means.means()}


def _ending(config: Any, log: Log, work: Task, means: EpochMeans, losses: Losses, fitted: Fit) -> Ending:
    loss = np.array(losses.values)
    values = {
        "test_error": next(row["test_error"] for row in reversed(log.rows()) if "test_error" in row),
        "spikes": float(loss_spikes(loss, len(work.batches))),
        "final_loss": float(loss[-len(loss) // 10 :].mean()),
    }
    if config.norm == "free" and fitted.outcome == "finished":
        path = _Path(config.lr, config.wd, loss, *(np.array(means.series[key]) for key in KEPT))
        found = find_cycles(
            path.rho.tolist(), loss.tolist(), lr=path.lr, wd=path.wd, effective_grad_norms=path.g.tolist()
        )
        values |= _cycles(found) | _bounds(path) | _interval(found, path)
        _show_period(found, path, len(work.batches), log)
    return Ending(values, fitted.outcome, fitted.seconds, work.data)


def loss_spikes(losses: Floats, window: int) -> int:
    """How often the loss, averaged over ``window`` iterations, rises tenfold from a level it had come down to.

    >>> loss_spikes(np.array([1.0, 0.1, 0.01, 0.5, 0.01, 0.01]), 1)
    1
    """
    smooth = np.convolve(losses, np.full(window, 1 / window), "valid")
    log = np.log(np.maximum(smooth, np.finfo(np.float64).tiny))
    return sum(bool(log[b] > log[a]) for a, b in pairwise(zigzag(log, math.log(SPIKE))))


@dataclass(frozen=True)
class _Path:
    """Every iteration of a run: loss, ρ, g̃ and 1 - cos."""

    lr: float
    wd: float
    loss: Floats
    rho: Floats
    g: Floats
    distance: Floats

    def g_range(self) -> tuple[Floats, Floats]:
        """The smallest and the largest g̃ within `WINDOW` iterations."""
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(self.g, WINDOW, mode="edge"), 2 * WINDOW + 1)
        return windows.min(1), windows.max(1)

    def printed_distance(self, g: Floats) -> Floats:
        """1 - cos at effective gradient norms ``g``, as printed: (5a) and (5b) solved for δ."""
        distance: Floats = (self.lr * g / self.rho**2) ** 2 / 2
        return distance

    def exact_distance(self, g: Floats) -> Floats:
        tangent = step_tangent(self.lr, self.wd, torch.from_numpy(self.rho), torch.from_numpy(g))
        distance: Floats = cosine_distance(tangent).numpy()
        return distance


def _cycles(found: Cycles) -> dict[str, float]:
    values = {
        "verdict": float(get_args(Verdict).index(found.verdict)),
        "cycles": float(len(found.cycles)),
        "rho2_low": found.observed[0],
        "rho2_high": found.observed[1],
    }
    if found.cycles:
        phases = np.median([cycle.phases for cycle in found.cycles], axis=0)
        values |= {f"phase {name}": float(length) for name, length in zip("ABC", phases, strict=True)}
    known = {
        "period": found.period,
        "predicted_period": found.predicted_period,
        "destabilization_elr": found.destabilization_elr,
    }
    return values | {key: value for key, value in known.items() if value is not None}


def _interval(found: Cycles, path: _Path) -> dict[str, float]:
    """Theorem 1 on this run: its interval, the share of the last half inside, and whether its condition is met."""
    if found.interval is None:
        return {}
    squared = path.rho[len(path.rho) // 2 :] ** 2
    low, high = found.interval.lower_printed, found.interval.upper_printed
    return {
        "interval_low": low,
        "interval_high": high,
        "inside": float(((squared >= low) & (squared <= high)).mean()),
        "condition": float(found.interval.holds_printed),
    }


def _bounds(path: _Path) -> dict[str, float]:
    """Share of the iterations whose 1 - cos lies within proposition 1's bounds, as printed and exact."""
    shares = {}
    for name, distance, slack in (("printed", path.printed_distance, 0.0), ("exact", path.exact_distance, ROUNDING)):
        low, high = (distance(g) for g in path.g_range())
        within = (low * (1 - slack) <= path.distance) & (path.distance <= high * (1 + slack))
        shares[f"within_{name}"] = float(within.mean())
    return shares


def _show_period(found: Cycles, path: _Path, epoch: int, log: Log) -> None:
    """Rows of the longest period, from one peak of the loss to a tenth beyond the next (figure 4)."""
    if not found.cycles:
        return
    cycle = max(found.cycles, key=lambda cycle: cycle.end - cycle.start)
    end = min(len(path.rho), cycle.end + (cycle.end - cycle.start) // 10)
    least, largest = (path.printed_distance(g) for g in path.g_range())
    for i in range(cycle.start, end, max(1, (end - cycle.start) // DRAWN)):
        log.row(
            epoch=i / epoch,
            in_period=i - cycle.start,
            batch_loss=path.loss[i],
            squared_norm=path.rho[i] ** 2,
            effective_lr=path.lr / path.rho[i] ** 2,
            step=path.distance[i],
            least_step=least[i],
            largest_step=largest[i],
        )
