"""All the data on tape: chunks that fit a memory budget, kept if they all do, otherwise made anew for each sweep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from thalweg.curvature.chunks import Chunk, LossFunction, cut, sample_count, take
from thalweg.curvature.graph import Network
from thalweg.curvature.premises import is_loss_of_all
from thalweg.curvature.second_order import Kind, LossHead, Maybe, Tape

__all__ = ["Recording", "add_up"]

CACHE = 12 * 2**20  # bytes of a chunk's activations on a CPU: within its cache, products are up to 1.5 times faster
FEWEST = 32  # samples, below which smaller chunks waste more than the cache saves
WORKSPACE = 4  # activations, adjoints, tangents and their adjoints: a product's memory in units of the activations


class Recording:
    """A loss over all the data, linearized at the present weights.

    Args:
        network: the model.
        loss_fn: ``loss_fn(output, target)``.
        batches: pairs (input, target).
        memory: bytes for the tapes and for the work on one chunk, half for each.
        whole: never cut a batch.
        forward_only: leave the gradient, and what it keeps, until somebody asks for it.

    Attributes:
        network: the model.
        cached: whether the tapes are kept.
        loss: L.
        outputs: K, numbers that the model returns for a sample.
        one_tensor: whether it returns one tensor; otherwise the loss is the output.
        bytes_per_sample: activations, by measurement on two samples.

    Raises:
        ValueError: the loss is not finite, it or the model is not twice differentiable, or a batch exceeds the memory
            but cannot be cut.
    """

    def __init__(
        self,
        network: Network,
        loss_fn: LossFunction,
        batches: Sequence[tuple[Any, Any]],
        *,
        memory: int,
        whole: bool,
        forward_only: bool,
    ) -> None:
        self.network, self._loss_fn, self._batches = network, loss_fn, batches
        self._gradient: list[Maybe] | None = None
        each, one_tensor = self._probe(whole, "ggn" if forward_only else "hessian")
        self.bytes_per_sample, self.one_tensor = each, one_tensor
        counts = [sample_count(x) for x, _ in batches]
        self.cached = 2 * sum(counts) * each <= memory / 2
        room = memory / 2 / (WORKSPACE * each)
        target = max(1, int(room if network.device.type != "cpu" else min(room, max(CACHE / each, FEWEST))))
        sizes = [
            n if whole or not one_tensor or sample_count(y) != n else min(n, target)
            for n, (_, y) in zip(counts, batches, strict=True)
        ]
        for summed in (False, True):  # a mean over samples may be cut, and a sum
            if self._play(sizes, room, each, forward_only, summed=summed):
                return
        self._play(counts, room, each, forward_only)

    @property
    def first(self) -> tuple[Any, Any]:
        """Input and target of the first chunk."""
        return self._chunks[0].x, self._chunks[0].y

    def sweep(self) -> Iterator[Tape]:
        """The tapes of all chunks, one after the other."""
        if self.cached:
            yield from self._tapes
        else:
            yield from (self._record(chunk) for chunk in self._chunks)

    def gradient(self) -> list[Maybe]:
        """∇L, parameter by parameter."""
        if self._gradient is None:
            self._gradient = add_up(tape.gradient() for tape in self.sweep())
        return self._gradient

    def _record(self, chunk: Chunk) -> Tape:
        return self.network.tape(chunk.x, chunk.loss(self._loss_fn))

    def _play(
        self, sizes: Sequence[int], room: float, each: float, forward_only: bool, *, summed: bool = False
    ) -> bool:
        """Cut and go through all the data once; False if cutting has changed the loss."""
        if max(sizes) > max(room, 1):
            raise ValueError(
                f"a batch of {max(sizes)} samples needs about {WORKSPACE * each * max(sizes) / 2**20:.3g} MiB and "
                "cannot be cut, as the loss is no mean or sum over its samples or the model does not take them one by "
                "one: give smaller batches or more memory"
            )
        self._tapes: list[Tape] = []
        self._chunks = cut(self._batches, sizes, summed=summed)
        heads: list[LossHead] = []

        def played() -> Iterator[list[Maybe]]:
            for chunk in self._chunks:
                tape = self._record(chunk)
                heads.append(tape.head)
                if self.cached:
                    self._tapes.append(tape)
                yield [] if forward_only else tape.gradient()

        gradient = add_up(played())
        self._gradient = None if forward_only else gradient
        for batch, group in groupby(zip(self._chunks, heads, strict=True), lambda pair: pair[0].batch):
            parts = list(group)
            outputs, targets = [head.output for _, head in parts], [chunk.y for chunk, _ in parts]
            y = self._batches[batch][1]
            if len(parts) > 1 and not is_loss_of_all(self._loss_fn, outputs, targets, y, summed=summed):
                return False
        self.outputs = heads[0].output.numel() // self._chunks[0].count
        self.loss = torch.stack([head.value for head in heads]).sum()
        if not bool(torch.isfinite(self.loss)):
            raise ValueError(f"the loss is {float(self.loss)}: give weights and data with which it is finite")
        heads[0].check_curvature()
        return True

    def _probe(self, whole: bool, kind: Kind) -> tuple[float, bool]:
        """Bytes of activations that one sample takes, and whether the output is one tensor."""
        x, y = self._batches[0]
        n = sample_count(x)
        few = n if whole else min(n, 2)
        if few < n:
            x, y = take(x, 0, few), take(y, 0, few)
        kinds = []

        def loss(z: Any) -> Tensor:
            kinds.append(isinstance(z, Tensor))
            if not isinstance(z, Tensor):
                return self._loss_fn(z, y)
            weights = torch.linspace(1, 2, z.numel(), dtype=z.dtype, device=z.device)
            return (z.flatten() * weights).sum()

        return max(1.0, self.network.probe(x, loss, kind) / few), kinds[0]


def add_up(lists: Iterable[Sequence[Maybe]]) -> list[Maybe]:
    """Sums of the first, second, … members, None counting as zero; the summands are not written to."""
    total: list[Maybe] = []
    for parts in lists:
        if not total:
            total = list(parts)
        else:
            pairs = zip(total, parts, strict=True)
            total = [b if a is None else a if b is None else a + b for a, b in pairs]
    return total
