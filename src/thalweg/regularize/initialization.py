r"""Weights from which the frame penalties start at zero: delta-orthogonal kernels and tight frames.

A tight frame has V = WᵀW = c I. Choose, on each axis of a convolution with stride s, one tap for every residue of the
input's position modulo s that the kernel can read, and let M be the matrix from the in·P channel-tap pairs so chosen to
the out channels; all other taps are zero. Windows then do not overlap, and

    out >= in·P:  MᵀM = c I, hence WᵀW = c I on the pixels that are read        (tight frame; stride 1: P = 1)
    out <= in·P:  MMᵀ = c I, hence WWᵀ = c I                                   (the rows are orthogonal)

provided that no chosen tap falls into the padding, which the taps are chosen for. For stride 1 it is the
delta-orthogonal initialization (Xiao et al., ICML 2018, section 3.2: an orthogonal matrix at the centre tap), for a
dense layer an orthogonal matrix or a random tight frame. c = √(A B), the middle of [A, B] on a logarithmic scale.

Pixels that no window reads (three quarters for a 1 x 1 kernel of stride 2) stay out of it. Where borders forbid both,
the same recipe is the best available one, and the result says what it misses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg.operators import input_shapes
from thalweg.operators.weights import at_rest, uncompiled
from thalweg.regularize.axes import AxisShape, axis_shapes
from thalweg.regularize.circles import circles, taps_of_kernel
from thalweg.regularize.gram import LayerMap, convolution_options, grouped_kernel, unsupported
from thalweg.regularize.layer import Layer
from thalweg.regularize.row_types import make_plan
from thalweg.regularize.selection import check_matched, not_by_name, select, shell_patterns, unusable

__all__ = ["FrameInit", "frame_init_", "tight_frame"]


@dataclass(frozen=True)
class FrameInit:
    """What `frame_init_` did to one layer.

    Attributes:
        name: the module's name; that of the weight if it is not the module's ``weight``.
        kind: "tight frame", "orthogonal rows", with "delta-" for convolutions, or "not initialized".
        lower: certified lower bound of the spectrum of the Gram matrix that ``side="auto"`` bounds (lowest circle).
        upper: certified upper bound.
        note: what could not be reached, or why nothing was done; "" if [lower, upper] lies in [A, B].
    """

    name: str
    kind: str
    lower: float
    upper: float
    note: str = ""


def tight_frame(
    m: int,
    n: int,
    *,
    bound: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """A random M: (m, n) with MᵀM = c I for m >= n, MMᵀ = c I for m <= n, uniform among them.

    Args:
        m: rows.
        n: columns.
        bound: c.
        generator: draws a Gaussian matrix, whose QR decomposition is taken.
        dtype: of the result.
        device: of the result.

    Raises:
        ValueError: no row, no column, or a negative or infinite c.

    >>> M = tight_frame(5, 2, bound=2.0, dtype=torch.float64)
    >>> torch.allclose(M.T @ M, 2 * torch.eye(2, dtype=torch.float64))
    True
    """
    if min(m, n) < 1 or not 0 <= bound < math.inf:
        raise ValueError(f"a tight frame has m, n >= 1 and a finite bound >= 0, got m={m}, n={n} and bound={bound}")
    source = device if generator is None else generator.device
    gaussian = torch.randn(max(m, n), min(m, n), generator=generator, dtype=torch.float64, device=source)
    Q, R = torch.linalg.qr(gaussian)
    M: Tensor = math.sqrt(bound) * Q * R.diagonal().sign()  # with these signs Q is uniform
    return (M if m >= n else M.T).to(dtype=dtype or torch.get_default_dtype(), device=device)


@torch.no_grad()
def frame_init_(
    model: nn.Module,
    lower: float,
    upper: float,
    *,
    sample: Tensor | tuple[Any, ...] | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> list[FrameInit]:
    """Overwrite the weights of dense layers and convolutions by tight frames with bound √(A B); biases stay.

    Frozen weights stay too, and a weight that layers share is initialized once, for the first of them.

    Args:
        model: a model or a single layer; of a compiled one, the model inside, by whose names all goes.
        lower: A >= 0.
        upper: B >= A, above 0.
        sample: an input of the model, or a tuple of several arguments: then chosen taps avoid the borders of the true
            maps, and bounds are certified for them; without it a map without borders is assumed.
        include: shell patterns (``"layer1.*"``); a weight needs one that matches its module's name or its own.
        exclude: patterns of weights to leave alone.
        generator: draws the frames.

    Returns:
        A line for every weight of two or more dimensions.

    Raises:
        ValueError: bounds out of order or infinite, a pattern that matches nothing, or a lazy module.

    >>> conv = nn.Conv2d(4, 8, 3, padding=1)
    >>> done = frame_init_(conv, 0.5, 2.0, generator=torch.Generator().manual_seed(0))[0]
    >>> done.kind, round(done.lower, 3), round(done.upper, 3)
    ('delta-tight frame', 1.0, 1.0)
    """
    if not 0 <= lower <= upper < math.inf or upper == 0:
        raise ValueError(
            f"the frame bounds must be finite and satisfy 0 <= A <= B and B > 0, got A={lower} and B={upper}"
        )
    bound = math.sqrt(lower * upper) if lower else upper / 2
    model = uncompiled(model)
    shapes = {} if sample is None else input_shapes(model, sample)
    included, excluded = shell_patterns(include), shell_patterns(exclude)

    def reason(layer: Layer, parts: Sequence[Tensor]) -> str:
        return (
            unsupported(layer.module)
            or layer.not_the_weight
            or not_by_name(layer, included, excluded)
            or unusable(layer, parts)
            or _computed(layer)
        )

    report = []
    with at_rest(model):
        entries = select(model, shapes, reason, once="initialized")
        check_matched({**included, **excluded}, (layer for layer, _ in entries), "frame_init_")
        for layer, why in entries:
            if layer.weight.ndim < 2:  # biases and normalization
                continue
            if why:
                name = layer.name if layer.tensor == "weight" else layer.path
                report.append(FrameInit(name, "not initialized", math.nan, math.nan, why))
            else:
                report.append(_init_layer(layer, bound, (lower, upper), generator))
    return report


def _computed(layer: Layer) -> str:
    """Why a weight cannot be written; "" if it can."""
    if parametrize.is_parametrized(layer.module, layer.tensor):
        return "its weight is parametrized: initialize the parametrization"
    if layer.tensor not in layer.module._parameters:
        return "its weight is pruned or computed by a hook: initialize it before"
    return ""


def _init_layer(
    layer: Layer, bound: float, target: tuple[float, float], generator: torch.Generator | None
) -> FrameInit:
    name, shape, options = layer.name, layer.input_shape, convolution_options(layer.module)
    weight = layer.module.get_parameter("weight")
    layer_map = LayerMap.of(weight, shape, boundary="interior" if shape is None else "exact", **options)
    groups, convolution = layer_map.groups, weight.ndim > 2
    kernel = torch.zeros_like(weight).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    axes = layer_map.axes
    if convolution and shape is None:  # a map as large as the kernel needs, with the module's padding
        size = [2 * a.stride * a.taps * a.dilation for a in axes]
        axes = axis_shapes([a.taps for a in axes], size, **{k: v for k, v in options.items() if k != "groups"})
    rows, channels = kernel.shape[1:3]
    inner = [_phase_taps(axis, whole=True) for axis in axes]
    enough = channels * math.prod(map(len, inner)) >= rows  # orthogonal rows without taps that the border cuts off
    chosen = inner if enough else [_phase_taps(axis, whole=False) for axis in axes]
    taps = [_flat_tap(place, axes) for place in itertools.product(*chosen)]
    columns = channels * len(taps)
    for block in kernel:
        M = tight_frame(rows, columns, bound=bound, generator=generator, dtype=weight.dtype, device=weight.device)
        block[:, :, taps] = M.reshape(rows, -1, len(taps))
    weight.copy_(kernel.reshape(weight.shape))
    choice = layer_map.gram_side("auto")
    kernel = grouped_kernel(weight, groups).double()
    S, v, _ = circles(taps_of_kernel(kernel, choice.gram), make_plan(layer_map.axes, choice.gram))
    low, high = float((2 * v - S).min()), float(S.max())
    kind = ("delta-" if convolution else "") + ("tight frame" if rows >= columns else "orthogonal rows")
    slack = 1e-3 * bound  # a weight in half precision
    inside = target[0] - slack <= low and high <= target[1] + slack
    note = choice.note
    if note and shape is None and convolution:  # its numbers would be those of no map
        row = "m < n: the input cannot be recovered; WWᵀ is bounded"
        note = row if choice.gram == "row" else "not every pixel is read; WᵀW is bounded on the others"
    if not inside:
        missed = (
            f"the spectrum is only known to lie in [{low:.3g}, {high:.3g}]: no better kernel of this geometry is known"
        )
        note = f"{note}; {missed}" if note else missed
    return FrameInit(name, kind, low, high, note)


def _flat_tap(place: Sequence[int], axes: Sequence[AxisShape]) -> int:
    """Index of a tap with the last axis fastest."""
    index = 0
    for t, axis in zip(place, axes, strict=True):
        index = index * axis.taps + t
    return index


def _phase_taps(axis: AxisShape, *, whole: bool) -> list[int]:
    """For every residue modulo the stride that taps reach: the tap that reads the map most often, or is most central.

    With ``whole``, only taps that no border cuts off.
    """
    best: dict[int, tuple[int, float, int]] = {}
    for t in range(axis.taps):
        reads = [axis.stride * u + axis.dilation * t - axis.padding for u in range(axis.outputs)]
        outside = 0 if axis.circular else sum(not 0 <= q < axis.size for q in reads)
        key = (outside, abs(t - (axis.taps - 1) / 2), t)
        residue = axis.dilation * t % axis.stride
        if not (whole and outside):
            best[residue] = min(best.get(residue, key), key)
    return sorted(t for _, _, t in best.values())
