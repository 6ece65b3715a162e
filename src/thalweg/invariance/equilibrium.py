r"""Equilibrium: how the norm of scale-invariant weights and the length of their steps govern one another.

Seed 001, section 3, equations (1)-(9), propositions 1 and 2, corollary 1, theorem 1. For f(αx) = f(x) (1) the gradient
is orthogonal to x (2a) and ∇f(αx) = ∇f(x)/α (2b), so SGD with weight decay,

    x' = (1 - ηλ) x - η ∇f(x)                                                                                      (3)

moves the norm by  ρ'² = (1 - ηλ)² ρ² + η² g̃²/ρ²  (4), whatever f is. Letters, in the seed's notation:

    ρ = |x|     g = |∇f(x)|     g̃ = ρ g    effective gradient norm      η̃ = η/ρ²   effective learning rate (ELR)
    ESS = η̃ g̃   effective step size        κ = √(η / 2λ)                c = ηλ(2 - ηλ) = 1 - (1 - ηλ)²

Deviations from the seed: its propositions and theorem hold to first order in ηλ and in the jump δ. Every result here
that bears a bound is the exact one for (4), with the printed one beside it. What is exact: with g̃ constant the norm
rests at ρ² = U(g̃) = κ g̃/√(1 - ηλ/2), where ESS = √c and 1 - cos = ηλ; and g̃ within [ℓ, L] keeps ρ² within
[U(ℓ), U(L)] if and only if c (L + ℓ) ≤ ℓ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

__all__ = [
    "EquilibriumInterval",
    "JumpBounds",
    "JumpTime",
    "cosine_distance",
    "decay_time",
    "effective_grad_norm",
    "effective_lr",
    "effective_step_size",
    "equilibrium_ess",
    "equilibrium_interval",
    "equilibrium_squared_norm",
    "implied_effective_grad_norm",
    "jump_bounds",
    "jump_tangent",
    "next_group_elrs",
    "next_squared_norm",
    "norm_shares",
    "step_tangent",
    "time_to_jump",
    "total_elr",
    "total_ess",
]

Real = TypeVar("Real", float, Tensor)


# ---- one step of one group: exact identities, on floats or tensors ----


def effective_lr(lr: float, rho: Real) -> Real:
    """η̃ = η/ρ²: the learning rate that makes the same step on the unit sphere.

    >>> effective_lr(0.1, 2.0)
    0.025
    """
    elr: Real = lr / (rho * rho)
    return elr


def effective_grad_norm(rho: Real, grad_norm: Real) -> Real:
    """g̃ = ρ g: the gradient's norm at x/|x|, by (2b).

    >>> effective_grad_norm(2.0, 3.0)
    6.0
    """
    return rho * grad_norm


def effective_step_size(lr: float, rho: Real, g: Real) -> Real:
    """ESS = η̃ g̃ of an effective gradient norm ``g``: the tangent of the step's angle where there is no weight decay.

    >>> effective_step_size(0.1, 2.0, 6.0)
    0.15000000000000002
    """
    return effective_lr(lr, rho) * g


def next_squared_norm(lr: float, wd: float, rho: Real, g: Real) -> Real:
    """ρ'² = (1 - ηλ)² ρ² + η² g̃²/ρ² (4), exact wherever (2a) is.

    >>> next_squared_norm(0.5, 0.2, 1.0, 2.0)  # 0.9² + 0.5² 2²
    1.81
    """
    shrunk, step = (1 - lr * wd) * rho, lr * g / rho
    return shrunk * shrunk + step * step


def implied_effective_grad_norm(lr: float, wd: float, rho: Real, rho_next: Real) -> Real:
    """The g̃ that made ρ into ρ' by (4): ρ √(ρ'² - (1 - ηλ)² ρ²)/η; NaN (complex for floats) if no step of (3) did.

    >>> round(implied_effective_grad_norm(0.5, 0.2, 1.0, 1.81**0.5), 12)
    2.0
    """
    shrunk = (1 - lr * wd) * rho
    g: Real = rho * ((rho_next - shrunk) * (rho_next + shrunk)) ** 0.5 / lr
    return g


def step_tangent(lr: float, wd: float, rho: Real, g: Real) -> Real:
    """Tangent of the angle between x and x': η g̃/((1 - ηλ) ρ²), exact; ESS is its value at λ = 0.

    >>> step_tangent(0.5, 0.0, 1.0, 2.0)
    1.0
    """
    return effective_step_size(lr, rho, g) / (1 - lr * wd)


def cosine_distance(tangent: Real) -> Real:
    """1 - cos of an angle given by its tangent t, as (t/s)·t/(1 + s) with s = √(1 + t²): nothing cancels.

    >>> cosine_distance(1e-9)  # the subtraction 1 - 1/s would give 0.0
    5e-19
    """
    s: Real = (1 + tangent * tangent) ** 0.5
    return (tangent / s) * (tangent / (1 + s))


# ---- several groups on a sphere of fixed radius: equations (7)-(9), groups along the last axis ----


def norm_shares(rho: Tensor) -> Tensor:
    """Weights ω_i = ρ_i²/ρ² of (8), which sum to one. ``rho``: (…, n), norms of the groups.

    >>> import torch
    >>> norm_shares(torch.tensor([1.0, 3.0]))
    tensor([0.1000, 0.9000])
    """
    squared = rho * rho
    return squared / squared.sum(-1, keepdim=True)


def total_elr(elrs: Tensor) -> Tensor:
    """η̃ of the whole vector from those of its groups: 1/η̃ = Σ 1/η̃_i (7). ``elrs``: (…, n).

    >>> import torch
    >>> total_elr(torch.tensor([3.0, 6.0]))
    tensor(2.)
    """
    return 1 / (1 / elrs).sum(-1)


def total_ess(elrs: Tensor, ess: Tensor) -> Tensor:
    """ESS of the whole vector: (η̃ g̃)² = Σ ω_i (η̃_i g̃_i)², ω_i = η̃/η̃_i (8). ``elrs``, ``ess``: (…, n), of the groups.

    >>> import torch
    >>> total_ess(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 7.0]))  # √((1 + 49)/2)
    tensor(5.)
    """
    shares = total_elr(elrs).unsqueeze(-1) / elrs
    return (shares * ess * ess).sum(-1).sqrt()


def next_group_elrs(elrs: Tensor, ess: Tensor) -> Tensor:
    """η̃_i' = η̃_i (1 + ESS²)/(1 + ESS_i²) (9), exact on a sphere of fixed radius without weight decay.

    The negative feedback: a group whose step is longer than that of the whole loses effective learning rate.

    >>> import torch
    >>> next_group_elrs(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 7.0]))  # 2·26/2, 2·26/50
    tensor([26.0000,  1.0400])
    """
    whole = total_ess(elrs, ess).unsqueeze(-1)
    return elrs * (1 + whole * whole) / (1 + ess * ess)


# ---- jumps: propositions 1 and 2 ----


@dataclass(frozen=True)
class JumpBounds:
    """Thresholds on ρ² for a δ-jump, 1 - cos(x, x') > δ (definition 1, proposition 1).

    Attributes:
        possible: a jump implies ρ² < this, η L/((1 - ηλ) tan_δ); exact.
        guaranteed: ρ² < this implies a jump, η ℓ/((1 - ηλ) tan_δ); exact.
        possible_printed: η L/√(2δ) (5a).
        guaranteed_printed: η ℓ/√(2δ) (5b). Exact over printed is (1 - δ)/(√(1 - δ/2)(1 - ηλ)): 0.993 at δ = 0.01,
            0.92 at 0.1, 0.48 at 0.6; the printed form is good up to δ = 0.1 and ηλ = 0.01.
    """

    possible: float
    guaranteed: float
    possible_printed: float
    guaranteed_printed: float


def jump_tangent(delta: float) -> float:
    """Tangent of the angle at which 1 - cos = δ: √(δ(2 - δ))/(1 - δ), for 0 < δ < 1.

    >>> round(jump_tangent(0.5) ** 2, 12)  # 60 degrees
    3.0
    """
    if not 0 < delta < 1:
        raise ValueError(f"a jump is a cosine distance delta with 0 < delta < 1, got {delta}")
    return math.sqrt(delta * (2 - delta)) / (1 - delta)


def jump_bounds(lr: float, wd: float, g_min: float, g_max: float, delta: float) -> JumpBounds:
    """Squared norms at which a δ-jump is possible and guaranteed, for ℓ = ``g_min`` ≤ g̃ ≤ L = ``g_max`` (5a), (5b).

    >>> bounds = jump_bounds(0.1, 0.0, 1.0, 2.0, 0.02)
    >>> round(bounds.possible, 4), round(bounds.possible_printed, 4)
    (0.9849, 1.0)
    """
    _check_gradients(g_min, g_max)
    el = _decay(lr, wd, zero=True)
    exact, printed = lr / ((1 - el) * jump_tangent(delta)), lr / math.sqrt(2 * delta)
    return JumpBounds(exact * g_max, exact * g_min, printed * g_max, printed * g_min)


@dataclass(frozen=True)
class JumpTime:
    """When the next δ-jump comes (proposition 2), in iterations.

    Attributes:
        earliest: no jump before this iteration; exact for every g̃ in [ℓ, L]; inf if there can never be one.
        latest: a jump at this iteration or before; exact; inf if none is guaranteed.
        predicted: for g̃ constant at √(ℓL), by `decay_time`: relative error O(ηλ); inf if there is none.
        earliest_printed: 1/(4ηλ), the printed order of magnitude of the minimal time.
        latest_printed: 1/(2ηλ), that of the maximal time.
    """

    earliest: float
    latest: float
    predicted: float
    earliest_printed: float
    latest_printed: float


def time_to_jump(lr: float, wd: float, rho0: float, g_min: float, g_max: float, delta: float) -> JumpTime:
    r"""Time until a δ-jump from a norm ``rho0``, for ℓ = ``g_min`` ≤ g̃ ≤ L = ``g_max`` (proposition 2).

    With P and G the exact thresholds ``possible`` and ``guaranteed`` of `jump_bounds`, and U(g̃) the resting ρ²,

        t_min ≥ ln[(ρ₀² - U(ℓ))/(P - U(ℓ))] / -ln(1 - 2c)           if P > U(ℓ);  never, if P ≤ U(ℓ) ≤ ρ₀²
        t_max ≤ ln[(ρ₀² - U(L))/(G - U(L))] / -2 ln(1 - ηλ)         if G > U(L);  not guaranteed otherwise

    because by (4) ρ² - U shrinks by a factor of 1 - c(1 + U/ρ²) a step, which lies between 1 - 2c and 1 - c. The seed
    prints O(1/4ηλ) and O(1/2ηλ) without these logarithms; its conditions on δ are P > U(ℓ) and G > U(L) to first order.

    Args:
        lr: η > 0.
        wd: λ > 0 with ηλ < 1.
        rho0: norm now; above the resting norm, or the bounds are the trivial ones.
        g_min: ℓ >= 0.
        g_max: L >= ℓ.
        delta: cosine distance that counts as a jump.

    >>> time = time_to_jump(0.1, 0.01, 5.0, 1.0, 1.0, 2e-4)
    >>> math.ceil(time.earliest), round(time.predicted), time.latest
    (526, 858, 1054.0)
    """
    el = _decay(lr, wd)
    bounds = jump_bounds(lr, wd, g_min, g_max, delta)
    c, squared = el * (2 - el), rho0**2
    floor, ceiling = equilibrium_squared_norm(lr, wd, g_min), equilibrium_squared_norm(lr, wd, g_max)
    if squared < bounds.possible or squared < floor or 2 * c >= 1:
        earliest = 0.0
    elif bounds.possible <= floor:
        earliest = math.inf
    else:
        earliest = math.log((squared - floor) / (bounds.possible - floor)) / -math.log1p(-2 * c)
    if squared < bounds.guaranteed:
        latest = 0.0
    elif bounds.guaranteed <= ceiling:
        latest = math.inf
    else:  # a whole number of steps, and one more where ρ² only just reaches the threshold
        latest = (
            math.floor(math.log((squared - ceiling) / (bounds.guaranteed - ceiling)) / (-2 * math.log1p(-el))) + 1.0
        )
    middle = math.sqrt(g_min * g_max)
    threshold = math.sqrt(bounds.possible * bounds.guaranteed)
    if threshold == 0:
        predicted = math.inf
    else:
        predicted = 0.0 if squared < threshold else decay_time(lr, wd, rho0, math.sqrt(threshold), g=middle)
    return JumpTime(earliest, latest, predicted, 1 / (4 * el), 1 / (2 * el))


def decay_time(lr: float, wd: float, rho: float, rho_end: float, *, g: float = 0.0) -> float:
    r"""Iterations in which the norm falls from ``rho`` to ``rho_end`` at a constant effective gradient norm ``g``.

        t = ln[(ρ⁴ - κ²g̃²)/(ρ_end⁴ - κ²g̃²)] / 4ηλ

    from d(ρ⁴)/dt = -4ηλ ρ⁴ + 2η² g̃², the limit of (4) for small steps; relative error O(ηλ). At g = 0 it is
    ln(ρ²/ρ_end²)/2ηλ: the length of phase B, hence the period up to the short phases A and C, in inverse proportion to
    ηλ (corollary 1). Inf where the norm comes to rest above ``rho_end``.

    >>> round(decay_time(0.1, 1e-3, 10.0, 1.0))
    23026
    """
    el = _decay(lr, wd)
    if not 0 < rho_end <= rho:
        raise ValueError(f"the norm decays from rho to a smaller rho_end > 0, got rho={rho}, rho_end={rho_end}")
    rest = lr / (2 * wd) * g**2
    if rho_end**4 <= rest:
        return math.inf if rho_end < rho else 0.0
    return math.log((rho**4 - rest) / (rho_end**4 - rest)) / (4 * el)


# ---- equilibrium: theorem 1 ----


def equilibrium_squared_norm(lr: float, wd: float, g: float) -> float:
    """U(g̃) = κ g̃/√(1 - ηλ/2): the ρ² at which (4) rests with g̃ constant; printed as κ g̃ (theorem 1).

    >>> U = equilibrium_squared_norm(0.5, 0.2, 3.0)
    >>> abs(next_squared_norm(0.5, 0.2, U**0.5, 3.0) - U) < 1e-12
    True
    """
    return math.sqrt(lr / (2 * wd) / (1 - _decay(lr, wd) / 2)) * g


def equilibrium_ess(lr: float, wd: float) -> float:
    """Effective step size at rest, √(ηλ(2 - ηλ)) or about √(2ηλ): longer steps grow the norm, shorter let it shrink.

    The step's 1 - cos is then exactly ηλ, whatever g̃ is.

    >>> round(equilibrium_ess(0.1, 1e-3), 6)  # √(2ηλ) = 0.014142
    0.014142
    >>> round(cosine_distance(equilibrium_ess(0.5, 0.2) / (1 - 0.5 * 0.2)), 12)
    0.1
    """
    el = _decay(lr, wd)
    return math.sqrt(el * (2 - el))


@dataclass(frozen=True)
class EquilibriumInterval:
    """Where ρ² stays once g̃ stays within [ℓ, L] (theorem 1).

    Attributes:
        lower: U(ℓ); exact.
        upper: U(L); exact.
        holds: c(L + ℓ) ≤ ℓ, the exact condition: where it fails, one step from ``lower`` with g̃ = L leaves the interval
            upwards. It does not hold in most real training, where L/ℓ is of the order of 1000.
        lower_printed: κℓ; true, and lower than ``lower`` by the factor √(1 - ηλ/2).
        upper_printed: κL; exceeded by that factor when g̃ = L.
        holds_printed: 2ηλL ≤ ℓ, the printed condition: at equality one step exceeds the upper bound by about 2ηλ.
    """

    lower: float
    upper: float
    holds: bool
    lower_printed: float
    upper_printed: float
    holds_printed: bool


def equilibrium_interval(lr: float, wd: float, g_min: float, g_max: float) -> EquilibriumInterval:
    """Interval of ρ² that (4) does not leave while ℓ = ``g_min`` ≤ g̃ ≤ L = ``g_max`` (theorem 1), exact and printed.

    From ρ² > U(L) the excess over U(L) shrinks each step, by a factor of 1 - c or less.

    >>> interval = equilibrium_interval(0.5, 0.02, 1.0, 2.0)
    >>> round(interval.lower, 3), round(interval.upper, 3), interval.upper_printed, interval.holds
    (3.544, 7.089, 7.0710678118654755, True)
    """
    _check_gradients(g_min, g_max)
    el = _decay(lr, wd)
    lower, upper = equilibrium_squared_norm(lr, wd, g_min), equilibrium_squared_norm(lr, wd, g_max)
    kappa = math.sqrt(lr / (2 * wd))
    holds = el * (2 - el) * (g_max + g_min) <= g_min
    return EquilibriumInterval(lower, upper, holds, kappa * g_min, kappa * g_max, 2 * el * g_max <= g_min)


def _decay(lr: float, wd: float, *, zero: bool = False) -> float:
    """ηλ, which must lie in (0, 1); λ = 0 passes where ``zero`` says so."""
    el = lr * wd
    if not (lr > 0 and (wd > 0 or (zero and wd == 0)) and el < 1):
        raise ValueError(f"expected lr > 0, wd {'>=' if zero else '>'} 0 and lr*wd < 1, got lr={lr}, wd={wd}")
    return el


def _check_gradients(g_min: float, g_max: float) -> None:
    if not (0 <= g_min <= g_max < math.inf and g_max > 0):
        raise ValueError(
            f"effective gradient norms are bounded by 0 <= g_min <= g_max, g_max > 0, got {g_min} and {g_max}"
        )
