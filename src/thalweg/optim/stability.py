r"""How far a step is from its stability limit: the top eigenvalue of the operator that the step applies to the error.

Near a minimum a step w - lr·D(g) moves the error e by e - lr·P H e, with H the Hessian and P: g -> D(g) linear at fixed
weights (the identity for SGD, `reparam_direction` for `CSGD`). It is stable while

    sharpness = λ_max(lr P H) < 2                      exact to first order
    bound = lr g h < 2,  h = λ_max(H), g = λ_max(P)    sufficient; g = 1 for SGD, 1 + s² for the seed's CSGD

Beyond the first the loss may stay finite while the singular values explode, because each long step lengthens the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.operators.spectrum import largest_singular_value, power_iteration
from thalweg.optim.csgd import CSGD, _direction, direction_gain

__all__ = ["StepStability", "step_stability"]


@dataclass(frozen=True)
class StepStability:
    """What `step_stability` measured.

    Attributes:
        s_max: largest singular value of every parameter that is a matrix, in the optimizer's order.
        curvature: h, the largest Hessian eigenvalue.
        sharpness: λ_max(lr P H); from 2 on the step is unstable.
        bound: lr g h, at least ``sharpness`` and 0; below 2 (``lr < stable_lr(h, s)``) the step is sure to be stable.
    """

    s_max: tuple[float, ...]
    curvature: float
    sharpness: float
    bound: float


def step_stability(
    loss: Tensor, optimizer: Optimizer, *, generator: torch.Generator | None = None, steps: int = 10
) -> StepStability:
    """Measure the stability of the step that ``optimizer`` would take on ``loss``.

    Costs ``2·steps`` Hessian-vector products, twice that where the loss bends down more than up, and one singular value
    decomposition per matrix.

    Args:
        loss: a scalar with its graph, twice differentiable in the optimizer's parameters.
        optimizer: `CSGD`, or ``torch.optim.SGD`` (P is the identity); momentum is not accounted for.
        generator: draws the start of the power iterations, on the CPU.
        steps: products per eigenvalue; too few underestimate.

    Raises:
        TypeError: another optimizer, whose P is not linear in the gradient.

    >>> A = torch.nn.Parameter(torch.diag(torch.tensor([2.0, 1.0])))
    >>> found = step_stability(A.square().sum() / 2, CSGD([A], lr=0.4), steps=50)  # H = I, so 0.4 (1 + 2²) = 2
    >>> round(found.sharpness, 3), round(found.bound, 3), found.s_max
    (2.0, 2.0, (2.0,))
    """
    if not isinstance(optimizer, (CSGD, torch.optim.SGD)):
        raise TypeError(f"step_stability knows CSGD and torch.optim.SGD, not {type(optimizer).__name__}")
    owners = [(param, group) for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
    params = [param for param, _ in owners]
    gradient = torch.autograd.grad(loss, params, create_graph=True)
    sizes = [param.numel() for param in params]

    rate = max(float(group["lr"]) for _, group in owners) or 1.0  # taken out: huge ones overflow in the products

    def hessian(v: Tensor) -> Tensor:
        vectors = [part.view_as(param) for part, param in zip(torch.split(v, sizes), params, strict=True)]
        return _flat(torch.autograd.grad(gradient, params, vectors, retain_graph=True))

    def moved(u: Tensor) -> Tensor:
        parts = [part.view_as(param) for part, param in zip(torch.split(u, sizes), params, strict=True)]
        return _flat([_moved(*owner, part, rate) for owner, part in zip(owners, parts, strict=True)])

    start = torch.randn(sum(sizes), generator=generator, dtype=params[0].dtype).to(params[0].device)
    curvature, _ = _top(hessian, lambda v: v, start, steps)
    sharpness, along = _top(hessian, moved, start, steps)
    curvature = max(curvature, along)
    s_max = {param: largest_singular_value(param) for param in params if param.ndim > 1}
    longest = max(float(group["lr"]) * _gain(param, group, s_max) for param, group in owners)
    return StepStability(tuple(s_max.values()), curvature, rate * sharpness, longest * max(curvature, 0.0))


def _top(
    hessian: Callable[[Tensor], Tensor],
    moved: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    shift: float = 0.0,
) -> tuple[float, float]:
    """λ_max(P H), and the Rayleigh quotient of H along the vector P u that it was measured on.

    u is iterated by H P, which is self-adjoint for <u, P u>: uᵀP H P u / uᵀP u never exceeds λ_max, whatever u is.
    Where a negative eigenvalue dominates, a second iteration is shifted by it.
    """
    _, u = power_iteration(lambda u: hessian(moved(u)) - shift * u, start, steps=steps - 1)
    v = moved(u)
    change = float(torch.sum(v * hessian(v)))
    found = _ratio(change, u, v), _ratio(change, v, v)
    if shift or not found[0] < 0:
        return found
    return max(found, _top(hessian, moved, start, steps, shift=found[0]))


def _ratio(change: float, u: Tensor, v: Tensor) -> float:
    """``change`` / <u, v>; 0 where nothing moves."""
    norm = float(torch.sum(u * v))
    return change / norm if norm else 0.0


@torch.no_grad()
def _moved(param: Tensor, group: dict[str, Any], part: Tensor, rate: float) -> Tensor:
    """lr·P / ``rate`` applied to one parameter's part of a vector."""
    reparameterized = "side" in group and param.ndim > 1
    return float(group["lr"]) / rate * (_direction(param, part, group, lr=0.0) if reparameterized else part)


def _gain(param: Tensor, group: dict[str, Any], s_max: dict[Tensor, float]) -> float:
    """λ_max(P) on one parameter."""
    if "side" not in group or param.ndim < 2:
        return 1.0
    return direction_gain(s_max[param], side=group["side"], depth=group["depth"])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
