"""Data cut into chunks that fit a memory budget, each with its share of the loss.

The loss is L = Σ_b (n_b/N) loss_fn(model(x_b), y_b) over the batches given, n_b samples in each and N in all: the mean
over all samples if ``loss_fn`` is a mean over those it is given. Then a batch may be cut into parts of weight n_part/N;
if ``loss_fn`` is a sum, into parts of weight n_b/N. `premises` has what is checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Chunk",
    "LossFunction",
    "cut",
    "map_tensors",
    "pairs",
    "read_batches",
    "sample_count",
    "take",
]

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


def pairs(data: Any) -> Iterator[tuple[Any, Any]]:
    """The pairs (input, target) of ``data``: one pair, or an iterable of pairs.

    An input or a target may be a tuple or a mapping; two tuples are two pairs.

    Raises:
        TypeError: something else than pairs.

    >>> x, y = torch.zeros(3, 2), torch.zeros(3)
    >>> [len(list(pairs(data))) for data in ((x, y), ({"x": x}, y), ((x, x), y), ((x, y), (x, y)), [(x, y)])]
    [1, 1, 1, 2, 1]
    """

    def listed(part: Any) -> bool:
        return isinstance(part, (tuple, list))

    one = listed(data) and len(data) == 2 and not all(map(listed, data))
    try:
        batches = iter([data] if one else data)
    except TypeError:
        batches = iter([data])  # to be refused below
    for batch in batches:
        if not listed(batch) or len(batch) != 2:
            given = f"{type(batch).__name__} of {len(batch)}" if listed(batch) else type(batch).__name__
            raise TypeError(f"data must be a pair (input, target) or an iterable of such pairs, got {given}")
        yield batch[0], batch[1]


def read_batches(data: Any, device: torch.device) -> list[tuple[Any, Any]]:
    """``data`` as a list of (input, target) on ``device``.

    Raises:
        ValueError: no batches, or no samples in one.
        TypeError: something else than pairs.
    """

    def here(part: Any) -> Any:
        return map_tensors(lambda tensor: tensor.detach().to(device), part)

    batches = [(here(x), here(y)) for x, y in pairs(data)]
    if not batches or any(sample_count(x) == 0 for x, _ in batches):
        raise ValueError("there is no data: give at least one batch (input, target), and samples in each")
    return batches


def map_tensors(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    """``f`` of every tensor in ``x``: a tensor, or a tuple, list or mapping of such, whose type is kept.

    >>> map_tensors(torch.neg, {"a": torch.ones(1), "b": (torch.ones(1), "text")})
    {'a': tensor([-1.]), 'b': (tensor([-1.]), 'text')}
    """
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, MutableMapping):
        mapped = copy.copy(x)
        mapped.update({key: map_tensors(f, value) for key, value in x.items()})
        return mapped
    if isinstance(x, (tuple, list)):
        parts = [map_tensors(f, value) for value in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)  # a named tuple takes its parts one by one
    return x


def sample_count(x: Any) -> int:
    """Length of the first axis of the first tensor in ``x``; 1 where there is none.

    >>> sample_count({"tokens": torch.zeros(3, 5)})
    3
    """
    if isinstance(x, Tensor):
        return len(x) if x.ndim else 1
    parts: Iterable[Any] = x.values() if isinstance(x, Mapping) else x if isinstance(x, (tuple, list)) else ()
    return next((sample_count(part) for part in parts), 1)


def take(x: Any, start: int, stop: int) -> Any:
    """Samples start to stop of every tensor in ``x``."""
    return map_tensors(lambda part: part[start:stop] if part.ndim else part, x)


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
