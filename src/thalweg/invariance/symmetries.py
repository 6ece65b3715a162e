r"""Which tensors of a function scale together: the non-negative vectors of a null space.

Let sᵢ = <∇ᵢL, wᵢ>, the rate at which L changes when the tensor wᵢ grows. Then

    L(α^{c₁} w₁, …, α^{cₙ} wₙ) = L(w) for all α > 0, w    ⟺    Σᵢ cᵢ sᵢ = 0 for all w        (Euler)

so the exponents c of every *scaling symmetry* are the null space of S = [sᵢ] (one row for each batch and each draw of
the weights). Scale-invariant groups (seed 001, equation 1) are its non-negative vectors with equal entries. Symmetries
of mixed sign (one layer up, the next one down: positive homogeneity) lie in the same space and are not invariances.

A reduced basis of the space depends on the order of its columns; the sparsest non-negative vector through a tensor does
not. It is the solution of a linear program, min Σ xⱼ subject to S x = 0, x >= 0, xᵢ = 1, whose vertices are the extreme
rays of the cone {x >= 0, S x = 0}; the rays themselves may be exponentially many and are never listed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SymmetrySpace", "disjoint_groups", "ray_through", "symmetry_space"]

NOISE = 1e-12  # singular values below this are rounding: gaps among them mean nothing


@dataclass(frozen=True)
class SymmetrySpace:
    """The exponents of every scaling symmetry: {x : A x = 0}.

    Attributes:
        constraints: A: (n - d, n), with an identity matrix in the columns ``basic``.
        basic: those columns.
        gap: smallest singular value that is not zero (inf if all are) and largest that is (0 if none is).
        cost: (n,) close to 1; of equally sparse vectors the one that costs less is taken.
    """

    constraints: NDArray[np.float64]
    basic: tuple[int, ...]
    gap: tuple[float, float]
    cost: NDArray[np.float64]


def symmetry_space(S: Tensor, scale: Tensor, *, sizes: Sequence[int] = (), tolerance: float = 1e-6) -> SymmetrySpace:
    """Null space of S, cut where its singular values drop most.

    Args:
        S: (K, n) values of <∇ᵢL, wᵢ>, K >= n.
        scale: (n,) typical |∇ᵢL|·|wᵢ| > 0, which makes the columns of S comparable.
        sizes: (n,) numbers in each tensor: among equally sparse groups that of the larger tensors is taken, then the
            one of the later tensors.
        tolerance: singular values of S / (scale √K) at or above it are never taken for zero.

    >>> S = torch.tensor([[1.0, -1.0, 0.5], [2.0, -2.0, 1.0], [-1.0, 1.0, 3.0]], dtype=torch.float64)
    >>> symmetry_space(S, torch.ones(3)).constraints.astype(int).tolist()  # x₀ = x₁, x₂ = 0
    [[-1, 1, 0], [0, 0, 1]]
    """
    K, n = S.shape
    if not n:
        return SymmetrySpace(np.zeros((0, 0)), (), (float("inf"), 0.0), np.ones(0))
    _, values, Vh = torch.linalg.svd(S / scale / K**0.5, full_matrices=False)
    ladder = [1.0, *values.tolist()]  # what is there before the first value, so that all of them can be zero
    drops = [ladder[k] / max(ladder[k + 1], NOISE) if ladder[k + 1] < tolerance else 0.0 for k in range(n)]
    rank = int(np.argmax(drops)) if max(drops) else n
    gap = (ladder[rank] if rank else float("inf"), ladder[rank + 1] if rank < n else 0.0)
    order = np.argsort(list(sizes) or [1] * n, kind="stable")
    cost = np.ones(n)
    cost[order] -= 1e-3 * np.arange(n) / n
    basis, pivots = _reduced_basis((Vh[rank:] / scale).cpu().numpy())
    basic = tuple(j for j in range(n) if j not in pivots)
    A = np.eye(n)[list(basic)]
    A[:, pivots] = -basis[:, list(basic)].T
    return SymmetrySpace(A, basic, gap, cost)


def _reduced_basis(B: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """Gauss-Jordan form of B, by complete pivoting. Exponents are rational, so rounding errors can be taken off."""
    B, pivots = B.copy(), []
    for k in range(len(B)):
        row, column = divmod(int(np.argmax(np.abs(B[k:]))), B.shape[1])
        B[[k, k + row]] = B[[k + row, k]]
        B[k] /= B[k, column]
        for other in range(len(B)):
            if other != k:
                B[other] -= B[other, column] * B[k]
        pivots.append(column)
    rational = np.round(12 * B) / 12
    return np.where(np.abs(B - rational) < 1e-4, rational, B), pivots


def ray_through(
    space: SymmetrySpace, i: int, *, avoid: Collection[int] = (), signed: bool = False
) -> NDArray[np.float64] | None:
    """The x >= 0 of the space with xᵢ = 1 and the smallest sum (weighted by ``cost``), or None.

    Args:
        space: the symmetries.
        i: a tensor that must take part.
        avoid: tensors that must not.
        signed: allow negative entries, and minimize Σ|xⱼ|.

    >>> space = symmetry_space(torch.tensor([[1.0, -1.0], [2.0, -2.0]]).double(), torch.ones(2))
    >>> ray_through(space, 0)
    array([1., 1.])
    """
    n = space.constraints.shape[1]
    cost = space.cost.copy()
    cost[list(avoid)] = 100.0 * n
    A = space.constraints
    if signed:  # x = u - v with u, v >= 0
        A, cost = np.hstack([A, -A]), np.hstack([cost, cost])
        A[:, n + i] = 0.0  # v_i = 0: u_i = v_i = 1 would be a way to take part without doing so
    x = _cheapest(A, space.basic, cost, i)
    if signed:
        x = x[:n] - x[n:]
    return None if x[i] < 0.5 or any(abs(x[j]) > 1e-9 for j in avoid) else x


def _cheapest(A: NDArray[np.float64], basic: Collection[int], cost: NDArray[np.float64], i: int) -> NDArray[np.float64]:
    """Simplex method with Bland's rule, for min cost·x - M xᵢ, A x = 0, x >= 0, xᵢ <= 1, from the vertex x = 0."""
    r, n = A.shape
    basis = [*basic, n]  # column n is the slack of xᵢ <= 1, column n + 1 the right-hand side
    T = np.zeros((r + 1, n + 2))
    T[:r, :n], T[r, [i, n, n + 1]] = A, 1.0
    if i in basis:
        T[r] -= T[basis.index(i)]
    price = np.hstack([cost, 0.0, 0.0])
    price[i] -= 1e3 * cost.sum()
    z = price - price[basis] @ T
    while (z[:-1] < -1e-9).any():
        enters = int(np.argmax(z[:-1] < -1e-9))
        rows = np.flatnonzero(T[:, enters] > 1e-9)
        leaves = min(rows, key=lambda row: (round(T[row, -1] / T[row, enters], 9), basis[row]))
        T[leaves] /= T[leaves, enters]
        column = T[:, enters].copy()
        column[leaves] = 0.0
        T -= np.outer(column, T[leaves])
        z -= z[enters] * T[leaves]
        basis[leaves] = enters
    x = np.zeros(n + 1)
    x[basis] = T[:, -1]
    return x[:n]


def disjoint_groups(space: SymmetrySpace) -> list[tuple[int, ...]]:
    """Non-negative vectors with equal entries, sparsest first, none sharing a tensor with an earlier one.

    >>> S = torch.tensor([[1.0, -1.0, 0.0], [2.0, -2.0, 0.0], [-3.0, 3.0, 0.0]], dtype=torch.float64)
    >>> disjoint_groups(symmetry_space(S, torch.ones(3)))
    [(2,), (0, 1)]
    """
    taken: set[int] = set()
    rays = {i: ray_through(space, i) for i in range(space.constraints.shape[1])}
    groups: list[tuple[int, ...]] = []
    while True:
        supports = [tuple(map(int, np.flatnonzero(x > 1e-9))) for x in rays.values() if x is not None and is_equal(x)]
        if not supports:
            return groups
        group = min(supports, key=lambda support: (len(support), space.cost[list(support)].sum(), support))
        groups.append(group)
        taken.update(group)
        for i, x in list(rays.items()):
            if i in taken:
                del rays[i]
            elif x is not None and any(x[j] > 1e-9 for j in group):
                rays[i] = ray_through(space, i, avoid=taken)


def is_equal(x: NDArray[np.float64]) -> bool:
    """Whether every entry of x is 0 or 1, up to rounding."""
    return bool(np.all((np.abs(x) < 1e-6) | (np.abs(x - 1) < 1e-6)))
