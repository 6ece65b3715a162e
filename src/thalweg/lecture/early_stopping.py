r"""Early stopping, for any loop.

    stop when the validation loss has not fallen below  best - δ  for ``patience`` evaluations in a row

Seed 004, "Regularization: early stopping", which notes that PyTorch has none (true of torch 2; Lightning and ignite
have). δ is absolute, or a share of |best|; NaN never counts as an improvement.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

from torch import nn

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Say when to stop, and keep the weights of the best evaluation.

    Args:
        model: whose weights are kept at every improvement, for `restore`; None keeps none.
        patience: evaluations without improvement in a row after which to stop, at least 1.
        min_delta: an improvement must be larger than this.
        relative: ``min_delta`` is a share of the best value so far.
        mode: whether smaller ("min") or larger ("max") values are better.

    Attributes:
        best: the best value so far, None before the first.
        waited: evaluations since then.

    Raises:
        ValueError: patience below 1, negative ``min_delta`` or an unknown mode.

    >>> stopping = EarlyStopping(patience=2)
    >>> [stopping.update(loss) for loss in (1.0, 0.5, 0.6, 0.5)], stopping.best
    ([False, False, False, True], 0.5)
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        patience: int,
        min_delta: float = 0.0,
        relative: bool = False,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience is {patience}: tolerate at least 1 evaluation without improvement")
        if not min_delta >= 0:
            raise ValueError(f"min_delta is {min_delta}: it must be 0 or more")
        if mode not in ("min", "max"):
            raise ValueError(f"mode is {mode!r}: use 'min' or 'max'")
        self.model, self.patience, self.min_delta = model, patience, min_delta
        self.relative, self.mode = relative, mode
        self.best: float | None = None
        self.waited = 0
        self.weights: dict[str, Any] | None = None

    def update(self, value: float) -> bool:
        """Take the value of one evaluation; true means stop."""
        if self._improves(value):
            self.best, self.waited = value, 0
            if self.model is not None:
                self.weights = copy.deepcopy(self.model.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience

    def _improves(self, value: float) -> bool:
        worst = math.inf if self.mode == "min" else -math.inf
        if self.best is None or self.best == worst:  # there is no share of infinity to be better by
            return not math.isnan(value) and value != self.best
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta * (abs(self.best) if self.relative else 1.0)

    def restore(self) -> None:
        """Put the weights of the best evaluation back into the model; without any, leave it as it is."""
        if self.model is not None and self.weights is not None:
            self.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Best value, evaluations waited and best weights: for a checkpoint, loadable with ``weights_only=True``."""
        return {"best": self.best, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.best, self.waited, self.weights = state["best"], state["waited"], state["weights"]
