r"""Cycles: the periodic behaviour of scale-invariant weights under weight decay, found in a history of norm and loss.

Seed 001, section 3.1, figure 4, corollary 1. A period has three phases:

    A   the loss is high, gradients win over weight decay: the loss falls, the norm grows, the ELR falls
    B   the loss is low, weight decay wins: the norm falls, the ELR grows
    C   the ELR has become too high: the loss rises, a little before the norm does, until the grown norm stops it

Cycles are found on ln ρ², as turning points between which it swings by at least 0.25 (a zigzag): the loss alone misses
the cycles of a large ηλ, whose spikes are no longer clean. A cycle runs from one peak of the loss to the next: A to the
norm's top, B to the onset, where the loss leaves for good twice its level in B, C to the next peak. The period is
measured between bottoms of the norm and predicted by corollary 1 as ln(ρ_max²/ρ_min²)/2ηλ, the length of phase B
without gradients: 0.94 to 0.99 of the measured one for ηλ ≤ 1e-3, 0.5 at 0.03, where gradients still count in B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from thalweg.invariance.equilibrium import (
    EquilibriumInterval,
    decay_time,
    equilibrium_interval,
    implied_effective_grad_norm,
)

__all__ = ["Cycle", "Cycles", "Verdict", "find_cycles", "zigzag"]

Verdict = Literal["periodic", "equilibrium", "divergent", "undecided"]

ONSET = 2.0  # times the loss of late phase B: above its noise, far below a peak (10 to 1000 times)
PERCENTILES = (5.0, 95.0)
RECORDS = 16  # the shortest history: quarters of four records
STILL = 0.1  # of the swing: a norm that drifts by less is at rest
TREND = 0.4  # drift over spread of the last half: 0.5 for a straight line, near 0 for noise
CONSTANT = 1e-6  # spread of ln ρ² that rounding in single precision makes


@dataclass(frozen=True)
class Cycle:
    """One period, in iterations.

    Attributes:
        bottom_before: the norm's minimum with which the period begins.
        start: peak of the loss after it: beginning of phase A.
        top: maximum of the norm: beginning of B.
        onset: where the loss leaves its low level: beginning of C.
        bottom: the norm's next minimum.
        end: the loss's next peak.
        predicted: ln(ρ²(top)/ρ²(bottom))/2ηλ (corollary 1); None if lr and wd were not given.
    """

    bottom_before: int
    start: int
    top: int
    onset: int
    bottom: int
    end: int
    predicted: float | None

    @property
    def period(self) -> int:
        """Iterations from bottom to bottom."""
        return self.bottom - self.bottom_before

    @property
    def phases(self) -> tuple[int, int, int]:
        """Lengths of phases A, B and C."""
        return self.top - self.start, self.onset - self.top, self.end - self.onset


@dataclass(frozen=True)
class Cycles:
    """What `find_cycles` found.

    Attributes:
        verdict: "periodic": the norm swings to the end, through one full period at least. "equilibrium": it rests
            in the last half. "divergent": it only grows there. "undecided": it still drifts, or turned only once.
        cycles: full periods, in order.
        bottoms: iterations of the norm's minima.
        period: median period, None without a full one.
        predicted_period: median of the predictions; None without a full period or without lr and wd.
        destabilization_elr: median ELR at the bottoms; on the sphere, convergence ends there.
        observed: smallest and largest ρ² in the last half.
        observed_percentiles: its 5th and 95th percentiles.
        interval: theorem 1 with the smallest and largest effective gradient norm of the run; None if unknown.
        percentile_interval: the same with their 5th and 95th percentiles; far narrower, and no bound.
    """

    verdict: Verdict
    cycles: tuple[Cycle, ...]
    bottoms: tuple[int, ...]
    period: float | None
    predicted_period: float | None
    destabilization_elr: float | None
    observed: tuple[float, float]
    observed_percentiles: tuple[float, float]
    interval: EquilibriumInterval | None
    percentile_interval: EquilibriumInterval | None


def find_cycles(
    norms: Sequence[float],
    losses: Sequence[float],
    *,
    lr: float | None = None,
    wd: float | None = None,
    effective_grad_norms: Sequence[float] | None = None,
    every: int = 1,
    swing: float = 0.25,
) -> Cycles:
    """Find the periods of training, their phases and their predicted length.

    Args:
        norms: ρ of the scale-invariant weights, one record every ``every`` iterations.
        losses: training loss at the same iterations.
        lr: η, constant.
        wd: λ > 0; with both, periods are predicted and theorem 1 gives its interval.
        effective_grad_norms: g̃, at the same iterations. Without them they follow from the norms by (4), if every step
            was recorded, was one of plain SGD (3), and the norms are precise enough (float64); otherwise no interval.
        every: iterations between records.
        swing: least change of ln ρ² between turning points.

    Raises:
        ValueError: histories of different or too small length, with numbers that are not finite, norms that are not
            positive or never change, negative losses, or one of lr and wd without the other.

    >>> wave = np.abs((np.arange(400) % 100) - 20.0) / 50  # bottoms at 20, 120, 220, 320
    >>> found = find_cycles(np.exp(wave), 1 / (0.01 + wave), lr=0.1, wd=0.1)
    >>> found.verdict, found.period, [cycle.bottom for cycle in found.cycles]
    ('periodic', 100.0, [120, 220, 320])
    """
    rho, loss = _checked(norms, "norms"), _checked(losses, "losses")
    if len(rho) != len(loss):
        raise ValueError(f"norms and losses must be recorded together, got {len(rho)} norms and {len(loss)} losses")
    if not (rho > 0).all():
        raise ValueError("norms must be positive: a weight of norm zero has no direction")
    if (loss < 0).any():
        raise ValueError(f"losses must be >= 0, or their ratios mean nothing; got {loss.min()}")
    if (lr is None) != (wd is None):
        raise ValueError("a period is predicted from lr and wd together: give both or neither")
    log = 2 * np.log(rho)
    if np.ptp(log) < CONSTANT:
        raise ValueError("the norm is constant, as on a sphere: cycles are cycles of the norm, which must be free")
    if not (swing > 0 and every >= 1):
        raise ValueError(f"expected swing > 0 and every >= 1, got swing={swing}, every={every}")

    turns = zigzag(log, swing)
    bottoms = [turns[k] for k in range(1, len(turns)) if log[turns[k]] < log[turns[k - 1]]]
    cycles = []
    for before, bottom in pairwise(bottoms):
        next_top = next((turn for turn in turns if turn > bottom), bottom + int(log[bottom:].argmax()))
        cycles.append(_cycle(log, loss, before, bottom, next_top, lr, wd, every))
    predictions = [cycle.predicted for cycle in cycles if cycle.predicted is not None]
    squared = rho[len(rho) // 2 :] ** 2
    raw, percentile = _intervals(rho, lr, wd, effective_grad_norms, every)
    return Cycles(
        verdict=_verdict(log, turns, bottoms, swing),
        cycles=tuple(cycles),
        bottoms=tuple(every * bottom for bottom in bottoms),
        period=float(np.median([cycle.period for cycle in cycles])) if cycles else None,
        predicted_period=float(np.median(predictions)) if predictions else None,
        destabilization_elr=float(np.median(lr / rho[bottoms] ** 2)) if bottoms and lr is not None else None,
        observed=(float(squared.min()), float(squared.max())),
        observed_percentiles=_pair(np.percentile(squared, PERCENTILES)),
        interval=raw,
        percentile_interval=percentile,
    )


def zigzag(values: Sequence[float] | NDArray[np.float64], swing: float) -> list[int]:
    """Indices of alternating maxima and minima between which ``values`` changes by at least ``swing``.

    The first may be where the record begins; the last is followed by a swing away from it: none is unfinished.

    >>> zigzag([0.0, 0.1, 3.0, 2.9, 1.0, 1.2, 5.0], swing=1.0)
    [0, 2, 4]
    """
    turns: list[int] = []
    low = high = 0
    rising: bool | None = None
    for i, value in enumerate(np.asarray(values, dtype=np.float64).tolist()):
        if value > values[high]:
            high = i
        if value < values[low]:
            low = i
        if rising is not False and values[high] - value >= swing:
            turns.append(high)
            rising, low, high = False, i, i
        elif rising is not True and value - values[low] >= swing:
            turns.append(low)
            rising, low, high = True, i, i
    return turns


def _cycle(
    log: NDArray[np.float64],
    loss: NDArray[np.float64],
    before: int,
    bottom: int,
    next_top: int,
    lr: float | None,
    wd: float | None,
    every: int,
) -> Cycle:
    """The phases of the period between two bottoms of the norm."""
    top = before + int(log[before:bottom].argmax())
    start = before + int(loss[before : top + 1].argmax())
    end = bottom + int(loss[bottom : next_top + 1].argmax())
    level = float(np.median(loss[(top + bottom) // 2 : bottom]))
    onset = top + int(np.flatnonzero(loss[top : end + 1] <= ONSET * level)[-1]) + 1  # not empty: half of B is below
    predicted = None
    if lr is not None and wd is not None:
        predicted = decay_time(lr, wd, float(np.exp(log[top] / 2)), float(np.exp(log[bottom] / 2)))
    before, start, top, onset, bottom, end = (every * i for i in (before, start, top, min(onset, end), bottom, end))
    return Cycle(before, start, top, onset, bottom, end, predicted)


def _verdict(log: NDArray[np.float64], turns: list[int], bottoms: list[int], swing: float) -> Verdict:
    half = log[len(log) // 2 :]
    spread, quarter = float(np.ptp(half)), len(half) // 2
    if spread < swing:
        drift = abs(float(half[quarter:].mean() - half[:quarter].mean()))
        return "undecided" if spread > STILL * swing and drift > TREND * spread else "equilibrium"
    turning = any(turn >= len(log) // 2 for turn in turns)
    if len(bottoms) > 1 and turning:
        return "periodic"
    return "divergent" if not turning and half[-1] - half[0] >= swing else "undecided"


def _intervals(
    rho: NDArray[np.float64],
    lr: float | None,
    wd: float | None,
    effective_grad_norms: Sequence[float] | None,
    every: int,
) -> tuple[EquilibriumInterval | None, EquilibriumInterval | None]:
    """Theorem 1 from the extremes of g̃, and from its percentiles."""
    if lr is None or wd is None:
        return None, None
    if effective_grad_norms is not None:
        g = _checked(effective_grad_norms, "effective_grad_norms")
    elif every == 1:
        g = implied_effective_grad_norm(lr, wd, torch.from_numpy(rho[:-1]), torch.from_numpy(rho[1:])).numpy()
        if not np.isfinite(g).all():
            return None, None
    else:
        return None, None
    raw = equilibrium_interval(lr, wd, float(g.min()), float(g.max()))
    return raw, equilibrium_interval(lr, wd, *_pair(np.percentile(g, PERCENTILES)))


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = values.tolist()
    return low, high


def _checked(values: Sequence[float], name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < RECORDS:
        raise ValueError(f"{name} must be a list of at least {RECORDS} numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name} are not finite from record {at} on: cut the history there; the run has diverged")
    return array
