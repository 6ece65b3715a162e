r"""Sufficient sample size: from which k on one more sample no longer moves the loss by Δ.

    k* = inf{k : Δ_k' < Δ for all k' >= k}                 successor of seed 003; Δ_k is d_k for ``power=1``

of the expected curve; and for the orders themselves, each of which has a k* of its own, the k that is enough for a
share ``confidence`` of them. The second is larger: single increments scatter around their expectation.

For squared increments k* is known: Δ_k = S² / (k (k + 1)) exactly. Beyond the samples at hand the expected curve goes
on with the losses' variance (``power=2``) or mean absolute deviation (``power=1``) as they are, so k* may exceed N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg.landscape.expected import expected_increments
from thalweg.landscape.increments import Power, check_losses, order_increments

__all__ = ["SufficientSize", "sufficient_size"]


@dataclass(frozen=True)
class SufficientSize:
    """What `sufficient_size` found.

    Attributes:
        expected: k* of the expected curve; more than N - 1 means extrapolated.
        confident: k that is sufficient in a share ``confidence`` of all orders; None if N samples do not show one.
        interval: 95 per cent interval of ``confident`` for the finite number of orders; an end is None beyond N - 1.

    >>> SufficientSize(expected=50, confident=57, interval=(56, 58)).confident
    57
    """

    expected: int
    confident: int | None
    interval: tuple[int | None, int | None]


def sufficient_size(
    per_sample_losses: Tensor,
    threshold: float,
    *,
    confidence: float = 0.95,
    permutations: int = 1000,
    power: Power = 1,
    generator: torch.Generator | None = None,
) -> SufficientSize:
    """Smallest k from which on every increment stays below ``threshold``, in expectation and with confidence.

    Args:
        per_sample_losses: l: (N,), or (M, N) at M points of a neighbourhood.
        threshold: Δ > 0, in units of the loss (of its square for ``power=2``).
        confidence: share of orders that ``confident`` is to serve.
        permutations: random orders that it is estimated from.
        power: 1 for |L_{k+1} - L_k|, 2 for its square.
        generator: draws the orders, on the CPU; None is one of its own with seed 0.

    Raises:
        TypeError: losses that are no tensor.
        ValueError: a threshold that is not positive, a confidence outside (0, 1), no permutation, or losses that
            `loss_increments` refuses.

    >>> losses = torch.tensor([0.0, 1.0] * 50, dtype=torch.float64)
    >>> found = sufficient_size(losses, 0.01, generator=torch.Generator().manual_seed(0))
    >>> found.expected, found.confident  # |l - mean| is about 1/2, hence 1/2 / (k + 1) < 0.01
    (50, 57)
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: a positive increment expected")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: a share between 0 and 1 expected")
    if permutations < 1:
        raise ValueError(f"permutations={permutations}: at least 1 expected")
    losses = check_losses(per_sample_losses, power)
    d = order_increments(losses, permutations=permutations, power=power, generator=generator)
    sizes = torch.arange(1, losses.shape[1], device=d.device)
    # k* of an order follows its last increment that is too large
    found = (torch.where(d >= threshold, sizes, 0).amax(dim=1) + 1).sort().values.tolist()
    spread = 1.96 * math.sqrt(permutations * confidence * (1 - confidence))
    ranks = [math.ceil(permutations * confidence + shift) for shift in (0.0, -spread, spread)]
    middle, low, high = (
        found[max(rank, 1) - 1] if rank <= permutations and found[max(rank, 1) - 1] <= len(sizes) else None
        for rank in ranks
    )
    return SufficientSize(_expected_size(losses, threshold, power), middle, (low, high))


def _expected_size(losses: Tensor, threshold: float, power: Power) -> int:
    N = losses.shape[1]
    if power == 2:
        ratio = float(losses.var(dim=1).mean()) / threshold
        k = max(1, math.floor(math.sqrt(ratio + 0.25) - 0.5))  # k (k + 1) = ratio
        return k if ratio < k * (k + 1) else k + 1
    curve = expected_increments(losses)
    sizes, too_large = curve.sizes.cpu().numpy(), curve.mean.cpu().numpy() >= threshold
    if not too_large.any():
        return 1
    last = int(np.flatnonzero(too_large)[-1])
    if last == len(sizes) - 1:  # beyond the data d_k = MAD / (k + 1)
        deviation = float(curve.mean[-1]) * N
        return math.floor(deviation / threshold - 1) + 1
    between = expected_increments(losses, sizes=range(int(sizes[last]), int(sizes[last + 1]) + 1))
    return int(between.sizes[between.mean >= threshold].max()) + 1
