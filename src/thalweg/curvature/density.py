r"""The spectral density φ(t) = (1/P) Σ_i δ(t - λ_i) by stochastic Lanczos quadrature, exact where it matters most.

    φ ≈ (1/P) Σ_{i<=k} δ(t - θ_i)  +  ((P - k)/P) (1/V) Σ_v Σ_j τ_vj δ(t - θ_vj),      τ_vj = (e₁ᵀ s_vj)²

The k converged Ritz pairs of a first run are taken out and stand for themselves. What is left is measured by the
Gauss quadratures of V random vectors orthogonal to them (Golub, Welsch; Lin, Saad, Yang 2016): the first run is one of
them, each other costs ``steps`` products. Where the trace is known exactly, the quadratures together are given the
right mean μ by the smallest change of their weights in the sense of Kullback and Leibler, τ -> V τ e^{bθ} / Σ τ e^{bθ}.
An expectation then errs by what θ does not explain of f (calibration, Deville and Särndal 1992); its error bar is of

    ε_v = Σ_j τ_vj (f(θ_vj) - E f - β (θ_vj - μ)),      β = Σ τ (θ - μ) f / Σ τ (θ - μ)²

A single vector without deflation can be 45% off in the mean alone: an outlier's weight is a squared normal over P.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.curvature.lanczos import Krylov, SymmetricOperator, eigsh
from thalweg.curvature.trace import Estimate, error_bar, exact_trace_or_none

__all__ = ["SpectralDensity", "spectral_density"]


@dataclass(frozen=True)
class SpectralDensity:
    """Point masses: each outlier 1/P, the rest of the mass shared by the V quadratures.

    Attributes:
        size: P.
        outliers: the k eigenvalues that were taken out, ascending.
        nodes: θ: (V, m).
        weights: τ: (V, m), each row sums to 1; all rows together to V if ``normalized``.
        normalized: whether the trace is exact.

    >>> one = torch.ones(4, 1, dtype=torch.float64)  # 4 vectors that saw 1 everywhere, and an outlier of 5 out of 10
    >>> density = SpectralDensity(10, 5 * one[0], one, one, normalized=False)
    >>> density.expect(torch.square)
    Estimate(value=3.4, error=0.0, exact=False)
    >>> density(one[0], width=0.1)  # 9/10 of the peak of a Gaussian
    tensor([3.5905], dtype=torch.float64)
    """

    size: int
    outliers: Tensor
    nodes: Tensor
    weights: Tensor
    normalized: bool

    def expect(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """(1/P) Σ_i f(λ_i), with the error bar of the V vectors.

        The quadrature itself is exact for polynomials of degree 2m - 1 and converges quickly for smooth f; for a jump
        (counting eigenvalues) it has an error of its own, the mass of one node.
        """
        share, values = (self.size - len(self.outliers)) / self.size, f(self.nodes)
        mean, unexplained = self._mean(values), values - self._mean(values)
        if self.normalized:
            moved = self.nodes - self._mean(self.nodes)
            moved = torch.where(moved.abs() > 1e-12 * self.nodes.abs().max(), moved, 0.0)  # equal nodes, rounded
            spread = self._mean(moved.square())
            unexplained = unexplained - (self._mean(moved * values) / spread if spread else 0.0) * moved
        _, error = error_bar((self.weights * unexplained).sum(1), fitted=2 if self.normalized else 1)  # E f, and β
        return Estimate(float(f(self.outliers).sum()) / self.size + share * mean, share * error, not share)

    def _mean(self, values: Tensor) -> float:
        return float((self.weights * values).sum()) / max(1, len(self.nodes))

    def __call__(self, t: Tensor, width: float) -> Tensor:
        """φ at the points t, each mass smeared to a Gaussian of standard deviation ``width``.

        Raises:
            ValueError: a width that is not positive.
        """
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        share = (self.size - len(self.outliers)) / self.size / max(1, len(self.nodes))
        points = torch.cat([self.outliers, self.nodes.flatten()])
        mass = torch.cat([torch.full_like(self.outliers, 1 / self.size), share * self.weights.flatten()])
        scaled = (t.double().unsqueeze(-1) - points) / width
        density: Tensor = (torch.exp(-0.5 * scaled.square()) * mass).sum(-1) / (width * (2 * torch.pi) ** 0.5)
        return density


def spectral_density(
    op: SymmetricOperator | Krylov,
    *,
    deflate: int = 10,
    vectors: int = 8,
    steps: int = 40,
    trace: float | None = None,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """The density of all P eigenvalues.

    Args:
        op: an operator, or a `Krylov` run of it, which counts as the first vector if it started at random.
        deflate: how many of the largest eigenvalues to take out; all others that have converged by then go with them.
        vectors: V, at least 4 for the error bars.
        steps: m, products for each vector.
        trace: tr H if known; None asks `trace`'s exact method.
        generator: draws the vectors; None is a generator of its own.

    Raises:
        ValueError: fewer than 4 vectors or no steps, a trace or a matrix that is not finite.

    >>> from torch import nn
    >>> from thalweg.curvature.operator import CurvatureOperator
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> H = CurvatureOperator(nn.Linear(2, 1, bias=False), nn.functional.mse_loss, (x, y))  # diag(1, 4)
    >>> spectral_density(H).outliers
    tensor([1.0000, 4.0000], dtype=torch.float64)
    """
    if vectors < 4 or steps < 1 or deflate < 0:
        raise ValueError(
            f"at least 4 vectors, 1 step and 0 to deflate are needed, got {vectors}, {steps} and {deflate}"
        )
    if trace is not None and not math.isfinite(trace):
        raise ValueError(f"the trace must be finite, got {trace}: give None to have it computed")
    run, known = op if isinstance(op, Krylov) else None, trace
    op = op.op if isinstance(op, Krylov) else op
    P = op.shape[0]
    if known is None:
        known = exact_trace_or_none(op, vectors * steps)
    # not the seed of the run: its start would come back as a second vector
    generator = torch.Generator(op.device).manual_seed(1) if generator is None else generator
    run = Krylov(op, generator=generator) if run is None else run
    if deflate:
        eigsh(run, min(deflate, P))
    run.extend(steps - run.size)
    theta, S, residuals = run.ritz()
    out = residuals <= 1e-4 * theta.abs().max() if deflate else torch.zeros(run.size, dtype=torch.bool)
    V = run.vectors(S[:, out])
    measures = []
    if run.whole and not bool(out.all()):
        mass = S[0].square() * ~out
        measures.append((theta, mass / mass.sum()))
    while len(measures) < vectors and V.shape[1] < P:
        probe = Krylov(op, generator=generator, against=V)
        probe.extend(steps)
        nodes, s, _ = probe.ritz()
        measures.append((nodes, s[0].square()))
    longest = max((len(nodes) for nodes, _ in measures), default=1)
    padded = [torch.nn.functional.pad(part, (0, longest - len(part))) for pair in measures for part in pair]
    nodes, weights = (
        torch.stack(padded[k::2]) if padded else torch.zeros(vectors, 1, dtype=torch.float64) for k in (0, 1)
    )
    outliers = theta[out]
    if known is not None and measures:
        weights = _tilted(nodes, weights, (known - float(outliers.sum())) / (P - len(outliers)))
    return SpectralDensity(P, outliers, nodes, weights, known is not None)


def _tilted(nodes: Tensor, weights: Tensor, mean: float) -> Tensor:
    """Weights ∝ τ e^{bθ} with Σ τ θ = V·mean, where the nodes reach that far; b by bisection."""
    scale = nodes.abs().max().clamp_min(torch.finfo(nodes.dtype).tiny)
    low, high = -1e3, 1e3
    for _ in range(80):
        b = (low + high) / 2
        tilted = len(nodes) * torch.softmax((weights.log() + b * nodes / scale).flatten(), 0).view_as(nodes)
        low, high = (low, b) if float((tilted * nodes).sum()) > mean * len(nodes) else (b, high)
    return tilted
