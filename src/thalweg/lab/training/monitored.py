"""A scale monitor whose measurements survive a kill: epoch means that travel in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from thalweg.invariance import ScaleMonitor

__all__ = ["EpochMeans"]


class EpochMeans:
    """Means over an epoch of what a `ScaleMonitor` measures; given to `fit` as a rule that never stops.

    Args:
        monitor: attached; its rows are used up at the end of every epoch.
    """

    def __init__(self, monitor: ScaleMonitor) -> None:
        self.monitor = monitor

    def means(self) -> dict[str, float]:
        """Quantity -> mean over this epoch's measured steps, but for ``step``; the least value of variances."""
        rows = self.monitor.rows
        found = {}
        for key in (name for name in (rows[0] if rows else {}) if name != "step"):
            values = [row[key] for row in rows if key in row]
            found[key] = min(values) if key.endswith("variance_over_eps") else fmean(values)
        return {key: value for key, value in found.items() if not math.isnan(value)}

    def update(self, row: Mapping[str, float]) -> bool:
        self.monitor.rows.clear()
        return False

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.monitor.rows], "step": self.monitor.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.rows[:], self.monitor.step = state["rows"], state["step"]
