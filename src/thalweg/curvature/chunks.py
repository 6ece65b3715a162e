"""Data cut into chunks that fit a memory budget, each with its share of the loss.

The loss is L = Σ_b (n_b/N) loss_fn(model(x_b), y_b) over the batches given, n_b samples in each and N in all: the mean
over all samples if ``loss_fn`` is a mean over those it is given. Then a batch may be cut into parts of weight n_part/N;
if ``loss_fn`` is a sum, into parts of weight n_b/N. That it is one or the other is checked on all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from thalweg.curvature.evaluation import agree

__all__ = ["Chunk", "LossFunction", "cut", "is_loss_of_all", "read_batches", "sample_count", "take"]

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Chunk:
    """Input and target, how many samples, the weight of their loss in L, and which batch they belong to."""

    x: Any
    y: Any
    count: int
    share: float
    batch: int

    def loss(self, loss_fn: LossFunction) -> Callable[[Any], Tensor]:
        """The chunk's share of L as a function of the model's output."""
        return lambda z: loss_fn(z, self.y) * self.share


def read_batches(data: Any, device: torch.device) -> list[tuple[Any, Any]]:
    """``data`` as a list of (input, target) on ``device``: one pair of tensors is one batch.

    Raises:
        ValueError: no batches, or no samples in one.
        TypeError: something else than pairs.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        data = [data]
    batches = []
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(
                f"data must be a pair (input, target) or an iterable of such pairs, got {type(batch).__name__}"
            )
        batches.append((_move(batch[0], device), _move(batch[1], device)))
    if not batches or any(sample_count(x) == 0 for x, _ in batches):
        raise ValueError("there is no data: give at least one batch (input, target), and samples in each")
    return batches


def sample_count(x: Any) -> int:
    """Length of the first axis of the first tensor in ``x``; 1 where there is none.

    >>> sample_count({"tokens": torch.zeros(3, 5)})
    3
    """
    if isinstance(x, Tensor):
        return len(x) if x.ndim else 1
    parts: Iterable[Any] = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ()
    return next((sample_count(part) for part in parts), 1)


def take(x: Any, start: int, stop: int) -> Any:
    """Samples start to stop of every tensor in ``x``."""
    if isinstance(x, Tensor):
        return x[start:stop] if x.ndim else x
    if isinstance(x, dict):
        return {key: take(value, start, stop) for key, value in x.items()}
    return type(x)(take(value, start, stop) for value in x) if isinstance(x, (tuple, list)) else x


def is_loss_of_all(
    loss_fn: LossFunction, outputs: Sequence[Tensor], targets: Sequence[Any], y: Any, *, summed: bool
) -> bool:
    """Whether the loss of a whole batch is the mean over its parts, each as often as it has samples, or their sum.

    >>> z, y = torch.tensor([1.0, 2.0]), torch.zeros(2)
    >>> parts = [z[:1], z[1:]], [y[:1], y[1:]]
    >>> is_loss_of_all(torch.nn.functional.mse_loss, *parts, y, summed=False)
    True
    >>> is_loss_of_all(torch.nn.functional.mse_loss, *parts, y, summed=True)
    False
    """
    z = torch.cat(list(outputs))
    with torch.no_grad():
        whole = loss_fn(z, y)
        if not bool(
            whole.any()
        ):  # the zero of a perfect fit is mean and sum: ask elsewhere, where probabilities lie too
            z = torch.linspace(0.1, 0.9, z.numel(), dtype=z.dtype, device=z.device).view(z.shape)
            whole = loss_fn(z, y)
        rows = torch.split(z, [len(part) for part in outputs])
        parts = [
            loss_fn(part, target).reshape(()) * (1.0 if summed else len(part) / len(z))
            for part, target in zip(rows, targets, strict=True)
        ]
    return agree(torch.stack(parts).sum(), whole.reshape(()))


def cut(batches: Sequence[tuple[Any, Any]], sizes: Sequence[int], *, summed: bool = False) -> list[Chunk]:
    """Batch b in equal chunks of at most ``sizes[b]`` samples; each has its batch's whole weight if ``summed``.

    >>> [(len(chunk.x), chunk.share) for chunk in cut([(torch.zeros(5), torch.zeros(5))], [2])]
    [(2, 0.4), (2, 0.4), (1, 0.2)]
    """
    total, chunks = sum(sample_count(x) for x, _ in batches), []
    for index, ((x, y), size) in enumerate(zip(batches, sizes, strict=True)):
        n = sample_count(x)
        ends = [min(-(-n // -(-n // size)) * k, n) for k in range(-(-n // size) + 1)]
        for start, stop in pairwise(ends):
            whole = stop - start == n
            part = (x, y) if whole else (take(x, start, stop), take(y, start, stop))
            chunks.append(Chunk(*part, stop - start, (n if summed else stop - start) / total, index))
    return chunks


def _move(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.detach().to(device)
    if isinstance(x, dict):
        return {key: _move(value, device) for key, value in x.items()}
    return type(x)(_move(value, device) for value in x) if isinstance(x, (tuple, list)) else x
