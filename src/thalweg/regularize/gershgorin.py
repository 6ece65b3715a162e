r"""Gershgorin's circles of a layer's Gram matrix, with exact borders, at a cost that does not depend on the map's size.

    R(W) = mean_i  min(v_ii - r_i - A, 0)² + min(B - v_ii - r_i, 0)²,   r_i = Σ_{j≠i} |v_ij|       seed 002, slide 10

for V = WᵀW or WWᵀ. R = 0 puts every circle, hence every eigenvalue of V, into [A, B]. The slide's sum runs over j = i
too; then min(-A - r_i, 0)² >= A² even for diagonal V inside [A, B], so j ≠ i is meant (as in the line above it there).

With S_i = Σ_j |v_ij| and v_ii >= 0 the two terms are min(2 v_ii - S_i - A, 0)² and min(B - S_i, 0)². Rows of V are
equal wherever the same taps meet: `thalweg.regularize.circles` finds S_i and v_ii once for each type of row, and R is a
mean over types, weighted by how many positions have each. dR/dW is found in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from thalweg.regularize.axes import AxisShape
from thalweg.regularize.circles import circles, circles_gradient, kernel_of_taps, taps_of_kernel
from thalweg.regularize.gram import Boundary, LayerMap, Side, check_bounds, grouped_kernel
from thalweg.regularize.row_types import Plan, make_plan

__all__ = ["circle_hinge", "frame_penalty", "gershgorin_penalty"]


def frame_penalty(
    weight: Tensor,
    input_shape: Sequence[int] | None = None,
    *,
    lower: float,
    upper: float,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    circular: bool = False,
    side: Side = "auto",
    boundary: Boundary = "exact",
    rows: Tensor | None = None,
) -> Tensor:
    r"""R(W) of seed 002 (slide 10, with j ≠ i) for a dense layer or a convolution, once differentiable in ``weight``.

    Args:
        weight: (m, n), or (out, in / groups, taps…) with one to three axes of taps.
        input_shape: (in, map…) of a convolution, without the batch axis; ``boundary="interior"`` can do without.
        lower: A >= 0.
        upper: B >= A.
        stride: of the convolution, as for ``torch.nn.Conv2d``.
        padding: likewise; numbers, "same" or "valid".
        dilation: likewise.
        groups: likewise.
        circular: circular padding instead of zeros.
        side: which Gram matrix: "col" is WᵀW, "row" WWᵀ; see `gram_side` for the others.
        boundary: "exact", or "interior" as if the map had no borders.
        rows: indices of the row channels, within their group, to average over (inputs for "col", outputs for "row"): a
            uniform sample gives an unbiased estimate of R. None is all of them.

    Returns:
        R: a scalar; zero if ``side="skip"`` leaves the layer out.

    Raises:
        ValueError: bounds out of order, an unknown option, shapes that do not fit, or no map where one is needed.

    >>> frame_penalty(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), lower=1.0, upper=2.0)  # v = 4 and 1/4: (2² + (3/4)²) / 2
    tensor(2.2812)
    >>> K = torch.zeros(1, 1, 3, 3)
    >>> K[0, 0, 1, 1] = 1.0  # the identity, on any map
    >>> frame_penalty(K, (1, 4, 4), padding=1, lower=1.0, upper=1.0)
    tensor(0.)
    """
    check_bounds(lower, upper)
    layer_map = LayerMap.of(weight, input_shape, stride, padding, dilation, groups, circular, boundary)
    choice = layer_map.gram_side(side)
    if not choice.gram:
        return 0.0 * weight.sum()
    bound = lower if choice.bounded_below else -torch.inf
    return gershgorin_penalty(grouped_kernel(weight, groups), layer_map.axes, choice.gram, bound, upper, rows)


def gershgorin_penalty(
    kernel: Tensor, axes: Sequence[AxisShape], side: str, lower: float, upper: float, rows: Tensor | None = None
) -> Tensor:
    """R of the Gram matrix "col", "read" or "row" of a kernel (g, out, in, taps…); ``lower`` may be -inf."""
    if not torch.compiler.is_compiling() and unpack_dual(kernel).tangent is not None:  # type: ignore[no-untyped-call]
        raise RuntimeError("the frame penalty is differentiable backward only: it has no forward derivative here")
    flat = [int(number) for axis in axes for number in axis]
    need_grad = kernel.requires_grad and torch.is_grad_enabled()
    value: Tensor = _value_and_gradient(kernel, flat, side, lower, upper, rows, need_grad)[0]
    return value


# An operator of its own, for torch.compile to leave alone: the gradient is a by-product of the value.
@torch.library.custom_op("thalweg::gershgorin_penalty", mutates_args=())
def _value_and_gradient(
    kernel: Tensor, axes: list[int], side: str, lower: float, upper: float, rows: Tensor | None, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """R and dR/dK; the latter is empty unless it is needed."""
    size = len(AxisShape._fields)
    numbers = (axes[i : i + size] for i in range(0, len(axes), size))
    shapes = tuple(AxisShape(h, k, s, p, d, u, bool(circular)) for h, k, s, p, d, u, circular in numbers)
    plan = make_plan(shapes, side)
    with torch.autocast(device_type=kernel.device.type, enabled=False):
        X = taps_of_kernel(kernel, side)
        S, v, sets = circles(X, plan, rows)
        R, dS, dv = circle_hinge(S, v, plan, lower, upper)
        if not need_grad:
            return R, kernel.new_empty(0)
        dX = circles_gradient(X, plan, sets, dS, dv, rows)
    return R, kernel_of_taps(dX, side).reshape(kernel.shape).contiguous()


@_value_and_gradient.register_fake
def _(
    kernel: Tensor, axes: list[int], side: str, lower: float, upper: float, rows: Tensor | None, need_grad: bool
) -> tuple[Tensor, Tensor]:
    return kernel.new_empty(()), kernel.new_empty(kernel.shape if need_grad else 0)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx: Any, dvalue: Tensor | None, dgradient: Tensor | None) -> tuple[Tensor | None, ...]:
    if dgradient is not None:
        raise RuntimeError("the frame penalty is differentiable once: its gradient has no derivative of its own here")
    (gradient,) = ctx.saved_tensors
    return None if dvalue is None else dvalue * gradient, None, None, None, None, None, None


_value_and_gradient.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def circle_hinge(S: Tensor, v: Tensor, plan: Plan, lower: float, upper: float) -> tuple[Tensor, Tensor, Tensor]:
    """R, dR/dS and dR/dv: the seed's formula, averaged over every position, group and row channel."""
    low, high = (2 * v - S - lower).clamp(max=0), (upper - S).clamp(max=0)
    weight = plan.share.to(S)[:, None, None] / (S.shape[1] * S.shape[2])
    return (weight * (low.square() + high.square())).sum(), -2 * weight * (low + high), 4 * weight * low
