r"""Regimes: whether training on the sphere converges, settles in chaotic equilibrium, or diverges; and where each ends.

Seed 001, section 3.2: with the total effective learning rate (ELR) fixed, training converges for low values, is in
chaotic equilibrium for medium ones and diverges for high ones. The seed tells regimes apart by eye; here four numbers
of a run do, read off its last half, with d = 1 - cos between consecutive iterates:

    step        median of d over the last quarter: a large d is divergence, whatever the loss does
    fall        loss in the middle over loss at the end: above 1 while training converges, 1 in equilibrium
    escape      largest rise of the smoothed loss: runs near a boundary leave a minimum and return
    wandering   Σ 2d, the mean square angle of a random walk of these steps. By (9) group ELRs relax at a rate of ESS²
                a step, so that equilibrium needs a wandering of 1: a run with less is falling slowly, or has not moved

What fits no regime is a "transition", and what the arithmetic spoiled is "invalid": neither is forced into a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.invariance.equilibrium import cosine_distance

__all__ = ["Boundaries", "Boundary", "History", "Label", "Regime", "bisect_regimes", "classify_regime"]

Label = Literal["convergence", "chaotic equilibrium", "divergence", "transition", "invalid"]

DIVERGENT_STEP = 0.5  # 1 - cos of 60 degrees. Digits networks: 0.05 at most in equilibrium, 0.64 to 1 in divergence
EQUILIBRIUM_STEP = 1 - 0.5**0.5  # 1 - cos at ESS = 1, 45 degrees: a step as long as the radius
DIVERGENT_LEVEL = 0.5  # loss over that of random directions. On the toy this ratio *is* 1 - cos: the same threshold
FALLING = 1.5  # middle over end. On digits networks every run that converged in 200 epochs fell faster
FLAT = 0.1  # |fall - 1| of a run in equilibrium
ESCAPED = 1.5  # rise of the loss averaged over a 16th of the run; in equilibrium single epochs vary by 10 to 30 %
ARRIVED = 0.01  # of the loss at the start: below it a loss is at its minimum, and its rises are no escapes
WANDERED = 1.0  # radians squared
NEAR_EPS = 10.0  # variance over eps; at 10 the normalization divides by a deviation 5 per cent too large
RECORDS = 16  # the shortest history: eight windows of one record in its last half
WINDOWS = 8


@dataclass(frozen=True)
class History:
    """What a run leaves behind for `classify_regime`; the sequences are evenly spaced over the run, in any number.

    Attributes:
        losses: training loss, at least 16 records.
        cosine_distances: 1 - cos between consecutive *iterates* (not records); this or ``ess`` is needed.
        ess: effective step sizes of the whole vector, where there is no weight decay.
        steps: iterations of the run; by default the number of losses.
        random_loss: loss of random directions, with which the seed's third regime is compared ("random guessing").
        variances: smallest variance that a normalization divides by: over the layers, each layer's median channel, so
            that one dead channel does not count.
        eps: what that normalization adds to it.
    """

    losses: Sequence[float]
    cosine_distances: Sequence[float] | None = None
    ess: Sequence[float] | None = None
    steps: int | None = None
    random_loss: float | None = None
    variances: Sequence[float] | None = None
    eps: float | None = None


@dataclass(frozen=True)
class Regime:
    """A label, and why.

    Attributes:
        label: "convergence", "chaotic equilibrium", "divergence", "transition" or "invalid".
        evidence: the numbers that were measured: step, fall, escape, wandering and, where known, level, variance.
        reason: which of them decided, as a sentence.
    """

    label: Label
    evidence: Mapping[str, float]
    reason: str


def classify_regime(history: History) -> Regime:
    """Name the regime of a run at one effective learning rate.

    Raises:
        ValueError: a history too short, without step lengths, with negative losses, or with variances but no eps.

    >>> falling = History(losses=[0.9**t for t in range(100)], ess=[1e-3] * 100)
    >>> classify_regime(falling).label, classify_regime(falling).reason
    ('convergence', 'the loss fell 49.3 times from middle to end (falling: above 1.5)')
    """
    losses, distances = _array(history.losses, "losses"), _distances(history)
    if (losses < 0).any():
        raise ValueError(
            f"losses must be >= 0, with a minimum near 0, or their ratios mean nothing; got {losses.min()}"
        )
    for name, values in (("loss", losses), ("step length", distances)):
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            return Regime("invalid", {"record": float(at)}, f"the {name} is not finite at record {at}")
    evidence = _measure(history, losses, distances)
    label, reason = _decide(evidence)
    return Regime(label, evidence, reason)


def _measure(history: History, losses: NDArray[np.float64], distances: NDArray[np.float64]) -> dict[str, float]:
    """The numbers that decide; see the module's docstring."""
    half, start = losses[len(losses) // 2 :], float(np.median(losses[: max(1, len(losses) // 20)]))
    windows = np.array_split(half, WINDOWS)
    middle, end = (float(np.median(np.concatenate(part))) for part in (windows[:2], windows[-2:]))
    means = np.maximum([window.mean() for window in windows], max(ARRIVED * start, np.finfo(np.float64).tiny))
    evidence = {
        "step": float(np.median(distances[-max(1, len(distances) // 4) :])),
        "fall": middle / end if end > 0 else math.inf,
        "escape": float((means / np.minimum.accumulate(means)).max()),
        "wandering": float(distances[len(distances) // 2 :].mean()) * (history.steps or len(losses)),
        "remaining": end / start if start > 0 else 0.0,
    }
    if history.random_loss is not None:
        evidence["level"] = end / history.random_loss
    if history.variances is not None:
        if history.eps is None:
            raise ValueError("variances need the eps of their normalization: give History(..., eps=...)")
        variances = _array(history.variances, "variances")
        evidence["variance"] = float(variances[len(variances) // 2 :].min()) / history.eps
    return evidence


def _decide(evidence: Mapping[str, float]) -> tuple[Label, str]:
    """The rules, in order: arithmetic, step length, escapes, slope."""
    step, fall, escape, wandering = (evidence[name] for name in ("step", "fall", "escape", "wandering"))
    level, variance = evidence.get("level"), evidence.get("variance")
    if variance is not None and not variance >= NEAR_EPS:
        return (
            "invalid",
            f"a normalized variance fell to {variance:.3g} eps (needed: {NEAR_EPS:g}): not scale-invariant",
        )
    if step > DIVERGENT_STEP:
        if level is None or level >= DIVERGENT_LEVEL:
            return "divergence", f"1 - cos of a step is {step:.3g} (divergent: above {DIVERGENT_STEP:g})"
        return (
            "transition",
            f"1 - cos of a step is {step:.3g}, but the loss is {level:.3g} of that of random directions",
        )
    if step > EQUILIBRIUM_STEP:
        return "transition", f"1 - cos of a step is {step:.3g}, between {EQUILIBRIUM_STEP:.3f} and {DIVERGENT_STEP:g}"
    if escape > ESCAPED:
        return "transition", f"the loss escaped: it rose {escape:.3g} times within the last half (allowed: {ESCAPED:g})"
    if fall > FALLING:
        return "convergence", f"the loss fell {fall:.3g} times from middle to end (falling: above {FALLING:g})"
    if fall > 1 + FLAT and wandering < WANDERED:
        return (
            "convergence",
            f"the loss fell slowly, {fall:.3g} times from middle to end, in steps of 1 - cos {step:.2g}",
        )
    if evidence["remaining"] <= ARRIVED and wandering < WANDERED:
        return "convergence", f"{evidence['remaining']:.2g} of the loss remains, and the steps lead nowhere any more"
    if abs(fall - 1) >= FLAT:
        return "transition", f"the loss fell {fall:.3g} times from middle to end: neither falling nor flat"
    if wandering < WANDERED:
        return "transition", f"the loss is flat, but with a wandering of {wandering:.2g} (needed: 1): train longer"
    if level is not None and level >= DIVERGENT_LEVEL:
        return "transition", f"the loss is flat, but at {level:.3g} of that of random directions"
    return (
        "chaotic equilibrium",
        f"the loss is flat (middle over end {fall:.3g}) while steps of 1 - cos {step:.2g} go on",
    )


def _distances(history: History) -> NDArray[np.float64]:
    if history.cosine_distances is not None:
        return _array(history.cosine_distances, "cosine_distances")
    if history.ess is None:
        raise ValueError("a regime shows in its steps: give History(..., cosine_distances=...) or ess=...")
    return np.array([cosine_distance(float(ess)) for ess in _array(history.ess, "ess")])


def _array(values: Sequence[float], name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < RECORDS:
        raise ValueError(f"{name} must be a list of at least {RECORDS} numbers, got shape {array.shape}")
    return array


# ---- the two boundaries ----


@dataclass(frozen=True)
class Boundary:
    """Where one regime ends and the next begins, on the axis of ELR.

    Attributes:
        lower: the highest ELR that is certainly below the boundary.
        upper: the lowest ELR certainly above it.
        undecided: ELRs between the two that were trained: transitions, invalid runs, runs that contradict one
            another. Without any, upper/lower is at most the factor asked for; otherwise each edge of the zone is.
    """

    lower: float
    upper: float
    undecided: tuple[float, ...]

    @property
    def estimate(self) -> float:
        """Geometric mean of both ends.

        >>> Boundary(1.0, 4.0, ()).estimate
        2.0
        """
        return math.sqrt(self.lower * self.upper)


@dataclass(frozen=True)
class Boundaries:
    """Both boundaries, and every run behind them.

    Attributes:
        convergence: the end of convergence; None where the range shows no such boundary.
        divergence: the beginning of divergence; None where the range shows none.
        regimes: (ELR, regime) of every training, in order of ELR.
    """

    convergence: Boundary | None
    divergence: Boundary | None
    regimes: tuple[tuple[float, Regime], ...]

    @property
    def trainings(self) -> int:
        """How many runs it took."""
        return len(self.regimes)


def bisect_regimes(
    train: Callable[[Sequence[float]], Sequence[History]],
    low: float,
    high: float,
    *,
    factor: float = 2.0,
    points: int = 7,
) -> Boundaries:
    """Find the ELRs at which convergence ends and divergence begins, each to a factor.

    A sweep of ``points`` logarithmically spaced ELRs comes first, then the geometric middle of every gap at a boundary
    that is wider than ``factor``, both boundaries in one batch. A boundary splits the decided runs where the fewest lie
    on the wrong side, so a mislabelled run far away does no harm; "transition" and "invalid" count for neither side,
    and a zone of them is closed in from both ends. An equilibrium that falls between two points of the sweep is found
    too, if it is wider than ``factor``.

    Args:
        train: runs training at each of the ELRs, as one batch if it likes, and returns their histories in order.
        low: lowest ELR of the sweep, > 0.
        high: highest ELR.
        factor: > 1, ratio of neighbouring ELRs at which the search ends.
        points: ELRs in the first sweep, at least 2.

    Returns:
        Both boundaries; halving log(factor) takes about two more trainings.

    >>> def train(elrs):  # converges below 0.02, diverges above 0.3
    ...     falls = [0.9 if elr < 0.02 else 1.0 for elr in elrs]
    ...     return [History([fall**t for t in range(99)], [0.1 + (elr > 0.3)] * 99) for elr, fall in zip(elrs, falls)]
    >>> found = bisect_regimes(train, 1e-4, 10.0, factor=1.5)
    >>> round(found.convergence.estimate, 3), round(found.divergence.estimate, 2), found.trainings
    (0.022, 0.31, 13)
    """
    if not (0 < low < high < math.inf and factor > 1 and points >= 2):
        raise ValueError(
            f"expected 0 < low < high, factor > 1 and points >= 2, got low={low}, high={high}, factor={factor}, "
            f"points={points}"
        )
    found: dict[float, Regime] = {}
    wanted = [float(elr) for elr in np.geomspace(low, high, points)]
    while wanted:
        histories = train(wanted)
        if len(histories) != len(wanted):
            raise ValueError(f"train was given {len(wanted)} ELRs and returned {len(histories)} histories")
        found.update(zip(wanted, map(classify_regime, histories), strict=True))
        labels = {elr: found[elr].label for elr in sorted(found)}
        convergence = _bracket(labels, below=("convergence",), above=("chaotic equilibrium", "divergence"))
        divergence = _bracket(labels, below=("convergence", "chaotic equilibrium"), above=("divergence",))
        wanted = sorted({elr for bracket in (convergence, divergence) for elr in _middles(bracket, factor)})
    return Boundaries(convergence, divergence, tuple((elr, found[elr]) for elr in labels))


def _bracket(labels: Mapping[float, Label], *, below: Sequence[Label], above: Sequence[Label]) -> Boundary | None:
    """The best split of ELRs into those below and those above; equally good ones are joined into one zone."""
    decided = [(elr, label in above) for elr, label in labels.items() if label in below or label in above]
    wrong = [
        sum(is_above for _, is_above in decided[:k]) + sum(not is_above for _, is_above in decided[k:])
        for k in range(len(decided) + 1)
    ]
    best = [k for k in range(1, len(decided)) if wrong[k] == min(wrong)]
    if not best:
        return None
    lower, upper = decided[best[0] - 1][0], decided[best[-1]][0]
    return Boundary(lower, upper, tuple(elr for elr in labels if lower < elr < upper))


def _middles(bracket: Boundary | None, factor: float) -> list[float]:
    """Geometric middles of the gaps at the edges of a bracket that are wider than ``factor``."""
    if bracket is None:
        return []
    ends = [bracket.lower, *bracket.undecided, bracket.upper]
    gaps = {(ends[0], ends[1]), (ends[-2], ends[-1])}
    return [math.sqrt(a * b) for a, b in gaps if b / a > factor * (1 + 1e-9)]  # not for a rounding error
