"""When to shorten the step and when to stop: the plateau rule of seed 000, section 4.4, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from thalweg import lecture

__all__ = ["EarlyStopping", "PlateauRule", "StoppingRule", "is_flat"]


class StoppingRule(Protocol):
    """Looks at an epoch's metrics; true means stop. Its state travels in the checkpoint."""

    def update(self, row: Mapping[str, float]) -> bool: ...
    def finish(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def is_flat(previous: float, current: float, min_delta: float) -> bool:
    """Whether a loss changed by less than ``min_delta`` of its previous value.

    >>> is_flat(1.0, 0.9995, 1e-3), is_flat(1.0, 0.99, 1e-3)
    (True, False)
    """
    return abs(previous - current) < min_delta * abs(previous)


class PlateauRule:
    """Multiply the learning rate by γ after every flat epoch; stop after ``patience`` flat epochs in a row.

    Seed 000, section 4.4, with γ = 0.5, min_delta = 0.001 relative to the previous epoch's mean training loss, and
    patience 5 (the author's notebook: 3, and a floor of 1e-5 under the learning rate).

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    >>> rule = PlateauRule(optimizer, patience=2)
    >>> [rule.update({"train_loss": loss}) for loss in (1.0, 0.9, 0.9, 0.9)], optimizer.param_groups[0]["lr"]
    ([False, False, False, True], 0.025)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        patience: int,
        min_delta: float = 1e-3,
        gamma: float = 0.5,
        min_lr: float = 0.0,
        key: str = "train_loss",
    ) -> None:
        self.optimizer, self.patience, self.min_delta = optimizer, patience, min_delta
        self.gamma, self.min_lr, self.key = gamma, min_lr, key
        self.previous = math.inf
        self.flat_epochs = 0

    def update(self, row: Mapping[str, float]) -> bool:
        loss = row[self.key]
        self.flat_epochs = self.flat_epochs + 1 if is_flat(self.previous, loss, self.min_delta) else 0
        self.previous = loss
        if self.flat_epochs:
            for group in self.optimizer.param_groups:
                group["lr"] = max(group["lr"] * self.gamma, min(group["lr"], self.min_lr))
        return self.flat_epochs >= self.patience

    def finish(self) -> None:
        """Nothing to do: the last weights are the result."""

    def state_dict(self) -> dict[str, Any]:
        return {"previous": self.previous, "flat_epochs": self.flat_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.previous, self.flat_epochs = state["previous"], state["flat_epochs"]


class EarlyStopping:
    """`thalweg.lecture.EarlyStopping` as a stopping rule that watches one metric of the rows.

    Args:
        model: whose weights are kept at every improvement and restored by `finish`.
        key: the metric to watch; smaller is better, or larger with ``mode="max"``.
        patience: epochs without improvement that are tolerated, at least 1.
        min_delta: improvements up to this do not count.
        relative: measure ``min_delta`` in shares of the best value so far.
        mode: "min" or "max".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        key: str,
        patience: int,
        min_delta: float = 0.0,
        relative: bool = False,
        mode: str = "min",
    ) -> None:
        if mode not in ("min", "max") or patience < 1:
            raise ValueError(f"expected mode 'min' or 'max' and patience >= 1, got {mode!r} and {patience}")
        self.key, self.sign = key, 1.0 if mode == "min" else -1.0
        self._stopping = lecture.EarlyStopping(model, patience=patience, min_delta=min_delta, relative=relative)

    @property
    def best(self) -> float:
        """The best value so far, negated with ``mode="max"``; infinite before the first."""
        return math.inf if self._stopping.best is None else self._stopping.best

    @property
    def waited(self) -> int:
        """Epochs since then."""
        return self._stopping.waited

    def update(self, row: Mapping[str, float]) -> bool:
        return self._stopping.update(self.sign * row[self.key])

    def finish(self) -> None:
        """Put the weights of the best epoch back."""
        self._stopping.restore()

    def state_dict(self) -> dict[str, Any]:
        return self._stopping.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stopping.load_state_dict(state)
