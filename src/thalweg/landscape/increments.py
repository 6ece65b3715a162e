r"""Loss increments |L_{k+1} - L_k|: how far one more sample moves the mean loss, measured over orders of the samples.

With per-sample losses l_i at fixed weights and L_k their mean over the first k samples (seed 003, section 2),

    L_{k+1} - L_k = (l_{k+1} - L_k) / (k + 1)                                           exact
    d_k = E |L_{k+1} - L_k|                over orders of the samples                   ``power=1``, the seed's figures
    Δ_k = E (L_{k+1} - L_k)²               over orders and over points θ ~ N(θ*, s² I)  ``power=2``, its successor's

so a curve costs one pass through the network and O(N) additions per order, whatever k is.

Deviations from the published code: it evaluates samples one by one, averages 100 orders (8 per cent of noise per point)
and smooths by an exponential average of 0.99 started at d_1, which multiplies d_50 by 26 and d_300 by 14. Nothing is
smoothed here: the band says how far orders differ, and `expected_increments` needs no orders at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["IncrementCurve", "Power", "loss_increments", "order_increments"]

Power = Literal[1, 2]
BLOCK = 2**22  # numbers handled at a time


@dataclass(frozen=True)
class IncrementCurve:
    """Increments by sample size, each tensor of shape (sizes,).

    Attributes:
        sizes: k, the sample sizes before the increment.
        mean: d_k, or Δ_k for ``power=2``.
        lower: quantile of the increment over orders at the lower level.
        upper: quantile at the upper level.
        error: standard error of ``mean``; 0 where it is no estimate.

    >>> one = torch.ones(1)
    >>> IncrementCurve(sizes=one, mean=0.5 * one, lower=0.1 * one, upper=0.9 * one, error=0.05 * one).mean
    tensor([0.5000])
    """

    sizes: Tensor
    mean: Tensor
    lower: Tensor
    upper: Tensor
    error: Tensor


def loss_increments(
    per_sample_losses: Tensor,
    *,
    permutations: int | None = None,
    power: Power = 1,
    levels: tuple[float, float] = (0.05, 0.95),
    generator: torch.Generator | None = None,
) -> IncrementCurve:
    """|L_{k+1} - L_k| for k = 1 … N - 1, in the given order or over random ones.

    Costs O(N) per order and point; memory is that of ``permutations`` x N numbers in double precision.

    Args:
        per_sample_losses: l: (N,), or (M, N) at M points of a neighbourhood, over which every increment is averaged.
        permutations: P random orders, the same for all points; None takes the one given.
        power: 1 for |L_{k+1} - L_k|, 2 for its square.
        levels: of the band over orders.
        generator: draws the orders, on the CPU; None is one of its own with seed 0.

    Returns:
        The curve, on the device of the losses and in their dtype; in float32 for half precision and whole numbers, as 0
        and 1 for a sample that is right or wrong. In the given order the band has no width.

    Raises:
        TypeError: losses that are no tensor.
        ValueError: fewer than two losses, losses that are not finite, no permutation, an unknown power or level.

    >>> loss_increments(torch.tensor([1.0, 3.0, 2.0, 6.0])).mean  # L = 1, 2, 2, 3
    tensor([1., 0., 1.])
    """
    losses = check_losses(per_sample_losses, power)
    if permutations is not None and permutations < 1:
        raise ValueError(f"permutations={permutations}: at least 1 expected, or None for the given order")
    if not 0 <= levels[0] <= levels[1] <= 1:
        raise ValueError(f"levels={levels}: two increasing shares between 0 and 1 expected")
    d = order_increments(losses, permutations=permutations, power=power, generator=generator)
    P = len(d)
    lower, upper = (torch.as_tensor(row, device=d.device) for row in _quantiles(d.cpu().numpy(), levels))
    error = d.std(dim=0) / P**0.5 if P > 1 else torch.zeros_like(lower)
    to = curve_dtype(per_sample_losses)
    sizes = torch.arange(1, losses.shape[1], device=losses.device)
    return IncrementCurve(sizes, d.mean(dim=0).to(to), lower.to(to), upper.to(to), error.to(to))


def order_increments(
    losses: Tensor, *, permutations: int | None, power: Power, generator: torch.Generator | None
) -> Tensor:
    """Increments (P, N - 1) of P orders of the losses (M, N), averaged over the M points.

    >>> order_increments(torch.tensor([[1.0, 3.0]]), permutations=2, power=2, generator=None)
    tensor([[1.],
            [1.]])
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    M, N = losses.shape
    k = torch.arange(1, N, device=losses.device, dtype=losses.dtype)
    rows = []
    for count in _blocks(permutations or 1, max(1, BLOCK // (M * N))):
        if permutations is None:
            ordered = losses.unsqueeze(0)
        else:
            order = torch.stack([torch.randperm(N, generator=generator) for _ in range(count)]).to(losses.device)
            ordered = losses[:, order].transpose(0, 1)  # (orders, M, N)
        d = ordered.cumsum(-1)[..., :-1].div_(k).sub_(ordered[..., 1:]).div_(k + 1)
        d = d.abs_() if power == 1 else d.square_()
        rows.append(d.mean(dim=1) if M > 1 else d.squeeze(1))
    return torch.cat(rows)


def _quantiles(d: np.ndarray[Any, Any], levels: tuple[float, float]) -> list[np.ndarray[Any, Any]]:
    """Quantiles of every column, interpolated linearly; NumPy sorts columns ten times as fast as torch."""
    ordered = np.sort(d, axis=0)
    found = []
    for level in levels:
        low, share = divmod(level * (len(d) - 1), 1)
        rows = ordered[int(low)], ordered[min(int(low) + 1, len(d) - 1)]
        found.append(rows[0] + share * (rows[1] - rows[0]))
    return found


def check_losses(per_sample_losses: Tensor, power: int) -> Tensor:
    """Losses as (M, N) in double precision.

    Raises:
        TypeError: they are no tensor.
        ValueError: what `loss_increments` says.
    """
    if not isinstance(per_sample_losses, Tensor):
        raise TypeError(f"per_sample_losses must be a tensor, got {type(per_sample_losses).__name__}: use torch.tensor")
    if per_sample_losses.ndim not in (1, 2) or per_sample_losses.shape[-1] < 2:
        raise ValueError(
            f"per_sample_losses of shape {tuple(per_sample_losses.shape)}: (N,) or (M, N) with N >= 2 samples expected"
        )
    if power not in (1, 2):
        raise ValueError(f"power={power}: 1 (absolute increment) or 2 (its square) expected")
    losses = per_sample_losses.detach().to(torch.float64)
    if not bool(torch.isfinite(losses).all()):
        wrong = int((~torch.isfinite(losses)).sum())
        raise ValueError(f"{wrong} of {losses.numel()} losses are not finite: leave those samples out or fix the model")
    return losses.reshape(-1, losses.shape[-1])


def curve_dtype(per_sample_losses: Tensor) -> torch.dtype:
    """Of a curve: increments are fractions where losses are whole numbers, and too small for half precision.

    >>> curve_dtype(torch.tensor([0, 1]))
    torch.float32
    """
    return torch.promote_types(per_sample_losses.dtype, torch.float32)


def _blocks(total: int, size: int) -> list[int]:
    """``total`` as a sum of blocks of ``size``, the last one smaller."""
    return [size] * (total // size) + ([total % size] if total % size else [])
