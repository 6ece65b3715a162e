r"""Convolutions that fall apart into small blocks, and the exact spectra that follow.

* On the torus (circular padding, outputs = map / s): the Fourier transform splits W into one block for each frequency j
  of the output, which meets its s^D aliases in the input (Sedghi, Gupta, Long 2019, theorem 6, for s = 1):

      B(j) = s^{-D/2} [K̂(j + l·h/s)]_l,   K̂(ω) = Σ_t K[:, :, t] e^{-2πi d ω·t / h},   l ∈ {0 … s-1}^D

  Frequencies j and -j have conjugate blocks, so half of them are computed. Padding shifts the map and changes a phase.
* Windows that do not overlap (s > d(k - 1): patch embeddings, 1 x 1 kernels of any stride): the rows of different
  outputs have no pixel in common, so W is one block K for each output, with the taps missing that fall outside the map.

Both hold for each group of channels by itself.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from thalweg.operators.convolution import ConvolutionOperator

__all__ = ["block_shape", "fourier_singular_values", "patch_singular_values"]

CHUNK = 2**22  # complex numbers in the blocks that are held at a time


def block_shape(op: ConvolutionOperator) -> tuple[int, int] | None:
    """Shape of the blocks that a convolution falls apart into; None if it does not.

    >>> from thalweg.operators.convolution import ConvolutionOperator
    >>> block_shape(ConvolutionOperator(torch.ones(6, 3, 3), (3, 8), stride=2, padding=1, padding_mode="circular"))
    (6, 6)
    """
    rows, columns = op.weight.shape[0] // op.groups, op.weight.shape[1]
    if _apart(op):
        return rows, columns * prod(op.taps)
    return (rows, columns * prod(op.stride)) if _on_torus(op) else None


def _on_torus(op: ConvolutionOperator) -> bool:
    sides = zip(op.size, op.stride, op.output_shape[1:], strict=True)
    return op.circular and all(h == s * u for h, s, u in sides)


def _apart(op: ConvolutionOperator) -> bool:
    """Whether no two windows overlap."""
    wraps = op.circular and any(margin for pair in op.padding for margin in pair)
    return not wraps and all(s > d * (k - 1) for s, d, k in zip(op.stride, op.dilation, op.taps, strict=True))


@torch.no_grad()
def fourier_singular_values(op: ConvolutionOperator) -> Tensor | None:
    """All min(m, n) singular values of a convolution on the torus, descending; None for any other.

    >>> from thalweg.operators.convolution import ConvolutionOperator
    >>> difference = torch.tensor([[[-1.0, 1.0]]])  # x[q+1] - x[q]: |e^{iω} - 1| for ω = 0, π/2, π, 3π/2
    >>> op = ConvolutionOperator(difference, (1, 4), padding="same", padding_mode="circular")
    >>> [round(s, 3) for s in fourier_singular_values(op).tolist()]
    [2.0, 1.414, 1.414, 0.0]
    """
    if not _on_torus(op):
        return None
    outputs, axes = op.output_shape[1:], len(op.size)
    K = _kernel(op).flatten(3).permute(3, 0, 1, 2)  # (taps, groups, out, in)
    aliases = prod(op.stride)
    half = [*outputs[:-1], outputs[-1] // 2 + 1]
    frequencies = torch.cartesian_prod(*[torch.arange(u) for u in half]).reshape(-1, axes)
    values = []
    for part in torch.split(frequencies, max(1, CHUNK // (K[0].numel() * aliases))):
        phase = torch.zeros(len(part), 1, 1, dtype=torch.float64)  # (frequencies, aliases, taps), in turns
        for axis, (h, s, d, k) in enumerate(zip(op.size, op.stride, op.dilation, op.taps, strict=True)):
            omega = part[:, axis, None, None] + torch.arange(s)[:, None] * (h // s)
            turns = (omega * d * torch.arange(k) % h).double() / h  # exact integers before the division
            phase = (phase[:, :, None, :, None] + turns[:, None, :, None, :]).flatten(3).flatten(1, 2)
        E = torch.polar(torch.ones_like(phase), -2 * torch.pi * phase).to(K.device, K.dtype.to_complex())
        B = torch.einsum("flt,tgoi->fgoli", E, K.to(E.dtype)).flatten(3)
        values.append(torch.linalg.svdvals(B) / aliases**0.5)
    found = torch.cat(values).reshape(-1, half[-1], values[0].shape[-2] * values[0].shape[-1])
    mirrored = found[:, 1 : (outputs[-1] + 1) // 2]
    return torch.cat([found.flatten(), mirrored.flatten()]).sort(descending=True).values


@torch.no_grad()
def patch_singular_values(op: ConvolutionOperator) -> Tensor | None:
    """All min(m, n) singular values of a convolution whose windows do not overlap, descending; None for any other.

    >>> from thalweg.operators.convolution import ConvolutionOperator
    >>> ConvolutionOperator(torch.tensor([[[3.0, 4.0]]]), (1, 5), stride=2).exact_singular_values()
    tensor([5., 5.])
    """
    if not _apart(op):
        return None
    K = _kernel(op)  # (groups, out, in, taps…)
    kinds = [torch.unique(op.reads(axis) >= 0, dim=0, return_counts=True) for axis in range(len(op.size))]
    values = []
    for choice in product(*[zip(taps, counts.tolist(), strict=True) for taps, counts in kinds]):
        masked = K
        for axis, (taps, _) in enumerate(choice):
            masked = masked * taps.to(K).view(-1, *[1] * (len(choice) - 1 - axis))
        values.append(torch.linalg.svdvals(masked.flatten(2)).flatten().repeat(prod(count for _, count in choice)))
    found = torch.cat(values).sort(descending=True).values
    spectrum = found.new_zeros(min(op.shape))  # what is beyond the blocks is zero
    kept = min(len(found), len(spectrum))
    spectrum[:kept] = found[:kept]
    return spectrum


def _kernel(op: ConvolutionOperator) -> Tensor:
    """K: (groups, out / groups, in / groups, taps…), at least in float32: there is no SVD in half precision."""
    K = op.weight.detach()
    K = K.to(torch.promote_types(K.dtype, torch.float32))
    return K.reshape(op.groups, -1, *K.shape[1:])
