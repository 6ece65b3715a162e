r"""Extreme singular values by products with W and Wᵀ alone: block Golub-Kahan-Lanczos bidiagonalization.

    W V = U B,    Wᵀ U = V Bᵀ + V₊ S                    Golub, Kahan 1965; in blocks Golub, Luk, Overton 1981

V and U hold orthonormal vectors, V₊ the next block. Up to rounding this is Lanczos on WᵀW (on WWᵀ where m < n), without
squaring: small singular values keep their digits. Each σ of B comes with an error bound, the length of Wᵀu - σv,
which is that of S on the last entries of B's left vector. Every new vector is orthogonalized against all earlier ones,
twice: with no ghosts, what is found is found once, and after min(m, n) vectors everything is exact.

Blocks as wide as the number of values wanted, since a single vector cannot see a repeated singular value twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from thalweg.operators.layer import LayerOperator

__all__ = ["Extremes", "extreme_singular_values"]

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Extremes:
    """Singular values from both ends.

    Attributes:
        largest: descending.
        smallest: descending, so that the last is the smallest of the min(m, n).
        residual: largest error bound |Wᵀu - σv| of them all.
        converged: whether it is within the tolerance. If not, the true largest are no smaller and the true smallest no
            larger than those given.
        vectors: how many vectors were spent on each side.
    """

    largest: Tensor
    smallest: Tensor
    residual: float
    converged: bool
    vectors: int


@torch.no_grad()
def extreme_singular_values(
    op: LayerOperator,
    *,
    largest: int = 1,
    smallest: int = 0,
    tolerance: float | None = None,
    max_vectors: int = 1024,
    generator: torch.Generator | None = None,
) -> Extremes:
    """The largest and smallest singular values of a layer, by convolutions and their transposes.

    Memory: (m + n)·vectors numbers; time: two products per vector and 8 (m + n)·vectors² operations. The largest take
    some tens of vectors. The smallest take many unless they stand apart: those of a square layer with random weights
    do not converge in fewer than about n.

    Args:
        op: the layer.
        largest: how many to find at the upper end.
        smallest: how many of the min(m, n) to find at the lower end.
        tolerance: of the error bound, relative to the largest; None is ε^(2/3): 4e-11 in float64, 2e-5 in float32.
        max_vectors: the most to keep on each side.
        generator: draws the first block; None is a generator of its own with seed 0.

    Raises:
        ValueError: no value is asked for, or the weight is not finite.

    >>> from thalweg.operators.layer import LayerOperator
    >>> found = extreme_singular_values(LayerOperator.of(torch.diag(torch.arange(1.0, 9.0))), smallest=1)
    >>> round(found.largest.item(), 4), round(found.smallest.item(), 4), found.converged
    (8.0, 1.0, True)
    """
    if min(largest, smallest) < 0 or largest + smallest < 1:
        raise ValueError(f"largest={largest} and smallest={smallest}: ask for at least one singular value")
    if not op.weight.isfinite().all():
        raise ValueError(f"the weight of {op} is not finite: it has no singular values")
    with torch.autocast(device_type=op.weight.device.type, enabled=False):
        return _bidiagonalize(op.widened(), largest, smallest, tolerance, max_vectors, generator)


def _bidiagonalize(
    op: LayerOperator,
    largest: int,
    smallest: int,
    tolerance: float | None,
    max_vectors: int,
    generator: torch.Generator | None,
) -> Extremes:
    m, n = op.shape
    forward, backward = _flat(op, transposed=m < n)
    m, n = max(m, n), min(m, n)
    dtype = op.weight.dtype
    eps = torch.finfo(dtype).eps
    tolerance = eps ** (2 / 3) if tolerance is None else tolerance
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    width = min(n, max(largest, smallest))
    start = torch.randn(width, n, generator=generator, dtype=dtype, device=generator.device).to(op.weight.device)
    V, U = start.new_empty(0, n), start.new_empty(0, m)  # vectors are rows
    B = start.new_empty(0, 0)
    fresh, scale, check_at = _orthonormal(start, V, 0.0), 0.0, 0
    while True:
        V = torch.cat([V, fresh])
        Y = forward(fresh)
        scale = max(scale, float(Y.norm(dim=1).max()))
        left = _orthonormal(Y, U, 100 * eps * scale)
        U = torch.cat([U, left])
        grown = B.new_zeros(len(U), len(V))
        grown[: B.shape[0], : B.shape[1]] = B
        grown[:, B.shape[1] :] = U @ Y.mT
        B = grown
        Z = backward(left)
        fresh = _orthonormal(Z, V, 100 * eps * scale)[: n - len(V)]
        last = not len(fresh) or len(V) + len(fresh) > max_vectors
        if last or len(V) >= check_at:
            check_at = int(1.2 * len(V))
            P, sigma, _ = torch.linalg.svd(B, full_matrices=False)
            bounds = torch.linalg.vector_norm((fresh @ Z.mT) @ P[len(U) - len(left) :], dim=0)
            missing = len(V) - len(sigma)  # directions that W maps to zero
            sigma, bounds = (torch.cat([x, x.new_zeros(missing)]) for x in (sigma, bounds))
            head, tail = slice(0, largest), slice(max(0, len(sigma) - smallest), len(sigma))
            residual = float(torch.cat([bounds[head], bounds[tail]]).max())
            # Without a fresh vector they span all that W can tell from a random block: every distinct value is there.
            enough = len(sigma) >= largest + smallest and residual <= tolerance * float(sigma[0])
            converged = enough or not len(fresh)
            if converged or last:
                return Extremes(sigma[head], sigma[tail], residual, converged, len(V))


def _flat(op: LayerOperator, *, transposed: bool) -> tuple[Product, Product]:
    """Products with W and Wᵀ, or with Wᵀ and W, on rows of flattened maps."""

    def forward(x: Tensor) -> Tensor:
        return op.matvec(x.view(-1, *op.input_shape)).flatten(1)

    def backward(y: Tensor) -> Tensor:
        return op.rmatvec(y.view(-1, *op.output_shape)).flatten(1)

    return (backward, forward) if transposed else (forward, backward)


def _orthonormal(X: Tensor, basis: Tensor, negligible: float) -> Tensor:
    """Orthonormal rows that span what the rows of X add to those of ``basis``; nothing for what is negligible."""
    X = X - (X @ basis.mT) @ basis
    _, length, rows = torch.linalg.svd(X, full_matrices=False)
    Q: Tensor = rows[length > negligible]
    if len(Q):
        Q = Q - (Q @ basis.mT) @ basis  # what was short before normalization is orthogonal only after
        Q = torch.linalg.qr(Q.mT).Q.mT
    return Q
