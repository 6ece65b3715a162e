"""Rules of the operations that have weights: linear in the weight, and linear in the input.

What meets in a product, of an activation and a weight or of two activations, bends although each factor is linear: the
second derivative is the pull of the same operation, with one factor replaced by its tangent. `rules` has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from thalweg.curvature.second_order import Maybe, Node

__all__ = ["Live", "convolution", "embedding", "linear", "normalized", "product", "transposed_convolution", "weighted"]

Function = Callable[..., Tensor]
Live = Sequence[bool]


def weighted(f: Function, pull_at: Callable[..., Sequence[Maybe]], live: Live, h: Tensor, w: Tensor, b: Maybe) -> Node:
    """Rule of a = f(h, w, b), linear in h, in w and in b; ``pull_at(ā, h, w, wanted)`` is its Jᵀ at (h, w)."""

    def push(dh: Maybe, dw: Maybe, db: Maybe) -> Tensor:
        if dh is None:
            return f(h, torch.zeros_like(w) if dw is None else dw, db)
        a = f(dh, w, db if dw is None else None)
        return a if dw is None else a.add_(f(h, dw, db))

    def bend(adjoint: Tensor, dh: Maybe, dw: Maybe, _: Maybe) -> Sequence[Maybe]:
        wanted = (live[0] and dw is not None, live[1] and dh is not None, False)
        if not any(wanted):
            return None, None, None
        return pull_at(adjoint, h if dh is None else dh, w if dw is None else dw, wanted)

    both = live[0] and live[1]
    return Node(f(h, w, b), push, lambda adjoint: pull_at(adjoint, h, w, live), bend if both else None)


def linear(live: Live, input: Tensor, weight: Tensor, bias: Maybe = None) -> Node:
    """h: (..., in), w: (out, in)."""

    def pull_at(u: Tensor, h: Tensor, w: Tensor, wanted: Live) -> Sequence[Maybe]:
        rows = u.reshape(-1, u.shape[-1])
        return (
            u @ w if wanted[0] else None,
            rows.mT @ h.reshape(-1, h.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )

    return weighted(functional.linear, pull_at, live, input, weight, bias)


def convolution(
    live: Live,
    input: Tensor,
    weight: Tensor,
    bias: Maybe = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Node | None:
    """h: (n, in, ...), w: (out, in/groups, ...) in one, two or three dimensions."""
    return _convolution(live, input, weight, bias, (stride, padding, dilation, 0), False, groups)


def transposed_convolution(
    live: Live,
    input: Tensor,
    weight: Tensor,
    bias: Maybe = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Node | None:
    """h: (n, in, ...), w: (in, out/groups, ...)."""
    return _convolution(live, input, weight, bias, (stride, padding, dilation, output_padding), True, groups)


def _convolution(
    live: Live, h: Tensor, w: Tensor, b: Maybe, geometry: Sequence[Any], transposed: bool, groups: int
) -> Node | None:
    dims = w.ndim - 2
    if any(isinstance(x, str) for x in geometry) or h.ndim != w.ndim:  # padding="same", or no batch axis
        return None
    stride, padding, dilation, extra = (list(x) * (dims // len(x)) for x in map(_listed, geometry))
    options = (stride, padding, dilation, transposed, extra, groups)
    channels = [w.shape[1] * groups if transposed else w.shape[0]]
    if (
        dims == 2 and h.device.type == "cpu"
    ):  # oneDNN is up to five times faster with few channels; what follows keeps it
        h = h.contiguous(memory_format=torch.channels_last)

    def f(h: Tensor, w: Tensor, b: Maybe) -> Tensor:
        return torch.convolution(h, w, b, *options)

    def pull_at(u: Tensor, h: Tensor, w: Tensor, wanted: Live) -> Sequence[Maybe]:
        parts: Sequence[Maybe] = torch.ops.aten.convolution_backward(u, h, w, channels, *options, list(wanted))
        return parts

    return weighted(f, pull_at, live, h, w, b)


def _listed(x: Any) -> Sequence[int]:
    return [x] if isinstance(x, int) else x


def product(f: Function, h: Tensor, w: Tensor) -> Node:
    """Rule of f bilinear in two activations."""

    def pull_at(u: Tensor, h: Tensor, w: Tensor, wanted: Live) -> Sequence[Maybe]:
        with torch.enable_grad():
            leaves = h.detach().requires_grad_(), w.detach().requires_grad_()
            dh, dw = torch.autograd.grad(f(*leaves), leaves, u)
        return dh if wanted[0] else None, dw if wanted[1] else None, None

    node = weighted(lambda h, w, _: f(h, w), pull_at, (True, True, False), h, w, None)
    push, pull, bend = node.push, node.pull, node.bend
    assert bend is not None
    return Node(node.value, lambda *t: push(*t, None), lambda u: pull(u)[:2], lambda u, *t: bend(u, *t, None)[:2])


def normalized(
    live: Live,
    input: Tensor,
    running_mean: Maybe,
    running_var: Maybe,
    weight: Maybe = None,
    bias: Maybe = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Node | None:
    """Rule of a = gain (h - μ)/s + shift by channels, s² = variance + eps, with the running μ and variance."""
    if training or running_mean is None or running_var is None or live[1] or live[2]:
        return None
    h, shape = input, [1, -1] + [1] * (input.ndim - 2)
    others = [k for k in range(h.ndim) if k != 1]
    scale = (running_var + eps).rsqrt()
    slope = (scale if weight is None else scale * weight).view(shape)
    scale = scale.view(shape)
    x = (h - running_mean.view(shape)) * scale if live[3] else None

    def push(dh: Maybe, _: Maybe, __: Maybe, dgain: Maybe, dshift: Maybe) -> Tensor:
        a = torch.zeros_like(h) if dh is None else dh * slope
        if dgain is not None and x is not None:
            a = a.addcmul_(x, dgain.view(shape))
        return a if dshift is None else a.add_(dshift.view(shape))

    def pull(u: Tensor) -> Sequence[Maybe]:
        dgain = (u * x).sum(others) if x is not None else None
        return u * slope if live[0] else None, None, None, dgain, u.sum(others) if live[4] else None

    def bend(u: Tensor, dh: Maybe, _: Maybe, __: Maybe, dgain: Maybe, ___: Maybe) -> Sequence[Maybe]:
        along_h = None if dgain is None else u * (scale * dgain.view(shape))
        along_gain = None if dh is None else (u * dh).sum(others) * scale.view(-1)
        return along_h, None, None, along_gain, None

    value = functional.batch_norm(h, running_mean, running_var, weight, bias, False, 0.0, eps)
    return Node(value, push, pull, bend if live[0] and live[3] else None)


def embedding(
    live: Live,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Node | None:
    """Rows of the weight; that of ``padding_idx`` is a constant, as its derivative is for autograd."""
    if max_norm is not None:  # shortens rows in place
        return None
    shown = None if padding_idx is None else (input != padding_idx % len(weight)).unsqueeze(-1)

    def push(_: Maybe, dw: Tensor) -> Tensor:
        rows = functional.embedding(input, dw)
        return rows if shown is None else rows * shown

    def pull(u: Tensor) -> Sequence[Maybe]:
        rows = (u if shown is None else u * shown).reshape(-1, u.shape[-1])
        return None, torch.zeros_like(weight).index_add_(0, input.reshape(-1), rows)

    return Node(functional.embedding(input, weight), push, pull)
