r"""A convolution as a linear operator on maps, borders and all: the block-Toeplitz matrix of seed 002, by its products.

    (W x)[o, u] = Σ_c Σ_t K[o, c, t] x[c, s u + d t - p]          zero outside the map, or taken modulo its size
    (Wᵀ y)[c, q] = Σ_o Σ_t K[o, c, t] y[o, u],  s u + d t - p = q   ``conv_transpose`` of the same kernel

K: (out, in / groups, taps…), stride s, dilation d, padding p per axis. Zero padding equal on both sides goes into the
convolution itself. "same" padding of an even span and circular padding do not: there the map is padded first, and the
transpose cuts the margin off, or adds it to the opposite end.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, pad

from thalweg.operators.blocks import block_shape, fourier_singular_values, patch_singular_values
from thalweg.operators.layer import LayerOperator

__all__ = ["ConvolutionOperator", "per_axis"]

CONV = {1: conv1d, 2: conv2d, 3: conv3d}
TRANSPOSE = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}


class ConvolutionOperator(LayerOperator):
    """A convolution over maps of one size.

    Args:
        weight: K: (out, in / groups, *taps) with one, two or three axes of taps.
        input_shape: (in, *map).
        stride: s, for all axes or one each; so are the next two.
        padding: p, or "same" or "valid".
        dilation: d.
        groups: number of groups of channels.
        padding_mode: "zeros" or "circular".

    Raises:
        ValueError: a shape that does not fit the kernel, no output left, or another padding mode.

    >>> op = ConvolutionOperator(torch.tensor([[[1.0, 2.0, 3.0]]]), (1, 4), padding=1)
    >>> op.dense()
    tensor([[2., 3., 0., 0.],
            [1., 2., 3., 0.],
            [0., 1., 2., 3.],
            [0., 0., 1., 2.]])
    >>> op.matvec(torch.ones(1, 4)), op.rmatvec(torch.ones(1, 4))
    (tensor([[5., 6., 6., 3.]]), tensor([[3., 6., 6., 5.]]))
    """

    def __init__(
        self,
        weight: Tensor,
        input_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        axes = weight.ndim - 2
        if axes not in CONV or weight.is_complex() or not weight.numel():
            raise ValueError(
                "a kernel is real, (out, in / groups, taps) with elements and 1 to 3 axes of taps, got "
                f"{weight.dtype} of shape {tuple(weight.shape)}"
            )
        if padding_mode not in ("zeros", "circular"):
            raise ValueError(
                f"padding_mode={padding_mode!r} is not supported: expected 'zeros' or 'circular'; other borders repeat "
                "pixels, and no penalty or spectrum here is defined for them"
            )
        self.weight = weight
        self.input_shape = tuple(map(index, input_shape))
        channels = weight.shape[1] * groups
        if len(self.input_shape) != axes + 1 or self.input_shape[0] != channels or weight.shape[0] % groups:
            raise ValueError(
                f"a kernel {tuple(weight.shape)} in {groups} group(s) takes input_shape=({channels}, {axes} map "
                f"size(s)), without batch axes, got {self.input_shape}"
            )
        self.groups = groups
        self.size, self.taps = self.input_shape[1:], tuple(weight.shape[2:])
        self.stride, self.dilation = per_axis(stride, axes, "stride"), per_axis(dilation, axes, "dilation")
        self.circular = padding_mode == "circular"
        self.padding = self._margins(padding)
        spans = [d * (k - 1) + 1 for k, d in zip(self.taps, self.dilation, strict=True)]
        room = [h + a + b - span for h, (a, b), span in zip(self.size, self.padding, spans, strict=True)]
        if min(room) < 0:
            raise ValueError(f"a map of size {self.size} is smaller than the kernel, which spans {tuple(spans)}")
        if self.circular and any(max(p) > h for p, h in zip(self.padding, self.size, strict=True)):
            raise ValueError(f"circular padding {self.padding} wraps around a map of size {self.size} more than once")
        self.output_shape = (weight.shape[0], *(r // s + 1 for r, s in zip(room, self.stride, strict=True)))
        self._unread = tuple(r % s for r, s in zip(room, self.stride, strict=True))  # pixels after the last window
        self._native = not self.circular and all(a == b for a, b in self.padding)
        self._zeros = tuple(a for a, _ in self.padding) if self._native else (0,) * axes
        self._conv, self._transpose = CONV[axes], TRANSPOSE[axes]

    def _times(self, x: Tensor) -> Tensor:
        if not self._native:
            x = self._pad(x)
        return self._conv(x, self.weight, None, self.stride, self._zeros, self.dilation, self.groups)

    def _transpose_times(self, y: Tensor) -> Tensor:
        x = self._transpose(y, self.weight, None, self.stride, self._zeros, self._unread, self.groups, self.dilation)
        return x if self._native else self._unpad(x)

    def dense(self) -> Tensor:
        """W: (m, n), assembled from the taps: m·n·taps operations instead of n convolutions."""
        with torch.autocast(device_type=self.weight.device.type, enabled=False):
            return self._assembled()

    def _assembled(self) -> Tensor:
        axes = len(self.taps)
        order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))  # out, rows…, in, columns…
        blocks = []
        for W in self.weight.chunk(self.groups):  # (out, in, taps…) -> (out, in, other taps…, (rows, columns) of axes)
            for axis in range(axes):
                W = torch.tensordot(W, self._selection(axis), dims=([2], [0]))
            blocks.append(W.permute(order).flatten(axes + 1).flatten(0, axes))
        dense: Tensor = torch.block_diag(*blocks) if len(blocks) > 1 else blocks[0]  # type: ignore[no-untyped-call]
        return dense

    def exact_singular_values(self) -> Tensor | None:
        """Of a convolution on the torus, or of windows that do not overlap: see `thalweg.operators.blocks`."""
        values = patch_singular_values(self)
        return fourier_singular_values(self) if values is None else values

    def block_shape(self) -> tuple[int, int]:
        return block_shape(self) or self.shape

    def reads(self, axis: int) -> Tensor:
        """Pixel that output u reads at tap t along an axis: (outputs, taps); -1 outside the map."""
        h, s, d, (before, _) = self.size[axis], self.stride[axis], self.dilation[axis], self.padding[axis]
        outputs, taps = torch.arange(self.output_shape[1 + axis]), torch.arange(self.taps[axis])
        pixel = s * outputs[:, None] + d * taps - before
        if self.circular:
            return pixel % h
        return torch.where((pixel >= 0) & (pixel < h), pixel, -1)

    def inputs_read(self) -> Tensor:
        read = super().inputs_read()
        for axis, size in enumerate(self.size):
            found = torch.zeros(size + 1, dtype=torch.bool)  # the last is -1, outside the map
            found[self.reads(axis)] = True
            read &= found[:-1].to(read.device).view(-1, *[1] * (len(self.size) - 1 - axis))
        return read

    def _selection(self, axis: int) -> Tensor:
        """Which output reads which pixel at which tap: (taps, outputs, pixels) of zeros and ones."""
        pixels = torch.arange(self.size[axis])
        return (self.reads(axis).T[..., None] == pixels).to(self.weight)

    def _margins(self, padding: int | Sequence[int] | str) -> tuple[tuple[int, int], ...]:
        """(before, after) on each axis."""
        if padding == "same":
            if any(s != 1 for s in self.stride):
                raise ValueError(f"padding='same' has no meaning with stride {self.stride}: give numbers")
            spare = [d * (k - 1) for k, d in zip(self.taps, self.dilation, strict=True)]
            return tuple((total // 2, total - total // 2) for total in spare)
        if isinstance(padding, str) and padding != "valid":
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        return tuple((p, p) for p in per_axis(0 if isinstance(padding, str) else padding, len(self.taps), "padding"))

    def _pad(self, x: Tensor) -> Tensor:
        margins = [p for pair in reversed(self.padding) for p in pair]  # the last axis first
        return pad(x, margins, mode="circular" if self.circular else "constant")

    def _unpad(self, x: Tensor) -> Tensor:
        """Transpose of `_pad`."""
        for axis, (h, (before, after)) in enumerate(zip(self.size, self.padding, strict=True), -len(self.size)):
            inner = x.narrow(axis, before, h)
            if self.circular and before:
                margin = x.narrow(axis, 0, before)
                inner = inner + pad(margin, _at(axis, h - before, 0))
            if self.circular and after:
                margin = x.narrow(axis, before + h, after)
                inner = inner + pad(margin, _at(axis, 0, h - after))
            x = inner
        return x


def _at(axis: int, before: int, after: int) -> list[int]:
    """Argument of ``pad`` for one axis, counted from the end (negative)."""
    return [0, 0] * (-axis - 1) + [before, after]


def per_axis(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    """A stride, dilation or padding for each axis.

    Raises:
        ValueError: a number out of range, or not one for each axis.

    >>> per_axis(2, 3, "stride")
    (2, 2, 2)
    """
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    lowest = 0 if name == "padding" else 1
    if len(values) != axes or min(values) < lowest:
        raise ValueError(f"{name} must be an integer >= {lowest}, or one for each of {axes} axes, got {value!r}")
    return values
