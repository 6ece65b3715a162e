"""Each optimizer at its own best learning rate: grids that widen themselves, and what is read off them.

The best rate is the one with the lowest *training* loss averaged over the seeds, so that the test set takes no part in
the choice. A rate at which a seed was lost (diverged, dead) cannot be best. Grids step by half-decades: 1, 3, 10, 30, …

For experiments whose config has ``optimizer`` and ``lr`` and whose metrics have ``train_loss`` and ``seconds``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from thalweg.lab.experiment import Result, Study

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["best_rates", "chosen", "grid_table", "half_decade", "losses_by_rate", "stopped_at", "widened_grid"]

WIDEST = 14  # points, seven decades: an optimizer that is best outside them has another problem


def half_decade(k: int) -> float:
    """The k-th learning rate of a grid: 1 for 0, 3 for 1, 10 for 2, 0.3 for -1.

    >>> [half_decade(k) for k in (-2, -1, 0, 1, 2)]
    [0.1, 0.3, 1.0, 3.0, 10.0]
    """
    return float(f"{(1, 3)[k % 2]}e{k // 2}")


def widened_grid(optimizer: str, guess: int, seeds: Sequence[int], results: Sequence[Result]) -> list[float]:
    """The rates wanted next: three around the guess, then one more beyond the best while the best lies on an edge.

    Args:
        optimizer: whose grid.
        guess: the half-decade to begin at.
        seeds: a rate is judged when all of them have ended.
        results: what has ended so far.
    """
    low, high = guess - 1, guess + 1
    while True:
        rates = [half_decade(k) for k in range(low, high + 1)]
        losses = [_mean_loss(results, optimizer, lr, seeds) for lr in rates]
        best = losses.index(min(losses))
        if any(map(math.isnan, losses)) or 0 < best < len(rates) - 1 or len(rates) == WIDEST:
            return rates
        low, high = (low - 1, high) if best == 0 else (low, high + 1)


def _mean_loss(results: Sequence[Result], optimizer: str, lr: float, seeds: Sequence[int]) -> float:
    """Mean final training loss; infinite if a seed was lost, NaN while one is still to be run."""
    found = {result.seed: result for result in results if _place(result) == (optimizer, lr)}
    if not set(seeds) <= found.keys():
        return math.nan
    runs = [found[seed] for seed in seeds]
    return statistics.fmean(run.values["train_loss"] if run.outcome == "finished" else math.inf for run in runs)


def _place(result: Result) -> tuple[str, float]:
    config: Any = result.config
    return config.optimizer, config.lr


def best_rates(study: Study) -> dict[str, float]:
    """Optimizer -> its best learning rate among those that every seed of the study has run."""
    seeds = sorted({result.seed for result in study.results})
    losses = {place: _mean_loss(study.results, *place, seeds) for place in dict.fromkeys(map(_place, study.results))}
    best: dict[str, float] = {}
    for (optimizer, lr), loss in losses.items():
        if optimizer not in best or not loss >= losses[optimizer, best[optimizer]]:
            best[optimizer] = lr if not math.isnan(loss) else best.get(optimizer, lr)
    return best


def chosen(study: Study, best: Mapping[str, float]) -> list[Result]:
    """The results of every optimizer at its rate in ``best``."""
    return [result for name, lr in best.items() for result in study.where(optimizer=name, lr=lr)]


def stopped_at(study: Study, seconds: float) -> Study:
    """The study as it would be had every run stopped at its last epoch that ended within ``seconds`` of training."""

    def cut(result: Result) -> Result:
        rows = [row for row in result.rows if row.get("seconds", 0.0) <= seconds]
        return replace(result, values={"train_loss": math.inf, **rows[-1]})

    return replace(study, results=[cut(result) for result in study.results])


def losses_by_rate(study: Study, optimizer: str) -> list[tuple[list[float], list[float]]]:
    """For each seed (rates, final training losses), NaN where a run was lost: a curve for a figure."""
    rates = sorted({lr for name, lr in map(_place, study.results) if name == optimizer})
    losses = [study.by_seed("train_loss", optimizer=optimizer, lr=lr) for lr in rates]
    seeds = sorted({seed for row in losses for seed in row})
    return [(rates, [row.get(seed, math.nan) for row in losses]) for seed in seeds]


def grid_table(study: Study, names: Mapping[str, str]) -> pd.DataFrame:
    """Mean final training loss, learning rates by optimizers; a † for every lost run."""
    import pandas as pd

    def cell(runs: Sequence[Result]) -> str:
        losses = [run.values["train_loss"] for run in runs if run.outcome == "finished"]
        mean = f"{statistics.fmean(losses):.4f}" if losses else ""
        return mean + "†" * (len(runs) - len(losses))

    present = [name for name in names if study.where(optimizer=name)]
    rates = sorted({lr for _, lr in map(_place, study.results)})
    rows = [[f"{lr:g}", *(cell(study.where(optimizer=name, lr=lr)) for name in present)] for lr in rates]
    return pd.DataFrame(rows, columns=["learning rate", *(names[name] for name in present)])
