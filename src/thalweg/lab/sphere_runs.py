"""What the experiments on the sphere ask of their finished runs: the regime, the phase plane, metrics at equal loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from thalweg.lab.experiment import Result

__all__ = ["CIFAR", "LABELS", "PLANE", "at_loss", "label", "labels", "rates_in", "setting", "track"]

LABELS = ("convergence", "chaotic equilibrium", "divergence", "transition", "invalid")  # of `classify_regime`
PLANE = {"xlabel": "effective gradient norm", "ylabel": "training loss"}
POINTS = 40  # of a way through the phase plane, at most
CIFAR = {"data": "cifar10", "network": "convnet", "label_noise": 0.0}


def setting(result: Result) -> Any:
    """The run's settings, whose fields are those of its experiment's ``Config``."""
    return result.config


def label(result: Result) -> str:
    """The regime of a run."""
    return LABELS[int(result.values["regime"])] if result.outcome == "finished" else "invalid"


def labels(results: Iterable[Result]) -> str:
    """The regimes of several runs, each once."""
    return " / ".join(dict.fromkeys(map(label, results)))


def rates_in(regime: str, runs: Mapping[float, Sequence[Result]]) -> list[float]:
    """The ELRs at which more than half of the runs are in this regime."""
    told = {rate: [label(result) for result in found] for rate, found in runs.items()}
    return [rate for rate, names in told.items() if 2 * names.count(regime) > len(names)]


def track(result: Result, x: str = "effective_grad_norm", y: str = "train_loss") -> tuple[list[float], list[float]]:
    """The run's way through the phase plane: means over stretches of epochs that are equally long in log time."""
    rows = [row for row in result.rows if x in row and y in row]
    stretches: dict[int, list[tuple[float, float]]] = {}
    for i, row in enumerate(rows, 1):
        stretches.setdefault(int(POINTS * math.log(i) / math.log(len(rows) + 1)), []).append((row[x], row[y]))
    points = [tuple(map(fmean, zip(*stretch, strict=True))) for stretch in stretches.values()]
    return [point[0] for point in points], [point[1] for point in points]


def at_loss(result: Result, key: str, level: float) -> float:
    """The metric where the run's training loss is ``level``: the median of the three epochs nearest to it."""
    rows = [row for row in result.rows if key in row and row.get("train_loss", 0) > 0]
    return median(row[key] for row in sorted(rows, key=lambda row: abs(math.log(row["train_loss"] / level)))[:3])
