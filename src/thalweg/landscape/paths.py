r"""Paths between two trained networks, and the barrier on them.

    line      θ(t) = (1 - t) θ₀ + t θ₁
    Bezier    θ(t) = (1 - t)² θ₀ + 2 t (1 - t) φ + t² θ₁     φ = argmin E L(θ(t)), t ~ U[0, 1]: Garipov et al. 2018
    sphere    θ(t) turns from θ₀ to θ₁ in their plane while its norm goes linearly from |θ₀| to |θ₁|
    barrier   max_t L(θ(t)) - (1 - t) L(θ₀) - t L(θ₁)                             0 at both ends, so never negative

The line between scale-invariant weights leaves the sphere they live on: for θ₁ ⟂ θ₀ it passes at 0.71 of the radius,
where gradients are 1.4 and curvature 2 times what they are on the sphere. If all weights are one group the spherical
path meets the same losses as the line, at another t; with several groups the two are different paths.

Normalization by batch statistics needs them at every point, as running statistics belong to the ends only: networks
with such layers must be in training mode (their running statistics are not changed).

Deviation from Garipov et al.: φ is found by Adam with a rate falling linearly to 0, one batch and one t per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from thalweg.landscape._objective import LossFunction, Objective, batches_of

__all__ = ["Path", "bezier_path", "linear_path", "spherical_path"]


@dataclass(frozen=True)
class Path:
    """Losses along a path.

    Attributes:
        t: (points,), from 0 to 1.
        losses: (points,).
        points: (points, P), the trainable parameters.
        bend: φ of a Bezier path, (P,); None for the others.
    """

    t: Tensor
    losses: Tensor
    points: Tensor
    bend: Tensor | None = None

    @property
    def barrier(self) -> float:
        """Largest excess of the loss over the straight line between its values at the ends; NaN if one is NaN.

        >>> Path(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 5.0, 2.0]), torch.zeros(3, 1)).barrier
        3.5
        """
        return float((self.losses - torch.lerp(self.losses[0], self.losses[-1], self.t)).max())


def linear_path(start: nn.Module, end: nn.Module, loss_fn: LossFunction, data: Any, *, points: int = 21) -> Path:
    """The loss on the line between two networks of one architecture.

    Args:
        start: at θ₀; it computes the outputs, in its mode. What it has frozen stays, and must be the same in ``end``.
        end: at θ₁.
        loss_fn: ``loss_fn(output, target)``, the mean over the batch.
        data: a pair (inputs, targets), or batches that can be read more than once.
        points: on the path, its ends included; one pass over the data each.

    Raises:
        ValueError: networks that do not match or differ in what is frozen, running statistics in use, a random output,
            fewer than two points.

    >>> start, end = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(start.weight, -1.0), nn.init.constant_(end.weight, 1.0)
    >>> data = torch.ones(1, 1), torch.zeros(1, 1)
    >>> path = linear_path(start, end, lambda output, _: 1 - output.square().mean(), data, points=3)
    >>> path.losses.tolist(), path.barrier
    ([0.0, 1.0, 0.0], 1.0)
    """
    objective, first, last = _ends(start, end, loss_fn, data)
    t = _parameter(first, points)
    return _measure(objective, t, torch.stack([torch.lerp(first, last, s) for s in t]))


def bezier_path(
    start: nn.Module,
    end: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    steps: int = 200,
    lr: float = 0.01,
    points: int = 21,
    generator: torch.Generator | None = None,
) -> Path:
    """A curve of low loss between two networks: quadratic Bezier, its bend learned on the data.

    Args:
        start: as for `linear_path`.
        end: as for `linear_path`.
        loss_fn: as for `linear_path`.
        data: as for `linear_path`; each step takes the next batch.
        steps: of Adam, one gradient each.
        lr: Adam's initial rate: about how far one step moves each weight.
        points: as for `linear_path`.
        generator: draws t, on the CPU; None is one of its own with seed 0.

    Raises:
        ValueError: as `linear_path`, or fewer than one step, a rate that is not positive, or one that diverges.

    >>> start, end = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    >>> start.weight.data, end.weight.data = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    >>> def loss(output, _):  # the minima are a circle
    ...     return (output.square().sum(dim=1) - 1).square().mean()
    >>> data, g = (torch.ones(1, 1), torch.zeros(1, 1)), torch.Generator().manual_seed(0)
    >>> round(linear_path(start, end, loss, data).barrier, 4)
    0.25
    >>> bezier_path(start, end, loss, data, lr=0.05, generator=g).barrier < 0.01
    True
    """
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps={steps}, lr={lr}: at least one step and a positive rate expected")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    objective, first, last = _ends(start, end, loss_fn, data)
    t = _parameter(first, points)
    bend = torch.lerp(first, last, 0.5).requires_grad_()
    optimizer = torch.optim.Adam([bend], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for batch, s in zip(_endless(data, first.device), torch.rand(steps, generator=generator).tolist(), strict=False):
        _, gradient = objective.on([batch]).gradient(_bezier(first, bend.detach(), last, s))
        bend.grad = 2 * s * (1 - s) * gradient
        optimizer.step()
        schedule.step()
    bend = bend.detach()
    if not bool(torch.isfinite(bend).all()):
        raise ValueError(
            f"the bend diverged: give a rate below lr={lr}, or ends and data with a finite loss between them"
        )
    path = _measure(objective, t, torch.stack([_bezier(first, bend, last, s) for s in t.tolist()]))
    return Path(path.t, path.losses, path.points, bend)


def spherical_path(
    start: nn.Module,
    end: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    groups: Sequence[Sequence[str]] | None = None,
    points: int = 21,
) -> Path:
    """The loss on the great circle between two scale-invariant networks.

    Args:
        start: as for `linear_path`.
        end: as for `linear_path`.
        loss_fn: as for `linear_path`.
        data: as for `linear_path`.
        groups: names of the parameters that turn together, such as ``[group.names for group in find_scale_groups(…)]``;
            others go straight. None turns all trainable parameters as one vector.
        points: as for `linear_path`.

    Raises:
        ValueError: as `linear_path`, or a group that is unknown, shares a parameter, is zero, or opposite at the ends.

    >>> start, end = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    >>> start.weight.data, end.weight.data = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> path = spherical_path(start, end, nn.functional.mse_loss, (torch.ones(1, 2), torch.ones(1, 1)), points=3)
    >>> path.points.norm(dim=1)
    tensor([3.0000, 3.0000, 3.0000])
    """
    objective, first, last = _ends(start, end, loss_fn, data)
    t = _parameter(first, points)
    sizes = [param.numel() for param in objective.params.values()]
    places = dict(zip(objective.params, torch.split(torch.arange(len(first)), sizes), strict=True))
    free = set(places)
    for group in groups or ():
        for name in [group] if isinstance(group, str) else group:
            if name not in free or isinstance(group, str):
                wrong = "a name, not a group" if isinstance(group, str) else "named twice"
                wrong = wrong if name in places else "not a trainable parameter"
                raise ValueError(f"groups: {name!r} is {wrong}; lists of the start network's parameters expected")
            free.remove(name)
    spheres = [torch.arange(len(first))]
    if groups is not None:
        spheres = [torch.cat([places[name] for name in group]) for group in groups if len(group)]
    rows = torch.stack([torch.lerp(first, last, s) for s in t])
    for sphere in spheres:
        rows[:, sphere] = _turn(first[sphere], last[sphere], t)
    return _measure(objective, t, rows)


def _turn(first: Tensor, last: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation (points, P): |θ| linear in t, the angle too."""
    lengths = first.norm(), last.norm()
    if not (lengths[0] > 0 and lengths[1] > 0):
        raise ValueError("a group is zero at one end and has no direction there: leave it out of groups")
    u, v = first / lengths[0], last / lengths[1]
    # atan2 keeps its digits at small angles, where acos loses half of them
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    if (u + v).norm() < 1e-3:
        raise ValueError(
            "a group points the opposite way at the other end, so no great circle is the shortest: go by a third point"
        )
    across = v - (u @ v) * u
    across = across / across.norm().clamp_min(torch.finfo(u.dtype).tiny)
    s = t.unsqueeze(1)
    turned: Tensor = torch.cos(s * angle) * u + torch.sin(s * angle) * across
    return torch.lerp(lengths[0], lengths[1], s) * turned


def _endless(data: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
    while True:
        yield from batches_of(data, device)


def _bezier(first: Tensor, bend: Tensor, last: Tensor, t: float) -> Tensor:
    return (1 - t) ** 2 * first + 2 * t * (1 - t) * bend + t**2 * last


def _ends(start: nn.Module, end: nn.Module, loss_fn: LossFunction, data: Any) -> tuple[Objective, Tensor, Tensor]:
    objective = Objective(start, loss_fn, data)
    ours, theirs = (dict(net.named_parameters()) for net in (start, end))
    if {name: p.shape for name, p in ours.items()} != {name: p.shape for name, p in theirs.items()}:
        raise ValueError("the networks' parameters differ in name or shape: give two of one architecture")
    for name in ours.keys() - objective.params.keys():
        if not torch.equal(ours[name], theirs[name].to(ours[name])):
            raise ValueError(
                f"{name} is frozen in the start network and has other values in the end, where no path leads then: let "
                "it be trainable, or train both networks with one"
            )
    last = torch.cat([theirs[name].detach().reshape(-1).to(objective.theta) for name in objective.params])
    for name, module in start.named_modules():
        if isinstance(module, _NormBase) and not module.training and module.running_mean is not None:
            raise ValueError(
                f"{name or 'the network'} uses running statistics, which belong to the ends of the path only: "
                "call start.train(), so that every point has those of its batches"
            )
    return objective, objective.theta, last


def _parameter(like: Tensor, points: int) -> Tensor:
    if points < 2:
        raise ValueError(f"points={points}: at least the two ends expected")
    return torch.linspace(0, 1, points, dtype=like.dtype, device=like.device)


def _measure(objective: Objective, t: Tensor, points: Tensor) -> Path:
    return Path(t, torch.stack([objective.value(theta) for theta in points]), points)
