"""Training a scale-invariant network on the sphere at a fixed ELR, measured at every step (seed 001, equation (6)).

The regime is told from the losses and from the angles between consecutive iterates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, get_args

from thalweg.invariance import History, ScaleMonitor, classify_regime
from thalweg.invariance.regimes import Label
from thalweg.lab.experiment import Ending
from thalweg.lab.training.loop import fit
from thalweg.lab.training.monitored import EpochMeans
from thalweg.lab.training.scale_invariant import Task, task
from thalweg.lab.trial import Log, Trial
from thalweg.optim import SphereSGD

__all__ = ["train_on_sphere"]

LATE = 10  # final values are means over the last tenth of the epochs
AVERAGED = ("train_loss", "cosine_distance", "effective_grad_norm", "test_error")


def train_on_sphere(
    trial: Trial,
    log: Log,
    *,
    work: Task | None = None,
    measure: Callable[[], Mapping[str, float]] = dict,
) -> Ending:
    """Train one network at ``config.elr``.

    Every epoch's row has the test error and loss and the means of `ScaleMonitor`'s quantities. The final values are
    `AVERAGED`, ``ESS i`` of the i-th scale group, ``random_loss``, the loss of the initial random weights, and
    ``regime``, the label's place in ``thalweg.invariance.regimes.Label``.

    Args:
        trial: its config is a `ScaleSettings` with ``elr``.
        log: the run's log.
        work: the task, if its model has been given other weights to begin with.
        measure: more to measure after every epoch.
    """
    config: Any = trial.config
    work = work or task(trial)
    optimizer = SphereSGD(work.invariant, config.elr)
    with warnings.catch_warnings(), ScaleMonitor(work.model, optimizer, work.groups) as monitor:
        warnings.simplefilter("ignore", RuntimeWarning)  # the variance's alarm is judged with the regime
        means = EpochMeans(monitor)
        fitted = fit(
            work.model,
            [optimizer],
            work.loss_fn,
            work.batches,
            epochs=config.epochs,
            log=log,
            rules=[means],
            measure=lambda epoch: {**work.test(), **means.means(), **measure()},
        )
    rows = [row for row in log.rows() if row.get("epoch")]
    late = rows[-max(1, len(rows) // LATE) :]
    values = {key: fmean(row[key] for row in late) for key in AVERAGED}
    for i, name in enumerate(monitor.labels, 1):
        values[f"ESS {i}"] = fmean(row[f"{name}/effective_step_size"] for row in late)
    history = History(
        losses=[row["train_loss"] for row in rows],
        cosine_distances=[row["cosine_distance"] for row in rows],
        steps=len(rows) * len(work.batches),
        random_loss=work.random_loss,
        variances=[row["variance_over_eps"] for row in rows],
        eps=1.0,
    )
    values |= {"regime": float(get_args(Label).index(classify_regime(history).label)), "random_loss": work.random_loss}
    return Ending(values, fitted.outcome, fitted.seconds, work.data)
