r"""The toy function of the three regimes: n scale-invariant groups of two numbers each, everything in closed form.

Seed 001, section 3.2, equations (10)-(12) and proposition 3:

    F(x, y) = Σ α_i x_i²/(x_i² + y_i²)                                                                            (10)

on a sphere, minimized by x̂ = x - η∇F, then rescaling (6). With tan φ_i = x_i/y_i, h_i = η/ρ_i², a_i = h_i α_i a step is

    φ_i' = φ_i - arctan(a_i sin 2φ_i),      h_i' = h_i (1 + ESS²)/(1 + (a_i sin 2φ_i)²)

so that a group with h_i fixed converges for a ≤ 1 and otherwise alternates between ±φ, cos 2φ = 1/a; and with the total
ELR η̃ fixed and A = η̃ S, S = Σα_i, the whole converges for A < 1 (11), otherwise settles around η̃_i = A/α_i (12).

Deviations from the seed: "must converge to the equilibrium (12)" is not so: relative deviations of the groups neither
grow nor shrink to first order (`SphereToy.linearization` has determinant 1). At a = 1, which the seed leaves out, the
loss falls like α/(8t). The seed sets ρ = 1; here any radius will do, because h_i is what matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.invariance.equilibrium import norm_shares

__all__ = ["SphereToy", "angle_step", "cycle_angle", "cycle_multiplier", "settled_level"]


def angle_step(phi: Tensor, a: Tensor | float) -> Tensor:
    """φ' = φ - arctan(a sin 2φ): one step of a group, a its ELR times α.

    >>> angle_step(torch.tensor([torch.pi / 4]), 1.0)  # the step turns by 45 degrees, into the minimum
    tensor([0.])
    """
    return phi - torch.atan(a * torch.sin(2 * phi))


def cycle_angle(a: float) -> float:
    """Angle φ of the 2-cycle ±φ, cos 2φ = 1/a; 0, the minimum, for a ≤ 1.

    >>> round(math.degrees(cycle_angle(2.0)), 9)
    30.0
    """
    return math.acos(1 / max(a, 1.0)) / 2


def cycle_multiplier(a: float) -> float:
    """Factor of a small deviation in each step: 1 - 2a at the minimum (a ≤ 1), 2/a² - 1 around the cycle (a > 1).

    It lies inside (-1, 1) for every a except 1: one group with a fixed ELR never diverges.

    >>> cycle_multiplier(0.5), cycle_multiplier(2.0)
    (0.0, -0.5)
    """
    return 1 - 2 * a if a <= 1 else 2 / a**2 - 1


def settled_level(alpha: float, elr: float) -> float:
    """Loss at which α x²/(x² + y²) settles with its own ELR fixed: (α - 1/ELR)/2, or 0 below ELR = 1/α (prop. 3).

    >>> settled_level(2.0, 0.4), settled_level(2.0, 1.0)
    (0.0, 0.5)
    """
    return max(0.0, (alpha - 1 / elr) / 2)


class SphereToy:
    """The toy function (10) with the dynamics (6) on a sphere, and what theory says of it.

    Points are tensors θ: (…, n, 2) of pairs (x_i, y_i); every method broadcasts over the leading axes.

    Args:
        alphas: α_i > 0, one for each group.

    >>> toy = SphereToy([1.0, 3.0])
    >>> toy.threshold, toy.level(0.5), toy.equilibrium_elrs(0.5).tolist()
    (0.25, 1.0, [2.0, 0.6666666666666666])
    """

    def __init__(self, alphas: Sequence[float] | Tensor) -> None:
        self.alphas = torch.as_tensor(alphas, dtype=alphas.dtype if isinstance(alphas, Tensor) else torch.float64)
        if self.alphas.ndim != 1 or not len(self.alphas) or not bool((self.alphas > 0).all()):
            raise ValueError(f"alphas must be a non-empty list of positive numbers, got {alphas}")

    # ---- the function ----

    def group_losses(self, theta: Tensor) -> Tensor:
        """α_i x_i²/(x_i² + y_i²): (…, n)."""
        squared = theta * theta
        return self.alphas * squared[..., 0] / squared.sum(-1)

    def loss(self, theta: Tensor) -> Tensor:
        """F(θ) (10): (…)."""
        return self.group_losses(theta).sum(-1)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇F: 2α_i x_i y_i/r_i⁴ times (y_i, -x_i); same shape as ``theta``."""
        x, y = theta.unbind(-1)
        r2 = x * x + y * y
        turn = 2 * self.alphas * x * y / (r2 * r2)
        return torch.stack((turn * y, -turn * x), -1)

    # ---- the dynamics ----

    def start(self, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniformly random points of the unit sphere: (*shape, n, 2)."""
        size = (*shape, len(self.alphas), 2)
        theta = torch.randn(size, generator=generator, dtype=self.alphas.dtype, device=generator.device).to(self.alphas)
        unit: Tensor = theta / theta.flatten(-2).norm(dim=-1)[..., None, None]
        return unit

    def step(self, theta: Tensor, elr: float | Tensor, *, independent: bool = False) -> Tensor:
        """One step (6) that keeps the whole norm, ``elr`` the total ELR: one number, or (…) with one for each point.

        With ``independent`` every group keeps its own norm and has its own ELR: ``elr`` is one number or (…, n).
        """
        dims = (-1,) if independent else (-2, -1)
        elr = torch.as_tensor(elr, dtype=theta.dtype, device=theta.device)
        squared = (theta * theta).sum(dims, keepdim=True)
        lr = (elr.reshape(elr.shape + (1,) * len(dims)) if elr.ndim else elr) * squared
        moved = theta - lr * self.gradient(theta)
        scale: Tensor = (squared / (moved * moved).sum(dims, keepdim=True)).sqrt()
        return moved * scale

    def simulate(self, theta: Tensor, elr: float | Tensor, steps: int, *, independent: bool = False) -> Tensor:
        """The points of ``steps`` steps from ``theta``, the start included: (steps + 1, …, n, 2)."""
        points = [theta]
        for _ in range(steps):
            points.append(self.step(points[-1], elr, independent=independent))
        return torch.stack(points)

    def group_elrs(self, theta: Tensor, elr: float) -> Tensor:
        """η̃_i = η̃/ω_i of points whose total ELR is ``elr``: (…, n)."""
        return elr / norm_shares(theta.norm(dim=-1))

    def group_ess(self, theta: Tensor, elr: float) -> Tensor:
        """ESS of every group, η̃_i g̃_i with g̃_i = 2α_i |x_i y_i|/r_i²: (…, n)."""
        g = 2 * self.alphas * theta.prod(-1).abs() / (theta * theta).sum(-1)
        return self.group_elrs(theta, elr) * g

    # ---- the theory, at a fixed total ELR ----

    @property
    def total(self) -> float:
        """S = Σ α_i."""
        return float(self.alphas.sum())

    @property
    def threshold(self) -> float:
        """Total ELR below which training converges, 1/S (11)."""
        return 1 / self.total

    @property
    def random_level(self) -> float:
        """S/2: the mean loss of random directions, and the limit of `level` for a large ELR."""
        return self.total / 2

    def equilibrium_elrs(self, elr: float) -> Tensor:
        """η̃_i* = η̃ S/α_i (12), at which every group takes steps of one length; (n,)."""
        return elr * self.total / self.alphas

    def equilibrium_ess(self, elr: float) -> float:
        """The common ESS at (12): √((η̃S)² - 1), or 0 in the convergent regime."""
        return math.sqrt(max(0.0, (elr * self.total) ** 2 - 1))

    def level(self, elr: float) -> float:
        """Equilibrium loss F* = (S - 1/η̃)/2, or 0 below the threshold: the sum of the `settled_level` at (12)."""
        return settled_level(self.total, elr)

    def equilibrium_point(self, elr: float) -> Tensor:
        """A point of the unit sphere where (12) holds and every group is on its 2-cycle: (n, 2)."""
        rho = (self.alphas / self.total).sqrt()
        phi = cycle_angle(elr * self.total)
        return torch.stack((rho * math.sin(phi), rho * math.cos(phi)), -1)

    def linearization(self, elr: float) -> Tensor:
        r"""Jacobian of (|φ_i|, ln η̃_i) around (12), for deviations that leave the total ESS alone; (2, 2), η̃S > 1.

            J = [2/A² - 1, E/A²; -4E/A², 2/A² - 1],      A = η̃S,  E² = A² - 1,      det J = 1

        Its eigenvalues are e^{±iθ}, cos θ = 2/A² - 1: the equilibrium is neutral, not attracting. At A = 2 the angle is
        120 degrees, a 1:3 resonance, where small deviations do grow. The one other mode, common to all groups, is
        multiplied by 2/A² - 1 each step.
        """
        A, E = elr * self.total, self.equilibrium_ess(elr)
        if A <= 1:
            raise ValueError(
                f"there is no equilibrium at elr={elr}: training converges below {self.threshold:.4g} (11)"
            )
        diagonal = 2 / A**2 - 1
        return torch.tensor([[diagonal, E / A**2], [-4 * E / A**2, diagonal]], dtype=self.alphas.dtype)
