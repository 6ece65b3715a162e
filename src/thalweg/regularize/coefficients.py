"""How a penalty's coefficient changes with time: pure functions of the number t of optimizer steps taken.

A schedule gives a factor of the penalty's own coefficient; those made here can be pickled, and penalties with them.
`srip_table` is the one published with SRIP (Bansal, Chen,
Wang 2018, and their training scripts): its factors multiply the base coefficient, not each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial

__all__ = ["SRIP_CIFAR", "SRIP_IMAGENET", "Schedule", "constant", "ramp", "srip_table", "stair"]

Schedule = Callable[[int], float]

# Factors after so many whole epochs. The scripts count epochs from 1 and compare with >.
SRIP_CIFAR = {20: 1e-3, 50: 1e-4, 70: 1e-6, 120: 0.0}
SRIP_IMAGENET = {30: 1e-3, 50: 1e-4, 70: 1e-6, 120: 0.0}


def constant() -> Schedule:
    """1 at every step.

    >>> constant()(1000)
    1.0
    """
    return _one


def _one(step: int) -> float:
    return 1.0


def ramp(steps: int, *, start: float = 0.0) -> Schedule:
    """Linear from ``start`` to 1 in so many steps, then 1: lets a network find its feet before a penalty acts in full.

    Raises:
        ValueError: no step.

    >>> [ramp(4)(t) for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if steps < 1:
        raise ValueError(f"a ramp takes at least one step, got {steps}")
    return partial(_ramp, steps, start)


def _ramp(steps: int, start: float, step: int) -> float:
    return start + (1.0 - start) * min(step / steps, 1.0)


def stair(factors: Mapping[int, float]) -> Schedule:
    """1, then the factor of the last step reached.

    Args:
        factors: step from which a factor holds -> the factor.

    >>> [stair({2: 0.5, 3: 0.0})(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    starts = sorted(factors)
    values = [1.0, *(factors[start] for start in starts)]
    return partial(_stair, starts, values)


def _stair(starts: Sequence[int], values: Sequence[float], step: int) -> float:
    return values[bisect_right(starts, step)]


def srip_table(steps_per_epoch: int, *, factors: Mapping[int, float] = SRIP_CIFAR) -> Schedule:
    """The published schedule: 1e-3 after 20 epochs, 1e-4 after 50, 1e-6 after 70, 0 after 120.

    Args:
        steps_per_epoch: optimizer steps in an epoch.
        factors: whole epochs -> factor; ``SRIP_IMAGENET`` has its first change after 30.

    Raises:
        ValueError: no step in an epoch.

    >>> [srip_table(100)(t) for t in (0, 1999, 2000, 5000, 12000)]
    [1.0, 1.0, 0.001, 0.0001, 0.0]
    """
    if steps_per_epoch < 1:
        raise ValueError(f"an epoch has at least one step, got {steps_per_epoch}")
    return stair({epochs * steps_per_epoch: factor for epochs, factor in factors.items()})
