"""Training a scale-invariant network on the sphere at a fixed ELR, measured at every step (seed 001, equation (6)).

The regime is told from the losses and from the angles between consecutive iterates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, get_args

from torch.optim import Optimizer

from thalweg.invariance import History, ScaleMonitor, classify_regime
from thalweg.invariance.regimes import Label
from thalweg.lab.experiment import Ending
from thalweg.lab.training.lockstep import Run, choose, fit_together, tasks
from thalweg.lab.training.loop import Fit, fit
from thalweg.lab.training.monitored import EpochMeans
from thalweg.lab.training.scale_invariant import Task, task
from thalweg.lab.training.stopping import StoppingRule
from thalweg.lab.trial import Log, Trial
from thalweg.optim import SphereSGD

__all__ = ["train_on_sphere", "train_together_on_sphere"]

LATE = 10  # final values are means over the last tenth of the epochs
AVERAGED = ("train_loss", "cosine_distance", "effective_grad_norm", "test_error")
TESTING = 0.1  # of the work of training, at most; a test image costs a third of a training image


def train_on_sphere(
    trial: Trial,
    log: Log,
    *,
    work: Task | None = None,
    optimizer: Optimizer | None = None,
    rules: Sequence[StoppingRule] = (),
    keep: tuple[str, ...] = (),
    measure: Callable[[], Mapping[str, float]] = dict,
) -> Ending:
    """Train one network at ``config.elr``.

    Every epoch's row has the means of `ScaleMonitor`'s quantities; test error and loss are there as often as `TESTING`
    allows: every epoch, unless the training set is much the smaller one. The final values are `AVERAGED`, ``ESS i`` of
    the i-th scale group, ``random_loss``, the loss of the initial random weights, and ``regime``, the label's place in
    ``thalweg.invariance.regimes.Label``.

    Args:
        trial: its config is a `ScaleSettings` with ``elr``.
        log: the run's log.
        work: the task, if its model has been given other weights to begin with.
        optimizer: of the task's scale-invariant weights, if not `SphereSGD`.
        rules: more rules for `fit`; their states travel in the checkpoint as "rule 1", "rule 2", ...
        keep: quantities of which every step is kept, in the ``series`` of the checkpoint's "rule 0".
        measure: more to measure after every epoch.
    """
    config: Any = trial.config
    work = work or task(trial)
    optimizer = optimizer or SphereSGD(work.invariant, config.elr)
    with warnings.catch_warnings(), ScaleMonitor(work.model, optimizer, work.groups) as monitor:
        warnings.simplefilter("ignore", RuntimeWarning)  # the variance's alarm is judged with the regime
        means = EpochMeans(monitor, keep)
        fitted = fit(
            work.model,
            [optimizer],
            work.loss_fn,
            work.batches,
            epochs=config.epochs,
            log=log,
            rules=[means, *rules],
            measure=_measure(config, work, means, measure),
        )
    return _ending(log, work, monitor, fitted)


def train_together_on_sphere(trials: Sequence[Trial], logs: Sequence[Log]) -> list[Ending]:
    """`train_on_sphere` for runs that differ in scalars only, as one program where that takes less time.

    Args:
        trials: of one seed; weights, images and their order are the same for all.
        logs: the runs' logs, none with a checkpoint.
    """
    configs: list[Any] = [trial.config for trial in trials]
    works = tasks(trials)
    makers = [partial(SphereSGD, elr=config.elr) for config in configs]
    program = choose(works, makers)
    if program is None:
        return [train_on_sphere(trial, log) for trial, log in zip(trials, logs, strict=True)]
    runs = []
    for config, log, work, maker in zip(configs, logs, works, makers, strict=True):
        optimizer = maker(work.invariant)
        monitor = ScaleMonitor(work.model, optimizer, work.groups)
        means = EpochMeans(monitor)
        runs.append(Run(work, optimizer, monitor, [means], log, _measure(config, work, means)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fits = fit_together(runs, program, epochs=configs[0].epochs)
    return [_ending(run.log, run.work, run.monitor, fitted) for run, fitted in zip(runs, fits, strict=True)]


def _measure(
    config: Any, work: Task, means: EpochMeans, more: Callable[[], Mapping[str, float]] = dict
) -> Callable[[int], dict[str, float]]:
    """What every epoch's row gets; tests as often as `TESTING` allows."""
    every = max(1, math.ceil(len(work.answers) / (3 * TESTING * work.batches.samples)))

    def measured(epoch: int) -> dict[str, float]:
        tested = work.test() if epoch % every == 0 or epoch == config.epochs else {}
        return {**tested, **means.means(), **more()}

    return measured


def _ending(log: Log, work: Task, monitor: ScaleMonitor, fitted: Fit) -> Ending:
    rows = [row for row in log.rows() if row.get("epoch")]
    late = rows[-max(1, len(rows) // LATE) :]

    def mean(key: str) -> float:
        found = [row[key] for row in late if key in row]
        return fmean(found) if found else math.nan

    values = {key: mean(key) for key in AVERAGED}
    values |= {f"ESS {i}": mean(f"{name}/effective_step_size") for i, name in enumerate(monitor.labels, 1)}
    values |= {"regime": _regime(rows, work, fitted.outcome), "random_loss": work.random_loss}
    return Ending(values, fitted.outcome, fitted.seconds, work.data)


def _regime(rows: Sequence[Mapping[str, float]], work: Task, outcome: str) -> float:
    """The place of the run's label among `Label`; a run that diverged is invalid, however short."""
    if outcome != "finished":
        return float(get_args(Label).index("invalid"))
    history = History(
        losses=[row["train_loss"] for row in rows],
        cosine_distances=[row["cosine_distance"] for row in rows],
        steps=len(rows) * len(work.batches),
        random_loss=work.random_loss,
        variances=[row["variance_over_eps"] for row in rows],
        eps=1.0,
    )
    return float(get_args(Label).index(classify_regime(history).label))
