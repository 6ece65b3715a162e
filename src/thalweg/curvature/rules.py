r"""How each operation of a network is pushed, pulled and bent: the rules of the Hessian pass (`second_order`).

==========  =========================================================  ======================================
family      rule                                                       members
==========  =========================================================  ======================================
weighted    push f(ḣ, w) + f(h, ẇ);  bend = pull of f at (ḣ, ẇ)        linear layers, convolutions
product     the same for two activations                               multiplication, matmul
normalized  the same for the gain and (h - μ)/s                        batch normalization in evaluation mode
affine      push f(ḣ);  no bend                                        sums, reshapes, means, average pooling
selected    push the entries chosen at h;  no bend                     ReLU, maximum pooling, embeddings
pointwise   push σ' ḣ;  bend σ'' ā ḣ                                   tanh, GELU, …
opaque      all three by automatic differentiation                     everything else
==========  =========================================================  ======================================

The last family makes the table complete: an operation without a rule costs somewhat more, the others do not suffer.
Adjoints of affine operations come from autograd, which has them exact and cheap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from thalweg.curvature.evaluation import twice_differentiable
from thalweg.curvature.second_order import Maybe, Node

__all__ = [
    "AFFINE",
    "POINTWISE",
    "PRODUCTS",
    "QUOTIENTS",
    "REWRITTEN",
    "RULES",
    "affine",
    "opaque",
    "pointwise",
    "product",
]

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


def relu(live: Live, input: Tensor, inplace: bool = False) -> Node:
    """The output itself is the mask: zero exactly where the slope is."""
    a = torch.relu(input)

    def mask(t: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(t, a, 0)  # type: ignore[no-any-return]

    return Node(a, mask, lambda u: (mask(u),))


def maximum_pooling(
    live: Live,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Node | None:
    """Maximum over windows in one or two dimensions: the entries that are largest at h."""
    if return_indices or input.ndim not in (3, 4):
        return None
    pool: Any = functional.max_pool1d if input.ndim == 3 else functional.max_pool2d
    return _selection(input, *pool(input, kernel_size, stride, padding, dilation, ceil_mode, True))


def adaptive_maximum_pooling(live: Live, input: Tensor, output_size: Any, return_indices: bool = False) -> Node | None:
    """Maximum over as many windows as the output has entries."""
    if return_indices or input.ndim not in (3, 4):
        return None
    pool: Any = functional.adaptive_max_pool1d if input.ndim == 3 else functional.adaptive_max_pool2d
    return _selection(input, *pool(input, output_size, True))


def _selection(h: Tensor, a: Tensor, chosen: Tensor) -> Node:
    """``chosen``: indices into the flattened positions of each channel; windows that overlap choose an entry twice."""
    chosen = chosen.flatten(2)

    def push(dh: Tensor) -> Tensor:
        return dh.flatten(2).gather(2, chosen).view_as(a)

    def pull(u: Tensor) -> Sequence[Maybe]:
        return (torch.zeros_like(h).flatten(2).scatter_add_(2, chosen, u.flatten(2)).view_as(h),)

    return Node(a, push, pull)


def affine(f: Function, inputs: Sequence[Tensor]) -> Node:
    """Rule of f linear in all its inputs together, its own push; opaque where a constant is added."""
    if bool(f(*map(torch.zeros_like, inputs)).any()):
        return opaque(f, inputs)
    with torch.enable_grad():
        leaves = [h.detach().requires_grad_() for h in inputs]
        a = f(*leaves)

    def push(*tangents: Maybe) -> Tensor:
        return f(*(torch.zeros_like(h) if t is None else t for h, t in zip(inputs, tangents, strict=True)))

    return Node(a.detach(), push, lambda u: _gradients([a], leaves, [u]))


def pointwise(f: Function, h: Tensor) -> Node:
    """Rule of f applied entry by entry."""
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        a = f(leaf)
        (slope,) = torch.autograd.grad(a.sum(), leaf, create_graph=True)
        (second,) = _gradients([slope.sum()], [leaf]) if slope.requires_grad else (None,)
    slope = slope.detach()
    if second is None or not bool(second.any()):
        return Node(a.detach(), lambda t: slope * t, lambda u: (slope * u,))
    return Node(a.detach(), lambda t: slope * t, lambda u: (slope * u,), lambda u, t: ((second * u).mul_(t),))


def opaque(f: Function, inputs: Sequence[Tensor]) -> Node:
    """Any f. J ḣ is read off Jᵀu, which is linear in u; ∇²⟨ā, f⟩ ḣ is the gradient of ⟨Jᵀā, ḣ⟩."""
    with torch.enable_grad(), twice_differentiable():
        leaves = [h.detach().requires_grad_() for h in inputs]
        a = f(*leaves)
        u = torch.zeros_like(a).requires_grad_()
        pulled = _gradients([a], leaves, [u], create_graph=True)
    graphs: list[tuple[Tensor, Sequence[Maybe]]] = []  # Jᵀā with its graph, for the one ā of the tape

    def push(*tangents: Maybe) -> Tensor:
        (dot,) = _along(pulled, tangents, [u])
        return torch.zeros_like(a) if dot is None else dot

    def bend(adjoint: Tensor, *tangents: Maybe) -> Sequence[Maybe]:
        if not graphs:
            with torch.enable_grad():
                graphs.append((adjoint, _gradients([a], leaves, [adjoint], create_graph=True)))
        return [None if part is None else part.clone() for part in _along(graphs[0][1], tangents, leaves)]

    return Node(a.detach(), push, lambda u: _gradients([a], leaves, [u]), bend)


def _gradients(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], adjoints: Sequence[Tensor] | None = None, **options: Any
) -> Sequence[Maybe]:
    if not outputs[0].requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(outputs, leaves, adjoints, retain_graph=True, allow_unused=True, **options)


def _along(pulled: Sequence[Maybe], tangents: Sequence[Maybe], leaves: Sequence[Tensor]) -> Sequence[Maybe]:
    """∂⟨pulled, tangents⟩/∂leaves."""
    pairs = [
        (g, t) for g, t in zip(pulled, tangents, strict=True) if g is not None and g.requires_grad and t is not None
    ]
    if not pairs:
        return [None] * len(leaves)
    return _gradients([g for g, _ in pairs], leaves, [t for _, t in pairs])


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weight g v/|v|, norms over all axes but ``dim``."""
    others = [k for k in range(v.ndim) if k != dim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def hardsigmoid(h: Tensor, inplace: bool = False) -> Tensor:
    """The function min(max(h + 3, 0), 6)/6."""
    return functional.relu6(h + 3.0) / 6.0


F = functional
# torch's own hardsigmoid has no double backward, and that of its weight norm is wrong: for torch 2.13 on a CPU the
# Hessian is not even symmetric
REWRITTEN: dict[Any, Function] = {torch._weight_norm: weight_norm, functional.hardsigmoid: hardsigmoid}
# function: its rule, and the names of its operands, which stand first among its arguments
RULES: dict[Any, tuple[Callable[..., Node | None], tuple[str, ...]]] = {
    F.linear: (linear, ("input", "weight", "bias")),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), (convolution, ("input", "weight", "bias"))),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        (transposed_convolution, ("input", "weight", "bias")),
    ),
    F.embedding: (embedding, ("input", "weight")),
    F.batch_norm: (normalized, ("input", "running_mean", "running_var", "weight", "bias")),
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), (relu, ("input",))),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d), (maximum_pooling, ("input",))),
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d), (adaptive_maximum_pooling, ("input",))),
}
# bilinear in two activations, linear in one
PRODUCTS = {operator.mul, operator.matmul, torch.mul, torch.matmul, torch.bmm, "mul", "matmul", "bmm"}
# linear in the numerator
QUOTIENTS = {operator.truediv, torch.div, "div"}
# linear in all activations together, up to a constant
AFFINE = {
    operator.add, operator.sub, operator.neg, operator.getitem, torch.add, torch.sub, torch.neg, torch.sum, torch.mean,
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.cat,
    torch.stack, F.pad, F.interpolate, F.pixel_shuffle, F.dropout, F.avg_pool1d, F.avg_pool2d,
    F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    "add", "sub", "neg", "sum", "mean", "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze",
    "contiguous", "expand", "repeat", "t",
}  # fmt: skip
POINTWISE = {
    torch.tanh, torch.sigmoid, torch.exp, torch.sin, torch.cos, torch.square, torch.abs, torch.sqrt, torch.rsqrt,
    F.gelu, F.silu, F.softplus, F.elu, F.selu, F.celu, F.mish, F.leaky_relu, F.hardtanh, F.relu6, F.hardswish,
    F.hardsigmoid, F.logsigmoid, F.tanh, F.sigmoid, F.softsign, "tanh", "sigmoid", "exp", "square", "abs", "sqrt",
}  # fmt: skip
