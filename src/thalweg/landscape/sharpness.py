r"""Sharpness: how much the loss rises within a ball around the weights.

    one step    L(w + ρ g / |g|) - L(w),  g = ∇L(w)                                 SAM: Foret et al. 2021, eq. 2
    worst case  max_{|δ| <= ρ} L(w + δ) - L(w)                                      what the step approximates
    average     E L(w + δ) - L(w),  δ ~ N(0, ρ² I)                                  near a minimum ρ² tr H / 2
    adaptive    the same for δ = T u, T = diag(|w|), with |u| <= ρ or u ~ N(0, ρ² I)    ASAM: Kwon et al. 2021, eq. 3

Adaptive sharpness does not notice rescalings of the weights that leave the function as it is, as those of neighbouring
layers around a ReLU. At a minimum of a quadratic the worst case is ρ² λ_max / 2; at any point it is at least 0 (δ = 0).

The worst case is searched by ascent u ← u + η ρ T g / |T g|, back to the ball, with η doubled after a step that raises
the loss and quartered after one that does not, which is undone: a fixed η = 1 oscillates where the loss bends down more
than up.

Deviation from ASAM's published code: no constant is added to |w|, which would spoil the invariance; a weight of zero is
not moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.landscape._objective import LossFunction, Objective

__all__ = ["AverageSharpness", "average_sharpness", "sam_sharpness", "worst_case_sharpness"]


def sam_sharpness(
    model: nn.Module, loss_fn: LossFunction, data: Any, *, radius: float, adaptive: bool = False
) -> float:
    """Rise of the loss after one normalised ascent step; one gradient and one evaluation.

    Args:
        model: in the mode it is to be measured in; it is not touched.
        loss_fn: ``loss_fn(output, target)``, the mean over the batch.
        data: a pair (inputs, targets), or batches that can be read more than once.
        radius: ρ > 0.
        adaptive: measure the step relative to each weight.

    Returns:
        The rise; 0 where the gradient vanishes, for there is no direction to step in.

    Raises:
        ValueError: a radius that is not positive or infinite, a loss or gradient that is not finite, no trainable
            parameter, a random output.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 1.0)
    >>> sam_sharpness(model, nn.functional.mse_loss, (torch.ones(1, 1), torch.zeros(1, 1)), radius=0.5)  # 1.5² - 1
    1.25
    """
    objective, scale = _setup(model, loss_fn, data, radius, adaptive)
    base, gradient = _gradient(objective)
    return float(objective.value(objective.theta + scale * _to_length(scale * gradient, radius)) - base)


def worst_case_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    radius: float,
    adaptive: bool = False,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> float:
    """Largest rise of the loss in the ball, by projected ascent; never below `sam_sharpness`, nor below 0.

    On a quadratic that bends up it is a power iteration with growing steps, which ends at the maximum; in general the
    result is a lower bound of it, and better the more steps there are.

    Args:
        model: as for `sam_sharpness`.
        loss_fn: as for `sam_sharpness`.
        data: as for `sam_sharpness`.
        radius: ρ > 0.
        adaptive: as for `sam_sharpness`.
        steps: of ascent, one gradient each.
        generator: draws the start, on the CPU: at a minimum the gradient gives none. None is one of its own, seed 0.

    Raises:
        ValueError: as `sam_sharpness`, or fewer than one step.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> worst_case_sharpness(model, nn.functional.mse_loss, (torch.ones(1, 1), torch.zeros(1, 1)), radius=0.5)
    0.25
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step of ascent expected")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    objective, scale = _setup(model, loss_fn, data, radius, adaptive)
    (base, gradient), w, rate = _gradient(objective), objective.theta, 1.0
    one_step = objective.value(w + scale * _to_length(scale * gradient, radius))
    u = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
    u = _to_length(_to_length(scale * gradient, radius) + 0.1 * _to_length(u * (scale > 0), radius), radius)
    best, gradient = objective.gradient(w + scale * u)
    for _ in range(steps):
        tried = u + _to_length(scale * gradient, rate * radius)
        tried = tried * (radius / tried.norm()).clamp(max=1.0)
        loss, ahead = objective.gradient(w + scale * tried)
        if loss > best:
            u, best, gradient, rate = tried, loss, ahead, 2 * rate
        else:
            rate /= 4
    return float(torch.fmax(torch.fmax(best, one_step), base) - base)


@dataclass(frozen=True)
class AverageSharpness:
    """What `average_sharpness` estimated: ``value`` and its standard ``error``, two numbers.

    >>> AverageSharpness(value=0.3, error=0.01).value
    0.3
    """

    value: float
    error: float


def average_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    radius: float,
    adaptive: bool = False,
    samples: int = 50,
    generator: torch.Generator | None = None,
) -> AverageSharpness:
    """Mean rise of the loss under Gaussian noise on the weights, from pairs ±δ, in which odd terms cancel.

    Args:
        model: as for `sam_sharpness`.
        loss_fn: as for `sam_sharpness`.
        data: as for `sam_sharpness`.
        radius: ρ > 0, the noise's standard deviation for each weight (relative to it if ``adaptive``).
        adaptive: as for `sam_sharpness`.
        samples: pairs, two evaluations each; at least 2.
        generator: draws the noise, on the CPU; None is one of its own with seed 0.

    Raises:
        ValueError: as `sam_sharpness` but for the gradient, which is not used, or fewer than two pairs.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> data, g = (torch.ones(1, 1), torch.zeros(1, 1)), torch.Generator().manual_seed(0)
    >>> found = average_sharpness(model, nn.functional.mse_loss, data, radius=0.5, samples=1000, generator=g)
    >>> abs(found.value - 0.25) < 3 * found.error  # tr H / 2 = 1
    True
    """
    if samples < 2:
        raise ValueError(f"samples={samples}: at least two pairs expected, for the error")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    objective, scale = _setup(model, loss_fn, data, radius, adaptive)
    base = _finite(objective.value(objective.theta))
    rises = []
    for _ in range(samples):
        noise = torch.randn(scale.shape, generator=generator, dtype=scale.dtype).to(scale.device)
        delta = radius * scale * noise
        up, down = (objective.value(objective.theta + sign * delta) for sign in (1, -1))
        rises.append((up + down) / 2 - base)
    rise = torch.stack(rises)
    return AverageSharpness(float(rise.mean()), float(rise.std()) / samples**0.5)


def _setup(
    model: nn.Module, loss_fn: LossFunction, data: Any, radius: float, adaptive: bool
) -> tuple[Objective, Tensor]:
    """The objective, and T as a vector."""
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius={radius}: a positive number expected")
    objective = Objective(model, loss_fn, data)
    return objective, objective.theta.abs() if adaptive else torch.ones_like(objective.theta)


def _gradient(objective: Objective) -> tuple[Tensor, Tensor]:
    """L(w) and ∇L(w), both finite."""
    base, gradient = objective.gradient(objective.theta)
    _finite(base)
    if not bool(torch.isfinite(gradient).all()):
        raise ValueError(
            "the loss is finite and its gradient is not, as that of a square root at 0 is: give weights where it is, "
            "or use average_sharpness, which needs none"
        )
    return base, gradient


def _finite(base: Tensor) -> Tensor:
    if not bool(torch.isfinite(base)):
        raise ValueError(f"the loss is {float(base)}: sharpness needs weights and data with a finite loss")
    return base


def _to_length(v: Tensor, radius: float) -> Tensor:
    """The vector v with the norm ``radius``; zero stays zero."""
    v = v / v.abs().max().clamp_min(torch.finfo(v.dtype).tiny)  # squares of tiny entries would be lost
    norm = v.norm()
    return v * (radius / norm) if norm > 0 else v
