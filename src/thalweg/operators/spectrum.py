"""Spectra of linear operators that are known by what they do to a vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["largest_singular_value", "power_iteration"]


def power_iteration(matvec: Callable[[Tensor], Tensor], start: Tensor, *, steps: int) -> tuple[float, Tensor]:
    """Eigenvalue of largest modulus by v ← M v / |M v|, and the vector reached.

    Args:
        matvec: v -> M v for vectors of the shape of ``start``; M needs real eigenvalues, not symmetry.
        start: any non-zero tensor; the vector of an earlier call warm-starts the next.
        steps: products M v to spend, at least 1.

    Returns:
        The Rayleigh quotient of the last product, which for symmetric M never exceeds the true value, and v: unit norm.

    >>> value, _ = power_iteration(torch.tensor([[2.0, 0.0], [0.0, -1.0]]).mv, torch.ones(2), steps=30)
    >>> round(value, 4)
    2.0
    """
    v = start / start.norm()
    value = 0.0
    for _ in range(steps):
        product = matvec(v)
        value = float(torch.sum(v * product))
        norm = product.norm()
        if norm == 0 or not torch.isfinite(norm):
            return value, v
        v = product / norm
    return value, v


def largest_singular_value(weight: Tensor) -> float:
    """Spectral norm of a weight (out, …) seen as the matrix (out, everything else); NaN unless all of it is finite.

    >>> largest_singular_value(torch.diag(torch.tensor([3.0, 1.0])))
    3.0
    """
    matrix = weight.detach().flatten(1)
    if not torch.isfinite(matrix).all():
        return float("nan")
    return float(torch.linalg.matrix_norm(matrix, 2))
