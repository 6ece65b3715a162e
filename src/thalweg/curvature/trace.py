r"""The trace: exact where the network allows it, otherwise Hutch++ on a Krylov basis, with an error bar.

    tr H = tr QᵀHQ + tr (I - QQᵀ) H (I - QQᵀ)  ≈  tr T + (1/n) Σ_j g_jᵀ (I - QQᵀ) H (I - QQᵀ) g_j

Hutch++ (Meyer, Musco, Musco, Woodruff 2021) takes for Q an orthonormal basis of H times a random matrix. Deviation: Q
is that of a Lanczos run, which costs one product for each direction instead of two, holds the extreme eigenvectors
better and may have been paid for by `eigsh`. The second term is Hutchinson's estimator on what is left, with random
signs g: unbiased whatever Q is, and its error is measured on the n probes.

Exact: `exact_trace` for networks that are piecewise linear, `per_sample_ggn` for the Gauss-Newton matrix of any other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.curvature.exact_trace import exact_trace_obstacle
from thalweg.curvature.lanczos import Krylov, SymmetricOperator
from thalweg.curvature.operator import CurvatureOperator
from thalweg.curvature.per_sample import per_sample_ggn

__all__ = ["Estimate", "error_bar", "exact_trace_or_none", "trace"]

SHARE = 0.95


class Estimate(NamedTuple):
    """A value within ``error`` of the truth in at least 95% of all draws; ``exact`` up to rounding.

    Error bars are 99% intervals of Student's t: with few probes, and terms that are not normal, the nominal 95% would
    promise too much.

    >>> Estimate(value=10.0, error=0.5, exact=False).error
    0.5
    """

    value: float
    error: float
    exact: bool


def trace(
    op: SymmetricOperator | Krylov,
    *,
    products: int = 48,
    generator: torch.Generator | None = None,
    exact: bool = True,
) -> Estimate:
    """The trace of a symmetric operator.

    Args:
        op: an operator, or a `Krylov` run of it, whose basis then serves as Q.
        products: how many products to spend: half on Q, half on probes (all on probes for a run of that size).
        generator: draws the probes, and the start of Q; None is a generator of its own.
        exact: use the exact value where there is one: by samples, or by P products if P is no larger than ``products``.

    Returns:
        Value, error bar and whether it is exact.

    Raises:
        ValueError: fewer than 8 products, or a matrix that is not finite.

    >>> from torch import nn
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> trace(CurvatureOperator(nn.Linear(2, 1, bias=False), nn.functional.mse_loss, (x, y)))  # diag(1, 4)
    Estimate(value=5.0, error=0.0, exact=True)
    """
    if products < 8:
        raise ValueError(f"an error bar needs at least 8 products, got {products}")
    run = op if isinstance(op, Krylov) else None
    op = op.op if isinstance(op, Krylov) else op
    P = op.shape[0]
    if exact:
        known = _whole_basis(op) if products >= P else exact_trace_or_none(op, products)
        if known is not None:
            return Estimate(_finite(known), 0.0, True)
    # not the seed that a run draws its start from
    generator = torch.Generator(op.device).manual_seed(1) if generator is None else generator
    if run is None:
        run = Krylov(op, generator=generator)
    run.extend(max(0, products // 2 - run.size))
    if run.complete:
        return Estimate(run.trace(), 0.0, True)
    terms = []
    for _ in range(products - products // 2):
        signs = torch.randint(2, (P,), generator=generator, device=generator.device)
        g = run.project((2 * signs - 1).to(op.device, op.dtype))
        terms.append(float(torch.dot(g.double(), op.matvec(g).double())))
    mean, error = error_bar(torch.tensor(terms, dtype=torch.float64))
    return Estimate(run.trace() + _finite(mean), error, False)


def exact_trace_or_none(op: SymmetricOperator, budget: int) -> float | None:
    """The trace from single samples, where the network has one and it costs no more than ``budget`` products."""
    if not isinstance(op, CurvatureOperator) or op.outputs > 2 * budget:  # a backward pass per output, 2 per product
        return None
    if not all(isinstance(part, torch.Tensor) for batch in op.batches for part in batch):
        return None
    try:
        if op.kind != "ggn" and (why := exact_trace_obstacle(op.model, op.batches[0][0])) is not None:
            raise ValueError(why)
        if op.kind == "remainder":
            return 0.0
        ggn = per_sample_ggn(op.model, op.loss_fn, op.batches)
    except ValueError:
        return None
    # several batches whose losses are sums are averaged in op and added up there
    return ggn.trace if ggn.reduction == "mean" or len(op.batches) == 1 else None


def error_bar(terms: Tensor, *, fitted: int = 1) -> tuple[float, float]:
    """Mean of independent terms, and the half-width of its 99% interval; ``fitted`` numbers were taken from them.

    >>> mean, error = error_bar(torch.arange(7.0))
    >>> round(mean, 2), round(error, 2)  # t with 6 degrees of freedom: 3.707 · 2.160 / √7
    (3.0, 3.03)
    """
    n = len(terms)
    return float(terms.mean()), _t99(n - fitted) * float(terms.var(correction=fitted)) ** 0.5 / math.sqrt(n)


def _t99(nu: int) -> float:
    """0.995 quantile of Student's t (Abramowitz, Stegun 26.7.5), off by 4% at 2 degrees of freedom, 1% at 3."""
    z = 2.5758293
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / nu**k for k, term in enumerate(terms)))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a product with the operator is not finite: its matrix is not, at these weights and data")
    return value


def _whole_basis(op: SymmetricOperator) -> float:
    basis = torch.eye(op.shape[0], dtype=op.dtype, device=op.device)
    return sum(float(op.matvec(e)[i]) for i, e in enumerate(basis))
