r"""The frame regularizer on the eigenvalues themselves: no gap of Gershgorin's, and no collapse (beyond seed 002).

    R_s(W) = (1/n) Σ_i f(λ_i(V)) = (1/n) tr f(V),   f(λ) = min(λ - A, 0)² + max(λ - B, 0)²,   V = WᵀW or WWᵀ

Inputs that no output reads (three quarters of the pixels before a 1 x 1 kernel of stride 2) have eigenvalues of zero
whatever the weight; "read" leaves them out: n is then the number of the others, and so many eigenvalues count.

R_s = 0 if and only if A <= λ_i <= B: the frame inequality itself, whereas diagonal dominance is only sufficient for it.
Along the gradient flow every singular value follows ds/dt ∝ s (A - s²) below √A, so that W = 0 is an unstable point.

Matrix-free, for z a random vector of signs and cubics p and F that approximate f' and f on [0, 1.1 λ_max]:

    R_s ≈ (1/n) E zᵀ F(V) z           ∇R_s ≈ (2/n) E <dWᵀ y, x>,   y = W a(V) z,  x = b(V) z,  p = a b

Both expectations are exact, for tr(p(V) Wᵀ dW) = E zᵀ a(V) Wᵀ dW b(V) z; only the cubics approximate. They are enough:
p need not be small inside [A, B], it must have the right sign outside. The factors meet in the middle: a(λ) = λ - ρ for
a real root ρ of p, and b quadratic, so that y and x take z, Vz and V²z only. That is four convolutions of an image and
a weight gradient, against three times the batch for the layer's own step; p(V) z would take twice as many. λ_max comes
from power steps on a vector that travels with the probes.

One probe is a batch of one image, and its noise grows with channels/positions: on a 64-channel 4 x 4 map a step that is
harmless on 8 x 8 with 16 channels blows the weights up. Stable steps are about positions·probes / (4·channels) of the
noiseless one, and `step_factor` is that number: with it 0.1 to 0.2 is a good decoupled step for every layer.
By pure minimization from He's initialization (A = .5, B = 2, 300 steps of 0.2, two seeds): .98 to .99 of the spectrum
inside for 12 channels on 16 x 16 and 24 on 8 x 8; for 48 on 4 x 4 .97 with 4 probes, .99 with 8; λ_max <= 1.9.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.operators import LayerOperator

__all__ = ["Estimate", "factors", "hinge_cubics", "probe_penalty", "spectral_penalty", "start_vector", "step_factor"]

HEADROOM = 1.1  # of the interval of approximation over the λ_max found
NODES = 32  # of the quadrature that the cubics are fitted by


def spectral_penalty(operator: LayerOperator | Tensor, *, lower: float, upper: float, gram: str = "col") -> Tensor:
    """R_s from all singular values of the dense operator, differentiable: for tests and small layers.

    Args:
        operator: the layer, or the matrix (m, n) of a dense one.
        lower: A; -inf for none.
        upper: B.
        gram: "col" for the n eigenvalues of WᵀW, "read" for those on the inputs that some output reads, "row" for the m
            of WWᵀ.

    Raises:
        ValueError: bounds out of order, or another Gram matrix.

    >>> W = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    >>> spectral_penalty(W, lower=1.0, upper=2.0)  # λ = 4 and 1/4: (2² + (3/4)²) / 2
    tensor(2.2812)
    """
    _check(lower, upper, gram)
    operator = LayerOperator.of(operator) if isinstance(operator, Tensor) else operator
    m, n = operator.shape
    size = {"col": n, "row": m}.get(gram) or int(operator.inputs_read().sum())
    eigenvalues = torch.linalg.svdvals(operator.dense()).square()[:size]
    total = _hinge(eigenvalues, lower, upper).sum()
    if size > len(eigenvalues) and lower > 0:  # V has a null space
        total = total + (size - len(eigenvalues)) * lower**2
    return total / size


class Estimate(NamedTuple):
    """What a call finds: R_s, whose gradient estimates ∇R_s; λ_max(V) from below; a vector for the next one."""

    value: Tensor
    largest: float
    vector: Tensor


def probe_penalty(
    operator: LayerOperator,
    vector: Tensor,
    *,
    lower: float,
    upper: float,
    gram: str = "col",
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> Estimate:
    """An estimate of R_s whose gradient is an unbiased estimate of ∇R_s, but for the approximation by cubics.

    Args:
        operator: the layer.
        vector: near the eigenvector of λ_max(V): from the last call, or from `start_vector`.
        lower: A; -inf for none.
        upper: B.
        gram: "col", "read" or "row", as for `spectral_penalty`.
        probes: random vectors of signs.
        generator: draws them.

    Raises:
        ValueError: bounds out of order, or another Gram matrix.

    >>> op = LayerOperator.of(2 * torch.eye(2))  # V = 4 I: one probe is exact, and so are cubics above B
    >>> round(float(probe_penalty(op, torch.ones(2), lower=0.0, upper=1.0).value), 1)  # (4 - 1)²
    9.0
    """
    _check(lower, upper, gram)
    forward, transpose = (operator.rmatvec, operator.matvec) if gram == "row" else (operator.matvec, operator.rmatvec)
    weight, tiny = operator.weight, torch.finfo(operator.weight.dtype).tiny
    device = weight.device if generator is None else generator.device
    signs = torch.randint(0, 2, (probes, *vector.shape), generator=generator, device=device)
    with torch.no_grad():
        z = (2 * signs - 1).to(weight)
        count = z.numel()
        if gram == "read":
            read = operator.inputs_read()
            z, count = z * read, probes * int(read.sum())
        Wz = forward(torch.cat((z, vector[None])))
        Vz = transpose(Wz)
        WVz = forward(Vz)
        largest = float(WVz[-1].square().sum() / Vz[-1].square().sum().clamp(min=tiny))
    if not 0 < largest < math.inf:  # a weight of zeros is a stationary point, and NaN must not pass unseen
        return Estimate(0.0 * weight.sum() + (max(lower, 0.0) ** 2 if largest == 0 else largest), largest, vector)
    top = HEADROOM * largest
    values, slopes = hinge_cubics(lower, upper, top)
    root, b, limit = factors(slopes)
    y = WVz / top  # the last is the power vector
    y[:-1] -= root * Wz[:-1]
    Vy = transpose(y)
    with torch.no_grad():
        v1 = Vz[:-1] / top
        v2 = Vy[:-1] / top + root * v1
        x = b[0] * z + b[1] * v1 + b[2] * v2
        # Beyond the interval the cubics grow: were λ_max far underestimated, that would throw the weights away.
        longest = limit * top**0.5 * count
        length = (torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y[:-1])).clamp(min=tiny)
        x *= 2 * (longest / length).clamp(max=1.0)
        moments = (z.square().sum(), Wz[:-1].square().sum() / top, v1.square().sum(), WVz[:-1].square().sum() / top**3)
        value = sum(float(c) * moment for c, moment in zip(values, moments, strict=True))
    surrogate = (Vy[:-1] * x).sum()
    return Estimate((value + surrogate - surrogate.detach()) / count, largest, _unit(Vy[-1].detach()))


def start_vector(
    operator: LayerOperator, *, gram: str = "col", steps: int = 10, generator: torch.Generator | None = None
) -> Tensor:
    """A random vector after so many power steps with V.

    >>> start_vector(LayerOperator.of(torch.diag(torch.tensor([2.0, 1.0])))).abs().round(decimals=3)
    tensor([1., 0.])
    """
    forward, transpose = (operator.rmatvec, operator.matvec) if gram == "row" else (operator.matvec, operator.rmatvec)
    shape, weight = operator.output_shape if gram == "row" else operator.input_shape, operator.weight
    device = weight.device if generator is None else generator.device
    vector = torch.randn(shape, generator=generator, device=device).to(weight)
    with torch.no_grad():
        for _ in range(steps):
            vector = transpose(forward(_unit(vector)[None]))[0]
    return _unit(vector)


def _unit(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector)
    return vector / norm.clamp(min=torch.finfo(vector.dtype).tiny)


def step_factor(channels: int, positions: int, probes: int) -> float:
    """Share of the noiseless step that is stable for an estimate from so many probes, times ``channels``.

    A kernel is shared by all positions while R_s is a mean over channels x positions, so that the natural step is
    ``channels`` times the gradient.

    >>> step_factor(16, 64, 1), step_factor(64, 16, 1)
    (16.0, 4.0)
    """
    return channels * min(1.0, positions * probes / (4 * channels))


def _check(lower: float, upper: float, gram: str) -> None:
    if not lower <= upper or gram not in ("col", "read", "row"):
        raise ValueError(
            f"expected bounds A <= B and gram='col', 'read' or 'row', got A={lower}, B={upper} and gram={gram!r}"
        )


def _hinge(x: Tensor, lower: float, upper: float) -> Tensor:
    return (x - lower).clamp(max=0).square() + (x - upper).clamp(min=0).square()


def _cubics() -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev nodes on [0, 1], and the matrix from values there to the coefficients of 1, t, t², t³."""
    angles = (np.arange(NODES) + 0.5) * (math.pi / NODES)
    transform = np.cos(np.arange(4)[:, None] * angles) * (2 / NODES)
    transform[0] /= 2
    shifted = np.array([[1, 0, 0, 0], [-1, 2, 0, 0], [1, -8, 8, 0], [-1, 18, -48, 32]])  # T_j(2t - 1)
    return (np.cos(angles) + 1) / 2, shifted.T @ transform


POINTS, FIT = _cubics()
DENSITY = np.sqrt(POINTS * (1 - POINTS))  # of nodes per length, inverted


def hinge_cubics(lower: float, upper: float, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of 1, t, t², t³ with t = λ / top of the Chebyshev approximations of f and f' on [0, top].

    >>> values, slopes = hinge_cubics(0.0, 0.0, 2.0)  # f = λ² = 4 t², f' = 2 λ = 4 t
    >>> values.round(4) + 0.0, slopes.round(4) + 0.0
    (array([0., 0., 4., 0.]), array([0., 4., 0., 0.]))
    """
    below, above = np.minimum(top * POINTS - lower, 0), np.maximum(top * POINTS - upper, 0)
    return FIT @ (below**2 + above**2), FIT @ (2 * below + 2 * above)


def factors(slopes: np.ndarray) -> tuple[float, np.ndarray, float]:
    """ρ, b and a bound of √t |(t - ρ) b(t)| on [0, 1], for a cubic p = (t - ρ) (b₀ + b₁ t + b₂ t²).

    The variance of an estimate is about Σ λ a(λ)² Σ b(λ)² over the eigenvalues: of the real roots the one that makes it
    least for evenly spread ones.

    >>> root, b, _ = factors(np.array([-1.0, 3.0, -3.0, 2.0]))
    >>> root, b.round(4)
    (0.5, array([ 2., -2.,  2.]))
    """
    best = (math.inf, 0.0, np.zeros(3), 0.0)
    slopes = np.where(np.abs(slopes) > 1e-9 * np.abs(slopes).max(), slopes, 0.0)  # or roots are lost in rounding
    roots = np.roots(slopes[::-1])
    for root in roots.real[np.abs(roots.imag) <= 1e-6 * np.abs(roots)]:
        b2 = slopes[3]
        b1 = slopes[2] + root * b2
        b = np.array([slopes[1] + root * b1, b1, b2])
        a, q = np.sqrt(POINTS) * np.abs(POINTS - root), np.abs(b[0] + POINTS * (b[1] + POINTS * b[2]))
        noise = float((DENSITY * a**2).sum() * (DENSITY * q**2).sum())
        if noise < best[0]:
            best = (noise, float(root), b, float(a.max() * q.max()))
    return best[1:]
