"""The axes of a convolution: how many outputs each has, and which inputs they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from thalweg.operators.convolution import per_axis

__all__ = ["AxisShape", "axis_shapes", "middle", "pixels_read", "shortened"]


class AxisShape(NamedTuple):
    """One axis of a convolution: output u reads input s·u + d·t - p at tap t, modulo the size if circular."""

    size: int
    taps: int
    stride: int
    padding: int
    dilation: int
    outputs: int
    circular: bool


def axis_shapes(
    kernel: Sequence[int],
    size: Sequence[int] | None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    circular: bool = False,
) -> tuple[AxisShape, ...]:
    """The axes of a convolution; without a map's size, those of a circle too long for a kernel to meet itself.

    Args:
        kernel: taps on each axis.
        size: input positions on each axis, or None for the interior of any map.
        stride: s, one number for all axes or one for each.
        padding: p likewise, or "same" or "valid" as in ``torch.nn.Conv2d``.
        dilation: d likewise.
        circular: the map wraps around instead of being padded with zeros.

    Raises:
        ValueError: a number out of range, not one for each axis, or a map without room for the kernel.

    >>> axis_shapes((3,), (8,), stride=2, padding=1)[0].outputs
    4
    """
    D = len(kernel)
    steps, gaps = per_axis(stride, D, "stride"), per_axis(dilation, D, "dilation")
    if size is None:
        turns = [2 * d * (k - 1) // s + 1 for k, s, d in zip(kernel, steps, gaps, strict=True)]
        return tuple(
            AxisShape(s * u, k, s, 0, d, u, True) for u, k, s, d in zip(turns, kernel, steps, gaps, strict=True)
        )
    if padding == "same":
        pads = [(d * (k - 1) // 2, d * (k - 1)) for k, d in zip(kernel, gaps, strict=True)]
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        pads = [(0, 0)] * D
    else:
        pads = [(p, 2 * p) for p in per_axis(padding, D, "padding")]
    axes = []
    for h, k, s, d, (left, both) in zip(size, kernel, steps, gaps, pads, strict=True):
        outputs = (h + both - d * (k - 1) - 1) // s + 1
        if outputs < 1:
            raise ValueError(
                f"a map of size {tuple(size)} padded by {padding} has no room for a kernel of size {tuple(kernel)} and "
                f"dilation {dilation}: give the size of the layer's input map"
            )
        axes.append(AxisShape(h, k, s, left, d, outputs, circular))
    return tuple(axes)


def shortened(axis: AxisShape) -> tuple[AxisShape, int]:
    """The same axis without most of its middle, and how many periods (one output, s inputs) were taken out.

    Far from both ends an axis repeats itself: what happens there is found once, however long a map or a signal is.

    >>> short, periods = shortened(AxisShape(16000, 80, 4, 0, 1, 3981, circular=False))
    >>> short.size, short.outputs, periods
    (244, 42, 3939)
    """
    ends = 2 * (axis.dilation * (axis.taps - 1) + axis.padding + axis.stride)
    periods = max(0, min((axis.size - ends) // axis.stride, axis.outputs - -(-ends // axis.stride)))
    return axis._replace(size=axis.size - periods * axis.stride, outputs=axis.outputs - periods), periods


def middle(axis: AxisShape, side: str) -> range:
    """Positions of one period that no end reaches, on an axis that `shortened` has shortened: outputs for "row"."""
    span = axis.dilation * (axis.taps - 1)
    if side == "row":
        output = max(-(-2 * axis.padding // axis.stride), span // axis.stride)
        return range(output, output + 1)
    return range(axis.padding + span, axis.padding + span + axis.stride)


def pixels_read(axis: AxisShape) -> int:
    """How many input positions some output reads.

    >>> pixels_read(AxisShape(8, 1, 2, 0, 1, 4, circular=False))
    4
    """
    axis, periods = shortened(axis)
    reads = {axis.stride * u + axis.dilation * t - axis.padding for u in range(axis.outputs) for t in range(axis.taps)}
    found = {q % axis.size for q in reads} if axis.circular else {q for q in reads if 0 <= q < axis.size}
    return len(found) + periods * len(found.intersection(middle(axis, "col")))
