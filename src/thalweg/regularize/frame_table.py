r"""What the frame inequality looks like in every layer of a model: true spectrum, Gershgorin's circles, the seed's R.

For each layer the Gram matrix V that ``side`` means (WᵀW, or WWᵀ for m < n): its extreme eigenvalues from singular
values of the operator (all of them for small layers and on the torus, Lanczos elsewhere), the hull of its circles,
which contains them, and R. Between the two lies the gap that makes R = 0 sufficient only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.operators import (
    InputShapes,
    LayerOperator,
    extreme_singular_values,
    input_shapes,
    known_singular_values,
    negligible,
)
from thalweg.operators.weights import at_rest, uncompiled
from thalweg.regularize.circles import circles, taps_of_kernel
from thalweg.regularize.gershgorin import circle_hinge
from thalweg.regularize.gram import LayerMap, Side, check_bounds, grouped_kernel, unsupported
from thalweg.regularize.layer import Layer, weights_of
from thalweg.regularize.row_types import make_plan

__all__ = ["FrameRow", "FrameTable", "frame_report"]

LANCZOS_VECTORS = 256  # for layers too large for all singular values


@dataclass(frozen=True)
class FrameRow:
    """One layer; every number is None for a layer that the frame regularizer leaves out.

    Attributes:
        name: the module's name; that of the weight if it is not the module's ``weight``.
        m: outputs.
        n: inputs.
        side: "col" if V = WᵀW, "read" if it is that on the inputs that are read, "row" if V = WWᵀ.
        lambda_min: smallest eigenvalue of V.
        lambda_max: largest.
        circle_min: lowest point of Gershgorin's circles; at most lambda_min.
        circle_max: highest point; at least lambda_max.
        R: the seed's penalty for the bounds asked for.
        violating: share of V's rows whose circle is not inside [A, B].
        lost: dimensions of the input that do not reach the output, n - rank W.
        note: why the layer is left out, what cannot hold for it, or which number is an estimate.
    """

    name: str
    m: int | None = None
    n: int | None = None
    side: str = ""
    lambda_min: float | None = None
    lambda_max: float | None = None
    circle_min: float | None = None
    circle_max: float | None = None
    R: float | None = None
    violating: float | None = None
    lost: int | None = None
    note: str = ""

    @property
    def condition(self) -> float | None:
        """λ_max / λ_min of V; the layer's own condition number is its square root."""
        if self.lambda_min is None or self.lambda_max is None:
            return None
        return self.lambda_max / self.lambda_min if self.lambda_min else math.inf


class FrameTable(list[FrameRow]):
    """Rows for every weight matrix or kernel of a model; printing gives a Markdown table and the reasons.

    >>> model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2, bias=False))
    >>> model.forward = lambda x: model[1](x)
    >>> print(frame_report(model, (2,)).skipped[0].note)
    Embedding is neither a dense layer nor a convolution
    """

    @property
    def skipped(self) -> list[FrameRow]:
        """Layers that are left out; their notes say why."""
        return [row for row in self if row.R is None]

    def __str__(self) -> str:
        names = ["layer", "m", "n", "side", "λ_min", "λ_max", "condition", "circles", "R", "violating", "lost", "note"]
        lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        for row in self:
            if row.R is None:
                continue
            circle = f"{row.circle_min:.3g} … {row.circle_max:.3g}"
            numbers = [f"{x:.3g}" for x in (row.lambda_min, row.lambda_max, row.condition)]
            cells = [row.name, str(row.m), str(row.n), row.side, *numbers, circle, f"{row.R:.3g}"]
            lost = "?" if row.lost is None else str(row.lost)
            lines.append(f"| {' | '.join([*cells, f'{row.violating:.0%}', lost, row.note])} |")
        if self.skipped:
            lines += ["", "Left out:", *(f"- {row.name}: {row.note}" for row in self.skipped)]
        return "\n".join(lines)


@torch.no_grad()
def frame_report(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    sample: Tensor | tuple[Any, ...] | None = None,
    lower: float = 0.5,
    upper: float = 2.0,
    side: Side = "auto",
) -> FrameTable:
    """The frame bounds of every dense layer and convolution of a model, frozen ones too; the model is left as it was.

    Args:
        model: any model; it is run once.
        input_shape: of one input, without the batch axis: zeros of the dtype of the parameters are the sample then.
        sample: one batch in their place, for a model that takes something else: tokens, or several arguments, as a
            tuple.
        lower: A, for R and the share of violating rows.
        upper: B.
        side: which Gram matrix, see `thalweg.regularize.gram_side`.

    Returns:
        A row for every weight of two or more dimensions, in the model's order.

    Raises:
        ValueError: neither a shape nor a sample, or both; bounds out of order, an unknown side, or parameters that are
            not initialized yet (lazy modules).
        TypeError: a number or a tensor for the shape, or something that is not a model.

    >>> layer = nn.Linear(2, 2)
    >>> _ = nn.init.eye_(layer.weight)
    >>> row = frame_report(layer, (2,))[0]
    >>> row.lambda_min, row.lambda_max, row.condition, row.R, row.lost
    (1.0, 1.0, 1.0, 0.0, 0)
    """
    check_bounds(lower, upper)
    if isinstance(input_shape, (int, Tensor)):
        raise TypeError(f"input_shape is (channels, map…), got {type(input_shape).__name__}: a batch goes to sample=")
    if (input_shape is None) == (sample is None):
        given = "neither" if sample is None else "both"
        raise ValueError(f"frame_report takes input_shape=(channels, map…) or sample=a batch, got {given}")
    model = uncompiled(model)
    if input_shape is not None:
        real = (p for p in model.parameters() if p.is_floating_point() and not nn.parameter.is_lazy(p))
        sample = next(real, torch.empty(0)).new_zeros(1, *input_shape)
    assert sample is not None
    shapes = input_shapes(model, sample)
    table = FrameTable()
    seen: dict[tuple[nn.Module, str], str] = {}
    with at_rest(model):
        for layer, parts in weights_of(model, shapes):
            if layer.weight.ndim < 2:  # biases and normalization
                continue
            name = layer.name if layer.tensor == "weight" else layer.path
            first = seen.setdefault((layer.module, layer.tensor), name)
            reason = f"the same layer as {first}" if first != name else _reason(layer, shapes)
            if reason:
                table.append(FrameRow(name, note=reason))
                continue
            notes = [] if any(part.requires_grad for part in parts) else ["frozen"]
            if name in shapes.several:
                sizes = ", ".join(map(str, shapes.several[name]))
                notes.append(f"used on maps of several sizes, {sizes}; this is the first")
            with torch.autocast(device_type=layer.weight.device.type, enabled=False):
                table.append(_row(layer, lower, upper, side, notes))
    return table


def _reason(layer: Layer, shapes: InputShapes) -> str:
    """Why a weight has no frame bounds here; "" if it has."""
    reason = unsupported(layer.module) or layer.not_the_weight
    if not reason and layer.name in shapes.unused:
        reason = "the forward pass did not reach it"
    if not reason and layer.weight.is_complex():
        reason = "complex weights are not supported"
    if not reason and not layer.weight.numel():
        reason = "it has no elements"
    return reason


def _row(layer: Layer, lower: float, upper: float, side: Side, notes: list[str]) -> FrameRow:
    name, module, weight, shape = layer.name, layer.module, layer.weight, layer.input_shape
    layer_map = LayerMap.of_module(module, weight, shape)
    m, n = layer_map.shape
    choice = layer_map.gram_side(side)
    notes += [choice.note] if choice.note else []
    if not choice.gram:
        return FrameRow(name, m, n, note="; ".join(notes))
    if not weight.isfinite().all():
        nan = math.nan
        remark = "; ".join([*notes, "the weight is not finite"])
        return FrameRow(name, m, n, choice.gram, nan, nan, nan, nan, nan, nan, None, remark)
    plan = make_plan(layer_map.axes, choice.gram)
    S, v, _ = circles(taps_of_kernel(grouped_kernel(weight, layer_map.groups), choice.gram), plan)
    A = lower if choice.bounded_below else -math.inf
    R, _, _ = circle_hinge(S, v, plan, A, upper)
    outside = ((2 * v - S < A) | (upper < S)).to(S).mean((1, 2))
    smallest, largest, rank, remark = _extremes(LayerOperator.of(module, shape, weight=weight), layer_map.read)
    notes += [remark] if remark else []
    rows = {"col": n, "read": layer_map.read, "row": m}[choice.gram]
    return FrameRow(
        name,
        m,
        n,
        choice.gram,
        smallest if rows <= min(m, n) else 0.0,
        largest,
        float((2 * v - S).min()),
        float(S.max()),
        float(R),
        float((plan.share.to(S) * outside).sum()),
        None if rank is None else n - rank,
        "; ".join(notes),
    )


def _extremes(operator: LayerOperator, read: int) -> tuple[float, float, int | None, str]:
    """Smallest and largest of the min(m, read) squared singular values, the rank, and a remark."""
    sigma = known_singular_values(operator)
    if sigma is not None:
        rank = int((sigma > negligible(operator) * sigma[0]).sum())
        return float(sigma[min(len(sigma), read) - 1]) ** 2, float(sigma[0]) ** 2, rank, ""
    found = extreme_singular_values(operator, smallest=1, max_vectors=LANCZOS_VECTORS)
    smallest, largest = float(found.smallest[-1]), float(found.largest[0])
    full = found.converged and smallest > negligible(operator, by_products=True) * largest
    note = "" if found.converged else "λ_min is an upper estimate: Lanczos has not converged"
    return smallest**2, largest**2, min(operator.shape) if full else None, note
