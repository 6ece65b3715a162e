r"""Learning-rate schedules as pure functions k -> ηₖ that compose, and their adapter to torch.

With t = k/K (seed 004, "Gradient descent: learning rate"):

    constant       η₀
    linear         η₀ (1 - t)
    exponential    η₀ e^{-t}, whose K is a time constant: η_K = 0.368 η₀
    stair          η₀ γ^⌊S t⌋
    sigmoid        η₀ (σ(t) - σ(1))/(σ(0) - σ(1)),  σ(t) = 1/(1 + e^{c(t - t₀)})
    trapezoid      a ramp up, a plateau, a ramp down
    repeat         another schedule again and again
    warmup         a linear rise to another schedule's first value, then that schedule

The formulas of constant, linear and exponential are the lecture's. Of its figure of eight shapes only the names are
left (constant, exp, str, sig, rep, trap, str+, sig+): the others are defined here, and `LECTURE_SHAPES` has all eight.
"str" is read as *straight*, which is `linear`; the other reading is `stair`. Torch has no sigmoid, no repetition of an
arbitrary shape and no trapezoid, and no schedule as a function of k alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LECTURE_SHAPES",
    "Schedule",
    "ScheduleLR",
    "constant",
    "exponential",
    "linear",
    "repeat",
    "sigmoid",
    "stair",
    "trapezoid",
    "warmup",
]


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every step: ``schedule(k)``, k >= 0; fractions of a step are allowed.

    Attributes:
        rate: ηₖ for 0 <= k <= length.
        length: K, the last step with a rate of its own: later ones keep η_K. Infinite for schedules without an end.
        knots: steps inside (0, K) at which the formula changes.

    >>> cosine = Schedule(lambda k: 0.05 * (1 + math.cos(math.pi * k / 100)), 100)
    >>> [round(warmup(cosine, 10)(k), 3) for k in (0, 5, 10, 60, 110, 999)]
    [0.0, 0.05, 0.1, 0.05, 0.0, 0.0]
    """

    rate: Callable[[float], float]
    length: float = math.inf
    knots: tuple[float, ...] = ()

    def __call__(self, k: float) -> float:
        if not k >= 0:
            raise ValueError(f"step {k}: a schedule starts at step 0")
        return self.rate(min(k, self.length))

    def scheduler(self, optimizer: Optimizer, *, last_epoch: int = -1) -> ScheduleLR:
        """The adapter for ``optimizer``: call its ``step()`` after each of the optimizer's."""
        return ScheduleLR(optimizer, self, last_epoch=last_epoch)


class ScheduleLR(LRScheduler):
    """A `Schedule` as a scheduler of torch: after k calls of ``step()`` the learning rate is ηₖ.

    A group whose rate differs from the optimizer's own (its ``defaults``) keeps that ratio to ηₖ. The state holds no
    function: it loads with ``weights_only=True``, into an adapter of the same schedule.

    >>> import torch
    >>> optimizer = torch.optim.SGD([{"params": torch.zeros(1)}, {"params": torch.zeros(1), "lr": 0.01}], lr=0.1)
    >>> scheduler = linear(0.1, 4).scheduler(optimizer)
    >>> optimizer.step()
    >>> scheduler.step()
    >>> [round(lr, 5) for lr in scheduler.get_last_lr()]
    [0.075, 0.0075]
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, *, last_epoch: int = -1) -> None:
        self.schedule = schedule
        own = float(optimizer.defaults["lr"])
        initial = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        if own == 0 and any(initial):
            raise ValueError(
                "the optimizer's lr is 0 but a group's is not, so they have no ratio: give it a positive lr"
            )
        self.ratios = [lr / own if own else 1.0 for lr in initial]
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        lr = self.schedule(self.last_epoch)
        return [lr * ratio for ratio in self.ratios]

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "schedule"}


def _check(K: float, name: str = "K") -> None:
    if not 0 < K < math.inf:
        raise ValueError(f"{name} is {K}: it must be a positive number of steps")


def constant(eta0: float) -> Schedule:
    """ηₖ = η₀. torch: a scheduler is not needed; `ConstantLR(factor=1)`.

    >>> constant(0.1)(1000)
    0.1
    """
    return Schedule(lambda k: eta0)


def linear(eta0: float, K: float, *, eta_end: float = 0.0) -> Schedule:
    """ηₖ = η₀ (1 - k/K) + η_end k/K. torch: `LinearLR(1, eta_end/eta0, K)`, `PolynomialLR(K, power=1)`.

    >>> [linear(1.0, 10)(k) for k in (0, 5, 10, 20)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _check(K)
    return Schedule(lambda k: eta0 * (1 - k / K) + eta_end * (k / K), K)


def exponential(eta0: float, K: float) -> Schedule:
    """ηₖ = η₀ e^{-k/K}, without end. torch: `ExponentialLR(gamma=exp(-1/K))`, so gamma 0.9 is K = 9.49.

    >>> round(exponential(0.01, -1 / math.log(0.9))(20), 6)  # the lecture's example after its 20 epochs
    0.001216
    """
    _check(K)
    return Schedule(lambda k: eta0 * math.exp(-k / K))


def stair(eta0: float, K: float, *, steps: int = 4, gamma: float = 0.5) -> Schedule:
    """ηₖ = η₀ γ^⌊S k/K⌋ with S = ``steps`` drops by γ. torch: `StepLR(step_size=K/S, gamma=gamma)`.

    >>> [stair(1.0, 40)(k) for k in (0, 9, 10, 39, 40)]
    [1.0, 1.0, 0.5, 0.125, 0.0625]
    """
    _check(K)
    if steps < 1:
        raise ValueError(f"a stair of {steps} steps: it needs at least 1")
    # k·S/K, in this order, is exact for whole k, S and K/S: no drop is a step late.
    return Schedule(
        lambda k: eta0 * gamma ** math.floor(k * steps / K), K, tuple(K * i / steps for i in range(1, steps))
    )


def sigmoid(eta0: float, K: float, *, c: float = 10.0, t0: float = 0.5, eta_end: float = 0.0) -> Schedule:
    """A falling logistic curve from η₀ to η_end, steepest at t₀ K with steepness c. Not in torch.

    >>> [round(sigmoid(1.0, 10)(k), 3) for k in (0, 2.5, 5, 7.5, 10)]
    [1.0, 0.93, 0.5, 0.07, 0.0]
    """
    _check(K)
    if not c > 0:
        raise ValueError(f"c is {c}: the sigmoid's steepness must be positive")

    def s(t: float) -> float:
        return (1 - math.tanh(c * (t - t0) / 2)) / 2  # 1/(1 + e^{c(t - t₀)}), which overflows for large c

    def rate(k: float) -> float:
        share = (s(k / K) - s(1.0)) / (s(0.0) - s(1.0))
        return eta_end + (eta0 - eta_end) * share

    return Schedule(rate, K)


def trapezoid(
    eta0: float,
    K: float,
    *,
    up: float = 0.1,
    down: float = 0.2,
    eta_start: float = 0.0,
    eta_end: float = 0.0,
) -> Schedule:
    """Warmup-stable-decay: η_start to η₀ in the share ``up`` of K, a plateau, then to η_end in the share ``down``.

    torch: only as `SequentialLR` of three schedulers.

    >>> [trapezoid(1.0, 100)(k) for k in (0, 5, 10, 80, 90, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    _check(K)
    if not (up >= 0 and down >= 0 and up + down <= 1):
        raise ValueError(f"ramps of {up} and {down}: they must be shares >= 0 of the length, at most 1 together")
    top, edge = up * K, K - down * K

    def rate(k: float) -> float:
        if k < top:
            return eta_start + (eta0 - eta_start) * (k / top)
        if k <= edge:
            return eta0
        return eta_end + (eta0 - eta_end) * ((K - k) / (K - edge))

    return Schedule(rate, K, tuple(k for k in (top, edge) if 0 < k < K))


def repeat(schedule: Schedule, times: int) -> Schedule:
    """``schedule`` so many times, each starting at its step 0 (warm restarts); the last one keeps its end.

    torch: for the cosine only, `CosineAnnealingWarmRestarts`.

    Raises:
        ValueError: a schedule without end, or less than one repetition.

    >>> saw = repeat(linear(1.0, 10), 3)
    >>> [saw(k) for k in (0, 5, 10, 15, 20, 30)]
    [1.0, 0.5, 1.0, 0.5, 1.0, 0.0]
    """
    L = schedule.length
    if math.inf == L:
        raise ValueError("a schedule without end cannot be repeated: give it a length, as Schedule(rate, length) does")
    if times < 1:
        raise ValueError(f"{times} repetitions: at least 1 is needed")

    def rate(k: float) -> float:
        return schedule(L) if k >= times * L else schedule(k % L)

    inner = (i * L + knot for i in range(times) for knot in (0.0, *schedule.knots))
    return Schedule(rate, times * L, tuple(knot for knot in inner if knot))


def warmup(schedule: Schedule, steps: float, *, start: float = 0.0) -> Schedule:
    """From ``start``·η₀ linearly to η₀ = ``schedule(0)`` in so many steps, then ``schedule`` from its step 0.

    torch: `SequentialLR` of `LinearLR(start, total_iters=steps)`, which refuses start = 0, and the other one.

    >>> [warmup(linear(1.0, 10), 4)(k) for k in (0, 2, 4, 9, 14)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check(steps, "steps")

    def rate(k: float) -> float:
        if k < steps:
            return schedule(0) * (start + (1 - start) * (k / steps))
        return schedule(k - steps)

    return Schedule(rate, steps + schedule.length, (steps, *(steps + knot for knot in schedule.knots)))


LECTURE_SHAPES: Mapping[str, Callable[[float, float], Schedule]] = {
    "constant": lambda eta0, K: constant(eta0),
    "exp": exponential,
    "str": linear,
    "sig": sigmoid,
    "rep": lambda eta0, K: repeat(linear(eta0, K / 4), 4),
    "trap": trapezoid,
    "str+": lambda eta0, K: warmup(linear(eta0, 0.9 * K), 0.1 * K),
    "sig+": lambda eta0, K: warmup(sigmoid(eta0, 0.9 * K), 0.1 * K),
}
"""The names of the lecture's figure -> (η₀, K) -> schedule; a plus makes the first tenth of K a warmup."""
