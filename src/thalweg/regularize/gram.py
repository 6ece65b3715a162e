"""Which Gram matrix of a layer can be bounded on both sides, and on which map: the edge where options are checked.

A frame of n-dimensional vectors needs m >= n of them, so A <= λ(WᵀW) with A > 0 is possible for m >= n only; for m < n
the same bounds can hold for WWᵀ (the rows are a Riesz sequence: no direction of the output collapses). Seed 002 assumes
m >= n throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import Tensor, nn

from thalweg.regularize.axes import AxisShape, axis_shapes, pixels_read

__all__ = ["Boundary", "GramSide", "LayerMap", "Side", "gram_side"]

Side = Literal["auto", "col", "row", "upper", "skip"]
Boundary = Literal["exact", "interior"]
SIDES, BOUNDARIES = ("auto", "col", "row", "upper", "skip"), ("exact", "interior")


@dataclass(frozen=True)
class GramSide:
    """Which Gram matrix of an (m, n) layer is bounded.

    Attributes:
        gram: "col" for WᵀW, "read" for its rows that are not zero whatever the weight, "row" for WWᵀ, "" if the layer
            is left out.
        bounded_below: whether the lower bound A applies.
        note: what cannot hold for this layer, in words; "" for m >= n.
    """

    gram: Literal["col", "read", "row", ""]
    bounded_below: bool
    note: str = ""


def gram_side(m: int, n: int, side: Side = "auto", *, read: int | None = None) -> GramSide:
    """The Gram matrix that ``side`` means for a layer with m outputs and n inputs.

    Args:
        m: outputs.
        n: inputs.
        side: "auto": WᵀW if m >= n, WWᵀ if m < n; "upper": for m < n only B is required; "skip": such layers are left
            out; "col" or "row": that one, possible or not.
        read: how many inputs some output reads; None is all. ("auto" for a 1 x 1 kernel with stride 2, where neither
            Gram matrix can have full rank, is WᵀW on the quarter of the pixels that are read.)

    Raises:
        ValueError: another side.

    >>> print(gram_side(2, 3).note)
    rank <= m = 2 < n = 3: the input cannot be recovered, at least 1 of its dimensions is lost; WWᵀ is bounded
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(map(repr, SIDES))}, got {side!r}")
    if side in ("col", "row"):
        impossible = m < n if side == "col" else m > n
        return GramSide(side, True, f"no A > 0 exists on this side: rank <= {min(m, n)}" if impossible else "")
    if read == 0:
        return GramSide("", False, "no output reads any input: the operator is zero whatever the weight")
    if read is not None and read < n and m >= read:
        return GramSide("read", True, f"{n - read} of n = {n} inputs are never read; WᵀW is bounded on the others")
    if m >= n:
        return GramSide("col", True)
    lost = f"at least {n - m} of its dimensions {'is' if n - m == 1 else 'are'} lost"
    rank = f"rank <= m = {m} < n = {n}: the input cannot be recovered, {lost}"
    if side == "skip":
        return GramSide("", False, f"{rank}; left out by side='skip'")
    if side == "upper":
        return GramSide("row", False, f"{rank}; only B is required")
    return GramSide("row", True, f"{rank}; WWᵀ is bounded")


def check_bounds(lower: float, upper: float) -> None:
    """Refuse frame bounds that no matrix has."""
    if not 0 <= lower <= upper:
        raise ValueError(f"the frame bounds must satisfy 0 <= A <= B, got A={lower} and B={upper}")


@dataclass(frozen=True)
class LayerMap:
    """What a weight's geometry says about its operator.

    Attributes:
        shape: (m, n); for a map of unknown size, up to a common factor.
        channels: (out, in) of one group.
        axes: the axes that the Gram matrix is summed on: none of their borders if ``boundary="interior"``.
        groups: of the convolution.
        read: how many of the n inputs some output reads.
    """

    shape: tuple[int, int]
    channels: tuple[int, int]
    axes: tuple[AxisShape, ...]
    groups: int
    read: int

    def gram_side(self, side: Side) -> GramSide:
        """`gram_side` of this operator."""
        return gram_side(*self.shape, side, read=self.read)

    @classmethod
    def of(
        cls,
        weight: Tensor,
        input_shape: Sequence[int] | None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        circular: bool = False,
        boundary: Boundary = "exact",
    ) -> LayerMap:
        """Check shapes and options, and resolve them; arguments as for `frame_penalty`."""
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be 'exact' or 'interior', got {boundary!r}")
        if weight.ndim < 2 or weight.is_complex() or groups < 1 or weight.shape[0] % groups:
            raise ValueError(
                f"a real weight (out, in / groups, taps…) with out a multiple of groups={groups} is needed, got "
                f"{weight.dtype} of shape {tuple(weight.shape)}"
            )
        out, channels, kernel = weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:])
        if not kernel:  # a dense layer is a convolution of a map of one pixel, whatever it is applied along
            return cls((out, channels), (out, channels), axis_shapes((1,), (1,)), 1, channels)
        if input_shape is None and boundary == "exact":
            raise ValueError(
                "the borders of a convolution need the size of its input map: give input_shape=(in, map…), or call "
                "prepare(model, sample) first, or choose boundary='interior'"
            )
        interior = axes = axis_shapes(kernel, None, stride=stride, dilation=dilation)
        if input_shape is not None:
            if len(input_shape) != len(kernel) + 1 or input_shape[0] != channels:
                raise ValueError(
                    f"a weight of shape {tuple(weight.shape)} with groups={groups} takes an input_shape of "
                    f"({channels}, {', '.join('h' * len(kernel))}), got {tuple(input_shape)}"
                )
            axes = axis_shapes(
                kernel, input_shape[1:], stride=stride, padding=padding, dilation=dilation, circular=circular
            )
        shape = out * prod([axis.outputs for axis in axes]), channels * prod([axis.size for axis in axes])
        read = channels * prod([pixels_read(axis) for axis in axes])
        per_group = out // groups, weight.shape[1]
        return cls(shape, per_group, interior if boundary == "interior" else axes, groups, read)

    @classmethod
    def of_module(
        cls, module: nn.Module, weight: Tensor, input_shape: Sequence[int] | None, boundary: Boundary = "exact"
    ) -> LayerMap:
        """The same from a module's own attributes."""
        return cls.of(weight, input_shape, boundary=boundary, **convolution_options(module))


def grouped_kernel(weight: Tensor, groups: int) -> Tensor:
    """(groups, out, in, taps…) from a weight (groups · out, in, taps…)."""
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def convolution_options(module: nn.Module) -> dict[str, Any]:
    """Stride, padding, dilation, groups and wrapping of a convolution as keywords; none for a dense layer."""
    if isinstance(module, nn.Linear):
        return {}
    names = ("stride", "padding", "dilation", "groups")
    return {name: getattr(module, name) for name in names} | {"circular": module.padding_mode == "circular"}


def unsupported(module: nn.Module) -> str:
    """Why the operator of a module has no Gram matrix here; "" if it has one."""
    if isinstance(module, nn.Linear):
        return ""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return f"{type(module).__name__} is neither a dense layer nor a convolution"
    if module.padding_mode not in ("zeros", "circular"):
        return f"padding_mode={module.padding_mode!r} is not supported: use 'zeros' or 'circular'"
    return ""
