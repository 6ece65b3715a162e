r"""A layer as the linear operator W: Rⁿ -> Rᵐ of seed 002: F(z) = W z.

    W = weight                                  torch.nn.Linear
    W = block-Toeplitz matrix of the kernel     convolutions; never formed unless asked for (`dense`)

The rows w₁ … wₘ of W are the system of vectors on which the input is projected, V = WᵀW is its frame operator.

One convention for vectors: they keep the shape of the layer's maps. ``matvec`` takes ``(*batch, *input_shape)`` and
returns ``(*batch, *output_shape)``, with any number of batch axes; rows and columns of matrices are these maps,
flattened. Both products are one call of torch each, differentiable in the vector and in the weight.

A bias is left out: it shifts the output and changes neither W nor what can be recovered from W z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from thalweg.operators.frame import FrameBounds, dual_frame, frame_bounds, reconstruct
from thalweg.operators.spectrum import singular_values, spectral_norm
from thalweg.operators.weights import applied_weight, at_rest

__all__ = ["DenseOperator", "LayerOperator"]


class LayerOperator(ABC):
    """What every linear layer is: products with W and Wᵀ, and what follows from them.

    Attributes:
        weight: the weight, as the layer applies it.
        input_shape: of one input, without batch axes; n is the product.
        output_shape: of one output; m is the product.
    """

    weight: Tensor
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @staticmethod
    def of(
        module: nn.Module | Tensor, input_shape: Sequence[int] | None = None, *, weight: Tensor | None = None
    ) -> LayerOperator:
        """The operator of a module with its present weight.

        The weight is read once, so that parametrized and pruned weights work and gradients reach their originals. A
        plain parameter is seen as it changes; after a step on a parametrized one make a new operator. Parametrizations
        are read in evaluation mode: making an operator changes no buffer.

        Args:
            module: Linear, Conv1d, Conv2d or Conv3d (padding_mode zeros or circular), or a matrix (m, n).
            input_shape: ``(channels, *map)`` of a convolution; for the others (n,), which need not be given.
            weight: used in place of the module's own.

        Raises:
            TypeError: no linear layer, or one of another kind.
            ValueError: a shape that does not fit, a padding mode that is not supported, or a lazy module.

        >>> op = LayerOperator.of(nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 32, 32))
        >>> op.shape, op.output_shape
        ((2048, 3072), (8, 16, 16))
        """
        from thalweg.operators.convolution import ConvolutionOperator

        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Tensor)):
            raise TypeError(
                f"{type(module).__name__} is not supported: expected Linear, Conv1d, Conv2d, Conv3d or a matrix"
            )
        if isinstance(input_shape, int):
            raise TypeError(f"input_shape is a sequence, (channels, *map) or (n,), got {input_shape}")
        if isinstance(module, Tensor):
            weight = module if weight is None else weight
        elif weight is None:
            with at_rest(module):
                weight = applied_weight(module)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            if input_shape is None:
                raise ValueError(
                    "a convolution is an operator on maps of a given size: give input_shape=(channels, ...)"
                )
            return ConvolutionOperator(
                weight,
                input_shape,
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                groups=module.groups,
                padding_mode=module.padding_mode,
            )
        operator = DenseOperator(weight)
        if input_shape is not None and tuple(input_shape) != operator.input_shape:
            raise ValueError(
                f"a dense layer of shape {operator.shape} acts on the last axis: expected input_shape "
                f"{operator.input_shape}, got {tuple(input_shape)}"
            )
        return operator

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return prod(self.output_shape), prod(self.input_shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, {self.input_shape} -> {self.output_shape})"

    def matvec(self, x: Tensor) -> Tensor:
        """W x: ``(*batch, *input_shape) -> (*batch, *output_shape)``."""
        return _on_batch("matvec", self._times, x, self.input_shape)

    def rmatvec(self, y: Tensor) -> Tensor:
        """Wᵀ y: ``(*batch, *output_shape) -> (*batch, *input_shape)``."""
        return _on_batch("rmatvec", self._transpose_times, y, self.output_shape)

    @abstractmethod
    def _times(self, x: Tensor) -> Tensor:
        """W x with one batch axis."""

    @abstractmethod
    def _transpose_times(self, y: Tensor) -> Tensor:
        """Wᵀ y with one batch axis."""

    @abstractmethod
    def dense(self) -> Tensor:
        """W: (m, n), differentiable in the weight."""

    def gram(self, side: Literal["col", "row"] = "col") -> Tensor:
        """V = WᵀW: (n, n) for "col" (the frame operator of the rows), W Wᵀ: (m, m) for "row"; differentiable.

        >>> mercedes = torch.tensor([[0.0, 1.0], [-(3**0.5) / 2, -0.5], [3**0.5 / 2, -0.5]])
        >>> LayerOperator.of(mercedes).gram()
        tensor([[1.5000, 0.0000],
                [0.0000, 1.5000]])
        """
        if side not in ("col", "row"):
            raise ValueError(f"side must be 'col' (WᵀW) or 'row' (WWᵀ), got {side!r}")
        W = self.dense()
        return W.mT @ W if side == "col" else W @ W.mT

    def inputs_read(self) -> Tensor:
        """Which inputs some output reads, whatever the weight: booleans of `input_shape`.

        >>> LayerOperator.of(nn.Conv1d(1, 1, 1, stride=2), (1, 5)).inputs_read()
        tensor([[ True, False,  True, False,  True]])
        """
        return torch.ones(self.input_shape, dtype=torch.bool, device=self.weight.device)

    def widened(self, dtype: torch.dtype = torch.float32) -> LayerOperator:
        """The same operator with its weight in ``dtype`` or wider: half precision has too few digits for a spectrum.

        >>> LayerOperator.of(torch.eye(2, dtype=torch.bfloat16)).widened().weight.dtype
        torch.float32
        """
        wide = copy(self)
        wide.weight = self.weight.to(torch.promote_types(self.weight.dtype, dtype))
        return wide

    def block_shape(self) -> tuple[int, int]:
        """Shape of the matrices whose singular values are those of W: its own, or that of its independent blocks."""
        return self.shape

    def exact_singular_values(self) -> Tensor | None:
        """All min(m, n) singular values, where the structure of the layer makes them cheap; None elsewhere."""
        return None

    def spectral_norm(self) -> float:
        """Largest singular value of W: `thalweg.operators.spectrum.spectral_norm`."""
        return spectral_norm(self)

    def singular_values(self, k: int | None = None, *, which: Literal["largest", "smallest"] = "largest") -> Tensor:
        """All singular values or the k extreme ones, descending: `thalweg.operators.spectrum.singular_values`."""
        return singular_values(self, k, which=which)

    def frame_bounds(self) -> FrameBounds:
        """A, B of A|z|² <= |W z|² <= B|z|² on inputs: `thalweg.operators.frame.frame_bounds`."""
        return frame_bounds(self)

    def dual_frame(self) -> Tensor:
        """Rows V⁻¹wᵢ: (m, n): `thalweg.operators.frame.dual_frame`."""
        return dual_frame(self)

    def reconstruct(self, y: Tensor) -> Tensor:
        """The input z of y = W z: `thalweg.operators.frame.reconstruct`."""
        return reconstruct(self, y)


class DenseOperator(LayerOperator):
    """W itself: (m, n).

    >>> op = DenseOperator(torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> op.matvec(torch.tensor([1.0, 1.0])), op.rmatvec(torch.tensor([1.0, 1.0, 1.0]))
    (tensor([3., 1., 1.]), tensor([2., 3.]))
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 2 or weight.is_complex() or not weight.numel():
            raise ValueError(
                f"a dense layer has a real weight (m, n) with elements, got {weight.dtype} of shape "
                f"{tuple(weight.shape)}; a kernel needs its convolution: give the module"
            )
        self.weight = weight
        self.output_shape, self.input_shape = (weight.shape[0],), (weight.shape[1],)

    def _times(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)

    def _transpose_times(self, y: Tensor) -> Tensor:
        return y @ self.weight

    def dense(self) -> Tensor:
        return self.weight


def _on_batch(name: str, product: Callable[[Tensor], Tensor], x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A product on vectors of ``shape`` with any number of batch axes, by one with exactly one."""
    split = x.ndim - len(shape)
    if split < 0 or x.shape[split:] != shape:
        raise ValueError(f"{name} takes (*batch, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
    if split == 1:
        return product(x)
    y = product(x.reshape(x.shape[:split].numel(), *shape))
    return y.reshape(*x.shape[:split], *y.shape[1:])
