r"""A step down a penalty whose least value is known to be 0: its length needs no constant.

    w <- w - η R / |∇R|² ∇R,   0 < η < 2          B. T. Polyak, Introduction to Optimization, 1987, section 5.3.2

At η = 1 it halves the violation h of a squared hinge R = h², to first order and whatever the scale of h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["polyak_step_"]


def polyak_step_(value: Tensor, params: Sequence[Tensor], eta: float) -> None:
    """Move parameters in place; those that ``value`` does not depend on, and all of them where ∇R = 0, stay.

    Lengths are computed in the dtype of ``value``: in float16 the square of a gradient longer than 256 is infinite.

    Args:
        value: R >= 0, a scalar with a graph, in float32 or wider.
        params: leaves of the graph.
        eta: η.

    >>> w = torch.tensor([4.0], requires_grad=True)
    >>> polyak_step_(w.square().sum(), [w], 1.0)
    >>> w.detach()
    tensor([2.])
    """
    gradients = torch.autograd.grad(value, params, allow_unused=True)
    with torch.no_grad():
        moves = [(p, dp.to(value.dtype)) for p, dp in zip(params, gradients, strict=True) if dp is not None]
        squares = torch.stack([dp.square().sum() for _, dp in moves]).sum()
        size = eta * torch.where(squares > 0, value / squares, 0)
        for param, gradient in moves:
            param.sub_(size * gradient)
