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
from thalweg.curvature.weighted_rules import (
    Live,
    convolution,
    embedding,
    linear,
    normalized,
    product,
    transposed_convolution,
)

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
