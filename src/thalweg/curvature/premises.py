"""What must hold before a loss is taken apart: into its samples, and into a model and a function of the model's output.

A loss is given as a function of a whole batch, a model as one of all its inputs. That parts give the same as the whole,
and that the weights act through the output alone, is checked by evaluating both ways, since no name tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.curvature.chunks import LossFunction, sample_count, take
from thalweg.curvature.evaluation import agree

__all__ = ["is_loss_of_all", "is_separable", "require_loss_of_output"]


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
        # the zero of a perfect fit is mean and sum: ask elsewhere, where probabilities lie too
        if not bool(whole.any()):
            z = torch.linspace(0.1, 0.9, z.numel(), dtype=z.dtype, device=z.device).view(z.shape)
            whole = loss_fn(z, y)
        rows = torch.split(z, [len(part) for part in outputs])
        parts = [
            loss_fn(part, target).reshape(()) * (1.0 if summed else len(part) / len(z))
            for part, target in zip(rows, targets, strict=True)
        ]
    return agree(torch.stack(parts).sum(), whole.reshape(()))


@torch.no_grad()
def is_separable(model: Callable[[Any], Any], x: Any) -> bool:
    """Whether the outputs of up to four samples are the same together and in two parts.

    They are not where a model takes statistics of the batch, recurs or attends along the first axis, or holds a graph
    of all samples. What is no tensor is not compared: a loss of it is never cut.

    >>> is_separable(torch.tanh, torch.rand(3, 2)), is_separable(lambda x: x.cumsum(0), torch.rand(3, 2))
    (True, False)
    """
    n = min(sample_count(x), 4)
    if n < 2:
        return True
    try:
        whole, *parts = (model(take(x, *span)) for span in ((0, n), (0, n // 2), (n // 2, n)))
        return not isinstance(whole, Tensor) or agree(torch.cat(parts), whole)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model that does not run on a part of its data may raise anything
        return False


def require_loss_of_output(loss_fn: LossFunction, z: Any, y: Any, params: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse a loss that reads the weights themselves, as a penalty does: its derivatives in them would be left out.

    Args:
        loss_fn: ``loss_fn(output, target)``.
        z: an output, detached from the weights.
        y: its target.
        params: the weights with their names.

    Raises:
        ValueError: the loss depends on one of them although the output is given.
    """
    named = {name: param for name, param in params if param.requires_grad}
    with torch.enable_grad():
        value = loss_fn(z, y)
        if not named or not isinstance(value, Tensor) or not value.requires_grad:
            return
        grads = torch.autograd.grad(value.sum(), list(named.values()), allow_unused=True)
    for name, grad in zip(named, grads, strict=True):
        if grad is not None:
            raise ValueError(
                f"the loss reads the parameter {name!r} besides the model's output, as a penalty does, and that "
                "share would be left out: take the term out of loss_fn"
            )
