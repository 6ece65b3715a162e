"""Weights that a run leaves to others: snapshots along its path, and the place where a continuation starts.

    1 - cos(u, v) = |u/|u| - v/|v||²/2

half the squared chord, as the cosine itself loses every digit of a small angle. On a sphere of radius ρ the distance is
ρ √(2(1 - cos)): it says nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.lab.training.checkpoint import load_checkpoint
from thalweg.lab.training.scale_invariant import Task

__all__ = [
    "Snapshots",
    "continue_from",
    "cosine_distance",
    "log_spaced",
    "read_snapshots",
    "read_weights",
    "unflattened",
]


class Snapshots:
    """A rule for `fit` that never stops, and keeps the weights at the start and after some epochs.

    Args:
        params: the weights; together they are one vector.
        epochs: after which.
    """

    def __init__(self, params: Sequence[Tensor], epochs: Iterable[int]) -> None:
        self.params, self.epochs = params, frozenset(epochs)
        self.taken = {0: self._vector()}

    def from_start(self) -> dict[str, float]:
        """``from_start``: 1 - cos between the present weights and the first."""
        return {"from_start": cosine_distance(self._vector(), self.taken[0])}

    def update(self, row: Mapping[str, float]) -> bool:
        if (epoch := int(row["epoch"])) in self.epochs:
            self.taken[epoch] = self._vector()
        return False

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": list(self.taken), "weights": torch.stack(list(self.taken.values()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = dict(zip(state["epochs"], state["weights"].unbind(), strict=True))

    @torch.no_grad()
    def _vector(self) -> Tensor:
        return torch.cat([param.detach().flatten().cpu() for param in self.params])


def read_snapshots(checkpoint: Path, rule: int = 1) -> dict[int, Tensor]:
    """Epoch -> weights as one vector, from a checkpoint whose ``rule`` of that number is `Snapshots`."""
    state = load_checkpoint(checkpoint)["parts"][f"rule {rule}"]
    return dict(zip(state["epochs"], state["weights"].unbind(), strict=True))


def read_weights(checkpoint: Path, work: Task) -> list[Tensor]:
    """The scale-invariant weights of a finished run of the same network, in the order of ``work.invariant``."""
    state = load_checkpoint(checkpoint)["parts"]["model"]
    return [state[name] for group in work.groups for name in group.names]


def unflattened(vector: Tensor, work: Task) -> list[Tensor]:
    """A snapshot as a list of weights with the shapes of ``work.invariant``."""
    parts = torch.split(vector, [param.numel() for param in work.invariant])
    return [part.view_as(param) for part, param in zip(parts, work.invariant, strict=True)]


def continue_from(checkpoint: Path, work: Task) -> None:
    """Give the task's model the weights and running statistics of a finished run of the same network."""
    work.model.load_state_dict(load_checkpoint(checkpoint)["parts"]["model"])


def cosine_distance(u: Tensor, v: Tensor) -> float:
    """1 - cos(u, v), exact for small angles.

    >>> cosine_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    1.0
    """
    u, v = u.double(), v.double()
    return float((u / u.norm() - v / v.norm()).square().sum() / 2)


def log_spaced(epochs: int, points: int) -> list[int]:
    """At most ``points`` epochs from 1 to ``epochs``, evenly spaced in their logarithm.

    >>> log_spaced(100, 5)
    [1, 3, 10, 32, 100]
    """
    return sorted({round(epochs ** (i / (points - 1))) for i in range(points)})
