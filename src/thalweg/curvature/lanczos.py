r"""Lanczos with full reorthogonalization: extreme eigenvalues with certificates, from a run that others may share.

    H Q = Q T + β q eᵀ,    T = Qᵀ H Q = S diag(θ) Sᵀ,    ||H Q s_i - θ_i Q s_i|| = β |s_mi|

Q: (P, m) is an orthonormal basis of the Krylov space of a start vector; the last equation gives the residual of every
Ritz pair for nothing, and by Weyl an eigenvalue lies within it of θ_i. Iteration stops on residuals, never on the
difference of estimates. T is kept in full, all coefficients of the orthogonalization, so that a thick restart (Wu,
Simon 2000) is no more than a change of basis. One run serves `eigsh`, `trace` and `spectral_density`.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Eigenpairs", "Krylov", "SymmetricOperator", "Which", "eigsh"]

Which = Literal["LA", "SA", "BE"]
BASIS = 2 * 2**30  # bytes of Lanczos vectors


class SymmetricOperator(Protocol):
    """What these algorithms ask of a matrix."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def matvec(self, v: Tensor, /) -> Tensor: ...


class Eigenpairs(NamedTuple):
    """Eigenvalues: (k,), eigenvectors: (P, k) and ||H v - λ v||: (k,), the most extreme first.

    >>> values, vectors, residuals = Eigenpairs(torch.tensor([3.0]), torch.tensor([[0.0], [1.0]]), torch.tensor([1e-6]))
    >>> vectors.shape
    torch.Size([2, 1])
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class Krylov:
    """A Lanczos run, to be continued by whoever needs more of it.

    Args:
        op: symmetric.
        start: (P,), or (P, j) for the sum of j directions, such as eigenvectors of a matrix nearby; None draws one.
        generator: draws the start, and a new direction where the space is exhausted; None is one of its own, seed 0.
        basis: vectors to keep before a restart; None is what fits in 2 GiB, at least 40.
        against: orthonormal columns (P, j); the run stays orthogonal to them.

    Attributes:
        size: m.
        dimensions: how many vectors the basis may have in all, P less the columns of ``against``.
        whole: nothing was restarted and the start was random, so that the first row of S is a random probe's.

    >>> class Diagonal:
    ...     shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")
    ...     def matvec(self, v):
    ...         return v * torch.tensor([1.0, 2.0, 4.0], dtype=v.dtype)
    >>> run = Krylov(Diagonal())
    >>> run.extend(3)
    >>> run.ritz()[0]
    tensor([1.0000, 2.0000, 4.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        op: SymmetricOperator,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
        basis: int | None = None,
        against: Tensor | None = None,
    ) -> None:
        P = op.shape[0]
        itemsize = torch.finfo(op.dtype).bits // 8
        self.op, self._against = op, against
        self._generator = torch.Generator(op.device).manual_seed(0) if generator is None else generator
        self.dimensions = P - (0 if against is None else against.shape[1])
        self._limit = min(self.dimensions, max(40, BASIS // (P * itemsize)) if basis is None else basis)
        self._Q = torch.empty(0, P, dtype=op.dtype, device=op.device)  # rows: m basis vectors, then q
        self._T = torch.zeros(0, 0, dtype=torch.float64)
        self.size, self._beta, self.whole = 0, 0.0, start is None
        first = self._draw() if start is None else start.to(op.device, op.dtype)
        if first.shape[0] != P or first.ndim > 2:
            raise ValueError(f"start must have shape ({P},) or ({P}, j), got {tuple(first.shape)}")
        first = self._projected(first if first.ndim == 1 else torch.nn.functional.normalize(first, dim=0).sum(1))
        length = _length(first)
        if not 0 < length < math.inf:
            raise ValueError(f"the start vector has the norm {length}: give one with finite entries that is not zero")
        self._reserve(1)
        self._Q[0] = first / length

    def extend(self, steps: int) -> None:
        """Take so many products, or as many as there are dimensions left."""
        for _ in range(steps):
            if self.complete:
                return
            self._step()

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """θ: (m,) ascending, S: (m, m) and the residuals (m,), in float64 on the CPU."""
        theta, S = torch.linalg.eigh(self._T[: self.size, : self.size])
        return theta, S, self._beta * S[-1].abs()

    def vectors(self, S: Tensor) -> Tensor:
        """Q S: (P, j) for coefficients S: (m, j)."""
        return self._Q[: self.size].mT @ S.to(self._Q.device, self._Q.dtype)

    def project(self, v: Tensor) -> Tensor:
        """The part of v: (P,) that is orthogonal to the basis."""
        Q = self._Q[: self.size]
        for _ in range(2):
            v = v - Q.mT @ (Q @ v)
        return v

    def trace(self) -> float:
        """The trace of T = Qᵀ H Q."""
        return float(self._T[: self.size, : self.size].trace())

    def restart(self, keep: Tensor) -> None:
        """Go on from the Ritz vectors with these indices and the residual vector q alone."""
        theta, S, _ = self.ritz()
        q, count = self._Q[self.size].clone(), len(keep)
        self._Q[:count] = self.vectors(S[:, keep]).mT
        self._Q[count] = q
        self._T.zero_()
        self._T[:count, :count] = torch.diag(theta[keep])
        self.size, self.whole = count, False

    def full(self, k: int) -> bool:
        """Whether a search for k pairs has to restart before the next product."""
        return self.dimensions > self.size >= max(self._limit, 2 * k + 20)

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space, so that every Ritz pair is exact."""
        return self.size == self.dimensions

    def _step(self) -> None:
        m = self.size
        self._reserve(m + 2)
        w = self._projected(self.op.matvec(self._Q[m]))
        if not bool(torch.isfinite(w).all()):
            raise ValueError("a product with the operator is not finite: its matrix is not, at these weights and data")
        Q = self._Q[: m + 1]
        h = torch.zeros(m + 1, dtype=self._Q.dtype, device=self._Q.device)
        for _ in range(2):  # twice is enough (Kahan)
            part = Q @ w
            w = w - Q.mT @ part
            h += part
        self._T[: m + 1, m] = self._T[m, : m + 1] = h.double().cpu()
        self.size, self._beta = m + 1, _length(w)
        if self._beta <= 10 * torch.finfo(w.dtype).eps * float(self._T[: m + 1, : m + 1].abs().max()):
            self._beta = 0.0  # an invariant subspace: all its residuals are zero; go on in another one
            if self.size < self.dimensions:
                fresh = self.project(self._projected(self._draw()))
                self._Q[m + 1] = fresh / _length(fresh)
        else:
            self._Q[m + 1] = w / self._beta

    def _reserve(self, rows: int) -> None:
        if rows > len(self._Q):
            more = min(max(rows, 2 * len(self._Q), 16), max(rows, self._limit + 1)) - len(self._Q)
            self._Q = torch.cat([self._Q, self._Q.new_empty(more, self._Q.shape[1])])
            self._T = torch.nn.functional.pad(self._T, (0, more, 0, more))

    def _projected(self, v: Tensor) -> Tensor:
        return v if self._against is None else v - self._against @ (self._against.mT @ v)

    def _draw(self) -> Tensor:
        op, g = self.op, self._generator
        return torch.randn(op.shape[0], generator=g, dtype=op.dtype, device=g.device).to(op.device)


def _length(v: Tensor) -> float:
    """|v|, also where the squares of its entries are beyond the range of numbers."""
    length, numbers = float(torch.linalg.vector_norm(v)), torch.finfo(v.dtype)
    if math.sqrt(numbers.tiny / numbers.eps) < length < math.inf:
        return length
    largest = float(v.abs().max())
    return largest * float(torch.linalg.vector_norm(v / largest)) if 0 < largest < math.inf else largest


def eigsh(
    op: SymmetricOperator | Krylov,
    k: int = 1,
    which: Which = "LA",
    tol: float = 1e-4,
    *,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    max_products: int = 1000,
) -> Eigenpairs:
    """The k largest (LA) or smallest (SA) eigenvalues, or half of them from each end (BE; the larger half on top).

    Args:
        op: a symmetric operator, or a `Krylov` run of it, which is continued.
        k: how many.
        which: "LA", "SA" or "BE".
        tol: largest residual ||H v - λ v|| as a multiple of the largest |λ|.
        start: where to start, such as the eigenvectors of a moment ago: (P,) or (P, j); None is random. No residual
            shows an eigenvalue whose vector is orthogonal to the start and all its images: where one may have come up,
            as with new data, append a random column.
        generator: draws the start; None is a generator of its own, so that equal calls have equal results.
        max_products: when to give up and warn.

    Returns:
        Values from the most extreme inwards (BE: descending), vectors and residuals. A single start vector sees one
        vector of each eigenspace: multiple eigenvalues may appear once.

    Raises:
        ValueError: k, which or tol out of range, a start that is zero or of another size or beside a run, a matrix that
            is not finite.

    >>> H = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> class Matrix:
    ...     shape, dtype, device, matvec = H.shape, H.dtype, H.device, H.__matmul__
    >>> eigsh(Matrix(), 2, "BE").values
    tensor([3., 1.], dtype=torch.float64)
    """
    if isinstance(op, Krylov) and start is not None:
        raise ValueError("a Krylov run has its start already: give start to Krylov(op, start=…)")
    run = op if isinstance(op, Krylov) else Krylov(op, start=start, generator=generator)
    eps = torch.finfo(run.op.dtype).eps
    if not 1 <= k <= run.dimensions:
        raise ValueError(f"k must lie between 1 and the {run.dimensions} rows of the operator, got {k}")
    if which not in ("LA", "SA", "BE"):
        raise ValueError(f'which must be "LA", "SA" or "BE", got {which!r}')
    if not tol >= 10 * eps:
        raise ValueError(f"tol must be at least {10 * eps:.0e}, ten times the precision of {run.op.dtype}, got {tol}")
    top = {"LA": k, "SA": 0, "BE": -(-k // 2)}[which]
    products, check = 0, 0
    while True:
        if run.size >= max(k, check):
            theta, S, residuals = run.ritz()
            wanted = torch.cat([torch.arange(run.size - top, run.size).flip(0), torch.arange(k - top).flip(0)])
            scale = float(theta.abs().max())
            if bool((residuals[wanted] <= tol * scale).all()) or run.complete:
                break
            if products >= max_products:
                worst = float(residuals[wanted].max()) / (scale or 1.0)
                warnings.warn(
                    f"after {products} products the residual is {worst:.1e}, not {tol:.1e}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
            # the small eigenproblem must stay cheap beside a product; the last check is of the whole space
            check = min(run.size + 1 + run.size // 16, run.dimensions)
            if run.full(k):
                spare = min((run.size - k) // 2, k + 10)
                order = torch.argsort(residuals)
                near = order[~torch.isin(order, wanted)][:spare]
                run.restart(torch.cat([wanted, near]).sort().values)
                check = 0
        run.extend(1)
        products += 1
    wanted = wanted.flip(0) if which == "SA" else wanted
    residuals = residuals.to(run.op.dtype).to(run.op.device)
    values = theta.to(run.op.dtype).to(run.op.device)
    return Eigenpairs(values[wanted], run.vectors(S[:, wanted]), residuals[wanted])
