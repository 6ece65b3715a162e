"""One sample at a time: a function of a batch of one, called for every sample of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from thalweg.curvature.chunks import map_tensors, sample_count, take
from thalweg.landscape._objective import batches_of

__all__ = ["each_sample", "one_number", "parts_of"]


def parts_of(data: Any, device: torch.device, size: int) -> Iterator[tuple[Any, Any]]:
    """The batches of ``data`` cut into parts of at most ``size`` samples.

    Raises:
        TypeError: as `batches_of`.
        ValueError: as `batches_of`, or a batch with another number of targets than of inputs.
    """
    for x, y in batches_of(data, device):
        n = sample_count(x)
        if isinstance(y, Tensor) and y.shape[:1] != (n,):
            raise ValueError(
                f"a batch has {n} inputs and targets of shape {tuple(y.shape)}: one target for each expected, along "
                "the first axis"
            )
        for start in range(0, n, size):
            yield take(x, start, start + size), take(y, start, start + size)


def each_sample(function: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Tensor:
    """``function`` of every sample as a batch of one, stacked: vectorised where its operations can be.

    Those that look at values (a loss with a mask, an ``if``) or have no rule for it (a GRU) are called one by one.

    >>> x = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    >>> each_sample(lambda x, _: x[x > 0].sum(), x, None)  # a mask
    tensor([1., 5.])
    """
    axes = 0, None if y is None else 0

    def of_one(part: Any) -> Any:
        return map_tensors(lambda tensor: tensor.unsqueeze(0), part)

    try:
        return vmap(lambda x, y: function(of_one(x), of_one(y)), axes)(x, y)
    except (RuntimeError, ValueError):  # an error of the function itself comes again
        n = sample_count(x)
        return torch.stack([function(take(x, i, i + 1), take(y, i, i + 1)) for i in range(n)])


def one_number(loss: Any) -> Tensor:
    """The loss of one sample as a scalar.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return one number, a tensor, for a batch of one sample, got {given}")
    return loss.reshape(())
