"""Spectra of linear operators that are known by what they do to a vector, and of layers by the cheapest exact way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from thalweg.operators.bidiagonalization import extreme_singular_values

if TYPE_CHECKING:
    from thalweg.operators.layer import LayerOperator

__all__ = [
    "known_singular_values",
    "largest_singular_value",
    "negligible",
    "power_iteration",
    "singular_values",
    "spectral_norm",
]

FEW = 512  # min(m, n) up to which a dense SVD is as fast as the largest singular values by products
MANY = 4096  # min(m, n) up to which it is taken for the others: half a minute of one thread
NUMBERS = 2**25  # of the dense matrix


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


def spectral_norm(op: LayerOperator) -> float:
    """Largest singular value of a layer, borders included; NaN if its weight is not finite.

    >>> from thalweg.operators.layer import LayerOperator
    >>> LayerOperator.of(torch.diag(torch.tensor([3.0, 1.0]))).spectral_norm()
    3.0
    """
    return float(singular_values(op, 1)[0])


def singular_values(
    op: LayerOperator, k: int | None = None, *, which: Literal["largest", "smallest"] = "largest"
) -> Tensor:
    """Singular values of a layer, descending: all min(m, n), or the k largest or smallest of them.

    Exact and complete by the structure of the layer (`thalweg.operators.blocks`) or the dense matrix where that is
    affordable; otherwise the extremes by `thalweg.operators.bidiagonalization`, with a warning if they have not
    converged.

    Args:
        op: the layer.
        k: how many; None for all.
        which: from which end, if k is given.

    Returns:
        Values without gradient, at least in float32; NaN if the weight is not finite.

    Raises:
        ValueError: k out of range, an unknown end, or all values wanted of a layer too large for a dense SVD.

    >>> from thalweg.operators.layer import LayerOperator
    >>> LayerOperator.of(torch.diag(torch.tensor([3.0, 1.0, 2.0]))).singular_values(2, which="smallest")
    tensor([2., 1.])
    """
    count = min(op.shape)
    if which not in ("largest", "smallest"):
        raise ValueError(f"which must be 'largest' or 'smallest', got {which!r}")
    if k is not None and k not in range(1, count + 1):
        raise ValueError(f"{op} has {count} singular values: k must be from 1 to {count}, got {k}")
    if not op.weight.isfinite().all():
        dtype = torch.promote_types(op.weight.dtype, torch.float32)
        return torch.full((k or count,), torch.nan, dtype=dtype, device=op.weight.device)
    upper = k is not None and which == "largest"
    found = known_singular_values(op, limit=FEW if upper else MANY)
    if found is None and k is None:
        raise ValueError(
            f"{op} is too large for all of its {count} singular values: ask for the k largest or smallest, or take "
            "torch.linalg.svdvals(op.dense()) where there is time and memory"
        )
    if found is None and k is not None:
        extremes = extreme_singular_values(op, largest=k if upper else 0, smallest=0 if upper else k)
        if not extremes.converged:
            warnings.warn(
                f"the {which} singular values of {op} have not converged after {extremes.vectors} vectors: they are "
                f"{'at least' if upper else 'at most'} those returned, with error bound "
                f"{extremes.residual:.1e}",
                stacklevel=3,
            )
        return extremes.largest if upper else extremes.smallest
    assert found is not None
    if k is None:
        return found
    return found[:k] if upper else found[-k:]


@torch.no_grad()
def known_singular_values(op: LayerOperator, *, limit: int = MANY) -> Tensor | None:
    """All singular values, descending, by structure or, for min(m, n) <= limit, by a dense SVD; else None.

    Args:
        op: the layer, with a finite weight.
        limit: the largest min(m, n) for a dense SVD.

    >>> from thalweg.operators.layer import LayerOperator
    >>> known_singular_values(LayerOperator.of(torch.eye(3)), limit=2) is None
    True
    """
    exact = op.exact_singular_values()
    if exact is not None:
        return exact
    if min(op.shape) > limit or op.shape[0] * op.shape[1] > NUMBERS:
        return None
    values: Tensor = torch.linalg.svdvals(op.widened().dense())
    return values


def negligible(op: LayerOperator, *, by_products: bool = False) -> float:
    """Share of the largest singular value up to which one counts as zero: what rounding hides.

    ε times the longer side of the matrix that is decomposed, as `numpy.linalg.matrix_rank` has it: of W, or of its
    blocks. For values found by products it is their tolerance, ε^(2/3).

    Args:
        op: the layer.
        by_products: whether its values come from `extreme_singular_values`.

    >>> from thalweg.operators.layer import LayerOperator
    >>> negligible(LayerOperator.of(torch.ones(4, 8))) == 8 * torch.finfo(torch.float32).eps
    True
    """
    eps = torch.finfo(torch.promote_types(op.weight.dtype, torch.float32)).eps
    return eps ** (2 / 3) if by_products else max(op.block_shape()) * eps
