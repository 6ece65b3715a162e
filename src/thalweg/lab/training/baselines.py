"""A random walk on the sphere with the step angles of another run: a baseline for the third regime of seed 001.

    w' = ρ (cos φ · w/ρ + sin φ · v),     v: a unit vector drawn isotropically among those at right angles to w

No gradient takes part: where the walk is after a while is a uniformly random direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.invariance.norm import joint_norm

__all__ = ["RandomWalk"]


class RandomWalk(Optimizer):
    """Turns all weights together by one given angle after another.

    Args:
        params: the weights on the sphere; together they are one vector.
        distances: 1 - cos φ of every step.
        elr: nominal, for the log.
        seed: of the directions; each step draws from a generator of its own, so that a resumed walk goes on as it was.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> RandomWalk([weight], [1.0], elr=0.1, seed=0).step()  # a right angle
    >>> weight.data.abs().round(decimals=4)
    tensor([4., 3.])
    """

    def __init__(self, params: Sequence[Tensor], distances: Sequence[float], *, elr: float, seed: int) -> None:
        super().__init__(params, {"lr": elr, "steps": 0})
        self.distances, self.seed = distances, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; gradients are not looked at.

        Raises:
            ValueError: the angles are used up.
        """
        (group,) = self.param_groups
        if group["steps"] >= len(self.distances):
            raise ValueError(f"step {group['steps'] + 1} of a walk of {len(self.distances)}: give more distances")
        distance, params = self.distances[group["steps"]], group["params"]
        draw = torch.Generator().manual_seed(self.seed + group["steps"])
        group["steps"] += 1
        drawn = [torch.randn(param.shape, generator=draw).to(param) for param in params]
        radius = float(joint_norm(params))
        along = sum(float((v * w).sum()) for v, w in zip(drawn, params, strict=True)) / radius**2
        for v, w in zip(drawn, params, strict=True):
            v.sub_(w, alpha=along)
        sine = (distance * (2 - distance)) ** 0.5
        scale = sine * radius / float(joint_norm(drawn))
        for v, w in zip(drawn, params, strict=True):
            w.mul_(1 - distance).add_(v, alpha=scale)
        rounding = radius / float(joint_norm(params))
        for w in params:
            w.mul_(rounding)
