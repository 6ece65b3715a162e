"""Measurements of every iteration that survive a kill: they travel in the checkpoint as rules that never stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from thalweg.invariance import ScaleMonitor

__all__ = ["EpochMeans", "Losses"]


class EpochMeans:
    """Means over an epoch of what a `ScaleMonitor` measures, and whole series of some of it.

    Args:
        monitor: attached; its rows are used up at the end of every epoch.
        keep: quantities of which every measured step is kept, in ``series``.
    """

    def __init__(self, monitor: ScaleMonitor, keep: tuple[str, ...] = ()) -> None:
        self.monitor = monitor
        self.series: dict[str, list[float]] = {key: [] for key in keep}

    def means(self) -> dict[str, float]:
        """Quantity -> mean over this epoch's measured steps, but for ``step``; the least value of variances."""
        rows = self.monitor.rows
        found = {}
        for key in (name for name in (rows[0] if rows else {}) if name != "step"):
            values = [row[key] for row in rows if key in row]
            found[key] = min(values) if key.endswith("variance_over_eps") else fmean(values)
        return {key: value for key, value in found.items() if not math.isnan(value)}

    def update(self, row: Mapping[str, float]) -> bool:
        for key, values in self.series.items():
            values += [measured[key] for measured in self.monitor.rows]
        self.monitor.rows.clear()
        return False

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        rows = [dict(row) for row in self.monitor.rows]
        series = {key: torch.tensor(values, dtype=torch.float64) for key, values in self.series.items()}
        return {"rows": rows, "step": self.monitor.step, "series": series}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.rows[:], self.monitor.step = state["rows"], state["step"]
        self.series = {key: values.tolist() for key, values in state["series"].items()}


class Losses:
    """A loss function that remembers the loss of every training batch, without waiting for the device.

    Args:
        loss_fn: (output, target) -> mean loss of the batch.
    """

    def __init__(self, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss_fn = loss_fn
        self._seen: list[Tensor] = []

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = self.loss_fn(output, target)
        self.add(loss.detach())
        return loss

    def add(self, loss: Tensor) -> None:
        """Remember a batch's loss that was computed elsewhere."""
        self._seen.append(loss)

    @property
    def values(self) -> list[float]:
        """Batch losses in the order of the steps."""
        return [] if not self._seen else torch.stack(self._seen).tolist()

    def update(self, row: Mapping[str, float]) -> bool:
        return False

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": torch.tensor(self.values, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = list(state["losses"].unbind())
