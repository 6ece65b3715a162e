"""Batches of tensors that already live on the training device, in an order that can be resumed bit for bit.

An epoch's order is ``torch.randperm(n, generator=generator)``. The state is therefore two things: the generator as it
was at the start of the epoch, and the number of batches given since. Augmentation draws from a generator of each
batch's own, whose seed is the epoch's (drawn after its order) plus the batch's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from thalweg.lab.data.augmentation import Augment

__all__ = ["Batches"]

SEEDS = 2**62


class Batches:
    """Iterate over the batches of one epoch, from the current position on; the last one may be smaller.

    >>> x = torch.arange(5)
    >>> batches = Batches(x, x, batch_size=2, generator=torch.Generator().manual_seed(0))
    >>> [batch.tolist() for batch, _ in batches]
    [[4, 0], [1, 3], [2]]

    A batch counts as given when it is handed out: a checkpoint taken after its step continues with the next one. After
    an epoch's last batch the position is ``len(batches)``; the iteration that finds nothing left sets it to 0, and the
    next epoch begins there.

    Args:
        inputs: n samples along the first dimension.
        targets: n targets, or ``inputs`` itself: then every batch is gathered once and yielded twice.
        batch_size: samples per batch.
        generator: a CPU generator; it is advanced by one permutation per epoch.
        shuffle: False keeps the order of the tensors and leaves the generator alone; batches are then views.
        augment: changes the inputs of a batch, as those of `thalweg.lab.data.augmentation`; needs ``shuffle``.

    Raises:
        ValueError: no samples, unequal lengths or devices, a batch size below 1, a generator that is not on the CPU.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        generator: torch.Generator,
        shuffle: bool = True,
        augment: Augment | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1 sample per batch expected")
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: one target per input expected")
        if len(inputs) == 0:
            raise ValueError("0 inputs: at least one sample expected")
        if inputs.device != targets.device:
            raise ValueError(f"inputs on {inputs.device} and targets on {targets.device}: move both to one device")
        if generator.device.type != "cpu":
            raise ValueError(
                f"generator on {generator.device}: a CPU generator expected, so that runs agree everywhere"
            )
        if augment is not None and not shuffle:
            raise ValueError("augment needs shuffle=True: in a fixed order every batch is the same each epoch")
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size
        self.samples = len(inputs)
        self._generator, self._shuffle, self._augment = generator, shuffle, augment
        self._seed = 0
        self._start = generator.get_state()
        self._rows: tuple[Tensor, ...] = ()
        self._position = 0

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.samples // self.batch_size)

    @property
    def position(self) -> int:
        """Batches already given in this epoch."""
        return self._position

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._position == 0:
            self._begin()
        inputs, targets, length = self.inputs, self.targets, len(self)
        same = targets is inputs
        while self._position < length:
            batch = self._take(inputs)
            target = batch if same else self._take(targets)
            if self._augment is not None:
                draw = torch.Generator().manual_seed(self._seed + self._position)
                batch = self._augment(batch, draw)
            self._position += 1
            yield batch, target
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """``generator``: its state (uint8) at the start of this epoch; ``position``: batches given since."""
        return {"generator": self._start if self._position else self._generator.get_state(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, on the same samples and with the same batch size."""
        position = int(state["position"])
        if not 0 <= position <= len(self):
            raise ValueError(f"position {position}: 0 to {len(self)} expected; was the state taken with other batches?")
        self._generator.set_state(state["generator"].cpu())
        self._position = position
        if position:
            self._begin()

    def _begin(self) -> None:
        self._start = self._generator.get_state()
        if self._shuffle:
            order = torch.randperm(self.samples, generator=self._generator)
            self._rows = torch.split(order.to(self.inputs.device), self.batch_size)
            if self._augment is not None:
                self._seed = int(torch.randint(SEEDS, (), generator=self._generator))

    def _take(self, tensor: Tensor) -> Tensor:
        if self._shuffle:
            return tensor.index_select(0, self._rows[self._position])
        return tensor[self._position * self.batch_size : (self._position + 1) * self.batch_size]
