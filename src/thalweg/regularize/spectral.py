r"""The frame regularizer on the eigenvalues themselves: no gap of Gershgorin's, and no collapse (beyond seed 002).

    R_s(W) = (1/n) Σ_i f(λ_i(V)) = (1/n) tr f(V),   f(λ) = min(λ - A, 0)² + max(λ - B, 0)²,   V = WᵀW or WWᵀ

R_s = 0 if and only if A <= λ_i <= B: the frame inequality itself, whereas diagonal dominance is only sufficient for it.
Along the gradient flow every singular value follows ds/dt ∝ s (A - s²) below √A, so that W = 0 is an unstable point.

Matrix-free, for z a random vector of signs and p, F Chebyshev approximations of f' and f on [0, 1.1 λ_max]:

    R_s ≈ (1/n) E zᵀ F(V) z           ∇R_s ≈ (1/n) E ∇<W u, W z>  with u = p(V) z held constant

Both expectations are exact, tr(Pᵀ dV) = E (P z)ᵀ dV z; only the polynomials approximate. Degree 3 is enough for the
gradient: p need not be small inside [A, B], it must have the right sign outside. Cost per probe: about 2·degree + 4
convolutions of one image, against three times the batch for the layer's own step.

One probe is a batch of one image, and its noise grows with channels/positions: on a 64-channel 4 x 4 map a step that is
harmless on 8 x 8 with 16 channels blows the weights up. Stable steps are about positions·probes / (4·channels) of the
noiseless one, and `step_factor` is that number: with it 0.1 to 0.2 is a good decoupled step for every layer. By pure
minimization from He's initialization (A = .5, B = 2, 300 steps of 0.1 or 0.2, degree 4): .97 of the spectrum inside for
12 channels on 16 x 16, .98 for 48 on 4 x 4 (8 probes), .99 for 24 on 8 x 8, λ_max <= 1.9 in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from thalweg.operators import LayerOperator

__all__ = ["chebyshev", "largest_eigenvalue", "probe_penalty", "spectral_penalty", "step_factor"]

HEADROOM = 1.1  # of the interval of approximation over the λ_max found


def spectral_penalty(operator: LayerOperator, *, lower: float, upper: float, gram: str = "col") -> Tensor:
    """R_s from all singular values of the dense operator, differentiable: for tests and small layers.

    Args:
        operator: the layer, (m, n).
        lower: A; -inf for none.
        upper: B.
        gram: "col" for the n eigenvalues of WᵀW, "row" for the m of WWᵀ.

    >>> W = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    >>> spectral_penalty(LayerOperator.of(W), lower=1.0, upper=2.0)  # λ = 4 and 1/4: (2² + (3/4)²) / 2
    tensor(2.2812)
    """
    m, n = operator.shape
    eigenvalues = torch.linalg.svdvals(operator.dense()).square()
    size = m if gram == "row" else n  # pixels that no output reads count, as eigenvalues of zero
    total = _hinge(eigenvalues, lower, upper).sum()
    if size > len(eigenvalues) and lower > 0:  # V has a null space
        total = total + (size - len(eigenvalues)) * lower**2
    return total / size


def probe_penalty(
    operator: LayerOperator,
    *,
    lower: float,
    upper: float,
    top: float,
    gram: str = "col",
    degree: int = 3,
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An estimate of R_s whose gradient is an unbiased estimate of ∇R_s, but for the Chebyshev approximation.

    Args:
        operator: the layer.
        lower: A; -inf for none.
        upper: B.
        top: an upper bound of λ_max(V), 1.1 times an estimate of it, say.
        gram: "col" or "row".
        degree: of the polynomials, at least 1.
        probes: random vectors of signs.
        generator: draws them.

    Returns:
        A scalar.

    >>> op = LayerOperator.of(torch.diag(torch.tensor([2.0, 0.5])))  # diagonal V: one probe is exact
    >>> round(float(probe_penalty(op, lower=1.0, upper=2.0, top=4.4, degree=64)), 3)
    2.281
    """
    products: list[Callable[[Tensor], Tensor]] = [operator.matvec, operator.rmatvec]
    forward, transpose = reversed(products) if gram == "row" else products
    shape = operator.output_shape if gram == "row" else operator.input_shape
    weight = operator.weight
    device = weight.device if generator is None else generator.device
    signs = torch.randint(0, 2, (probes, *shape), generator=generator, device=device)
    z = (2 * signs - 1).to(weight)
    values, slopes = chebyshev(lower, upper, top, degree)
    with torch.no_grad():
        before, now = z, _shifted(forward, transpose, z, top)
        u = slopes[0] * z + slopes[1] * now
        value = values[0] * z.numel() + values[1] * (z * now).sum()
        for slope, height in zip(slopes[2:], values[2:], strict=True):  # T_{j+1} = 2 x T_j - T_{j-1}
            before, now = now, 2 * _shifted(forward, transpose, now, top) - before
            u = u.add_(now, alpha=slope)
            value = value + height * (z * now).sum()
        # |p| <= max on the interval; a longer u means that λ_max was underestimated, and would throw the weights away.
        longest = max(abs(slope_at(lower, upper, 0.0)), abs(slope_at(lower, upper, top))) * z.numel() ** 0.5
        u *= (longest / torch.linalg.vector_norm(u)).clamp(max=1.0)
    Wu, Wz = forward(torch.cat((u, z))).chunk(2)
    surrogate = (Wu * Wz).sum()
    return (value.detach() + surrogate - surrogate.detach()) / z.numel()


def largest_eigenvalue(operator: LayerOperator, start: Tensor, *, steps: int = 2) -> tuple[float, Tensor]:
    """λ_max(WᵀW) from below by power steps, and the vector reached, to warm-start the next call with.

    At least ``steps`` of them, and up to 20 while ``|V v|`` still grows by more than one per cent a step: an estimate
    that lags behind growing weights would let them grow without bound.

    >>> round(largest_eigenvalue(LayerOperator.of(torch.diag(torch.tensor([2.0, 1.0]))), torch.ones(2), steps=9)[0], 4)
    4.0
    """
    v, value = start, 0.0
    with torch.no_grad():
        norm = torch.linalg.vector_norm(v)
        for step in range(20):
            v = operator.rmatvec(operator.matvec((v / norm.clamp(min=torch.finfo(v.dtype).tiny))[None]))[0]
            norm = torch.linalg.vector_norm(v)
            before, value = value, float(norm)
            if step + 1 >= steps and not value > 1.01 * before:
                break
    return value, v


def step_factor(channels: int, positions: int, probes: int) -> float:
    """Share of the noiseless step that is stable for an estimate from so many probes, times ``channels``.

    A kernel is shared by all positions while R_s is a mean over channels x positions, so that the natural step is
    ``channels`` times the gradient.

    >>> step_factor(16, 64, 1), step_factor(64, 16, 1)
    (16.0, 4.0)
    """
    return channels * min(1.0, positions * probes / (4 * channels))


def _hinge(x: Tensor, lower: float, upper: float) -> Tensor:
    return (x - lower).clamp(max=0).square() + (x - upper).clamp(min=0).square()


def slope_at(lower: float, upper: float, x: float) -> float:
    """f'(λ) at one point."""
    return 2 * min(x - lower, 0.0) + 2 * max(x - upper, 0.0)


@lru_cache(maxsize=1)
def _nodes(degree: int) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes on [-1, 1] and the matrix from values there to coefficients."""
    count = 8 * (degree + 1)
    angles = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
    transform = torch.cos(torch.arange(degree + 1, dtype=torch.float64)[:, None] * angles) * (2 / count)
    transform[0] /= 2
    return torch.cos(angles), transform


def chebyshev(lower: float, upper: float, top: float, degree: int) -> tuple[list[float], list[float]]:
    """Chebyshev coefficients of f and f' on [0, top], by Gauss quadrature at 8 (degree + 1) nodes.

    >>> values, slopes = chebyshev(0.0, 0.0, 2.0, 2)  # f = λ² = (1 + x)², f' = 2 (1 + x) with x in [-1, 1]
    >>> [round(c, 4) for c in values], [round(abs(c), 4) for c in slopes]
    ([1.5, 2.0, 0.5], [2.0, 2.0, 0.0])
    """
    x, transform = _nodes(degree)
    x = (x + 1) * (top / 2)
    slope = 2 * (x - lower).clamp(max=0) + 2 * (x - upper).clamp(min=0)
    coefficients: list[list[float]] = (transform @ torch.stack((_hinge(x, lower, upper), slope), 1)).T.tolist()
    return coefficients[0], coefficients[1]


def _shifted(
    forward: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor], x: Tensor, top: float
) -> Tensor:
    """The spectrum of V moved from [0, top] to [-1, 1]: (2/top) V x - x."""
    return transpose(forward(x)).mul_(2 / top).sub_(x)
