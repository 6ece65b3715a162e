r"""Paths between two sets of scale-invariant weights, and the loss barrier on them.

    straight   θ(t) = (1 - t) θ₀ + t θ₁
    turning    each scale group turns along its own great circle from θ₀ to θ₁, and its norm goes straight
    barrier    max over 0 < t < 1 of L(t) - [(1 - t) L(0) + t L(1)]: negative where the loss is convex along the path

Losses have the batches' own statistics at every point. The straight path and the great circle of the *whole* vector,
|θ₀| = |θ₁|, lie in one plane and meet the same directions, so that a scale-invariant loss takes the same values on
both: only groups that turn by themselves make another path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from thalweg.lab.training.scale_invariant import Task, train_mode_loss

__all__ = ["Path", "barrier", "between", "path_losses"]

Path = Literal["straight", "turning"]


def between(start: Sequence[Tensor], end: Sequence[Tensor], t: float, path: Path = "straight") -> list[Tensor]:
    """The point at ``t`` of the path between lists of scale groups, each a vector.

    >>> east, north = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    >>> between([east], [north], 0.5), between([east], [north], 0.5, "turning")
    ([tensor([1., 1.])], [tensor([1.4142, 1.4142])])
    """
    if path == "straight":
        return [torch.lerp(a, b, t) for a, b in zip(start, end, strict=True)]
    return [_turned(a, b, t) for a, b in zip(start, end, strict=True)]


def _turned(a: Tensor, b: Tensor, t: float) -> Tensor:
    u, v = a / a.norm(), b / b.norm()
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # exact for small angles
    norm = torch.lerp(a.norm(), b.norm(), t)
    if angle < 1e-4:  # the chord is the arc
        return norm * torch.lerp(u, v, t)
    turned: Tensor = (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)
    return norm * turned


@torch.no_grad()
def path_losses(
    work: Task, start: Sequence[Tensor], end: Sequence[Tensor], path: Path = "straight", points: int = 11
) -> list[float]:
    """Training losses at ``points`` evenly spaced places from ``start`` to ``end``; the task's weights are kept.

    Args:
        work: the task whose images and network are used.
        start: weights in the order of ``work.invariant``.
        end: likewise.
        path: which way.
        points: both ends counted.
    """
    own = _packed(work, work.invariant)
    ends = _packed(work, start), _packed(work, end)
    losses = []
    for i in range(points):
        _put(work, between(*ends, i / (points - 1), path))
        losses.append(train_mode_loss(work.model, work.loss_fn, work.batches))
    _put(work, own)
    return losses


def _packed(work: Task, weights: Sequence[Tensor]) -> list[Tensor]:
    """One vector for each scale group."""
    device = work.batches.inputs.device  # those of a checkpoint lie on the CPU
    flat = iter(weights)
    return [torch.cat([next(flat).detach().flatten().to(device) for _ in group.names]) for group in work.groups]


def _put(work: Task, vectors: Sequence[Tensor]) -> None:
    params = iter(work.invariant)
    for group, vector in zip(work.groups, vectors, strict=True):
        own = [next(params) for _ in group.names]
        for param, part in zip(own, torch.split(vector, [param.numel() for param in own]), strict=True):
            param.copy_(part.view_as(param))


def barrier(losses: Sequence[float]) -> float:
    """The highest rise of the inner losses above the straight line between both ends.

    >>> barrier([0.0, 3.0, 2.0]), barrier([1.0, 0.5, 1.0])
    (2.0, -0.5)
    """
    last = len(losses) - 1
    return max(losses[i] - (1 - i / last) * losses[0] - i / last * losses[-1] for i in range(1, last))
