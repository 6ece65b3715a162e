"""Claims: a sentence of a seed, judged by the runs just made.

A claim compares a method that a source says is better, a, with its rival, b, on the same seeds. With the differences
dₛ = aₛ - bₛ over n seeds, mean d̄ and standard deviation σ (n - 1 in the denominator):

    effect = d̄,     interval = d̄ ± t σ / √n,     t: 97.5% point of Student's distribution with n - 1 degrees of freedom

The verdict is "holds" when the whole interval lies on the claimed side of zero, "fails" when it lies wholly on the
other, else "undecided". A run that did not survive (diverged, or dead) has no number to average; it comes as NaN and is
judged, never dropped in silence:

    ========================  =====================================================================================
    on some seed              then
    ========================  =====================================================================================
    only a was run, or b      undecided: the comparison is incomplete
    a lost its run, b did not the claim fails: what does not survive is not better. No effect is computed
    b lost its run, a did not the seed is left out, which can only favour b: "holds" stands, "fails" becomes undecided
    both of the above         undecided: each failed where the other did not
    both lost their runs      undecided: the claim says something about a seed that has nothing to compare
    ========================  =====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Claim", "Verdict", "paired"]

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One sentence of a source and what the data say of it.

    Attributes:
        text: the claim, in English, as a sentence that can be wrong.
        source: seed and section.
        verdict: "holds" or "fails" when the 95% interval excludes the other, else "undecided".
        effect: the measured effect, in ``unit``; None when it could not be computed.
        interval: its 95% interval, None with fewer than two seeds.
        seeds: how many seeds the effect rests on.
        printed: what the source prints for the same quantity, as text; "" if nothing.
        unit: what the effect is (for example "test MSE, CSGD minus SGD").
        reason: why undecided, or what a reader must know; "" if nothing.
    """

    text: str
    source: str
    verdict: Verdict
    effect: float | None
    interval: tuple[float, float] | None
    seeds: int
    unit: str
    printed: str = ""
    reason: str = ""

    @property
    def measured(self) -> str:
        """Effect and interval with as many digits as the interval supports: "-2.13 [-2.44, -1.82]".

        >>> Claim("", "", "holds", -2.1273, (-2.4391, -1.8155), 3, "").measured
        '-2.13 [-2.44, -1.82]'
        >>> Claim("", "", "undecided", None, None, 0, "").measured
        'not measured'
        """
        if self.effect is None:
            return "not measured"
        if self.interval is None:
            return f"{self.effect:.3g}"
        shape = _format(self.effect, *self.interval)
        return f"{self.effect:{shape}} [{self.interval[0]:{shape}}, {self.interval[1]:{shape}}]"

    @property
    def reading(self) -> str:
        """One line for readers: what was measured, its interval, on how many seeds.

        >>> Claim("", "", "holds", -2.1, (-2.41, -1.79), 3, "CSGD minus SGD").reading
        'CSGD minus SGD: -2.10 [-2.41, -1.79] over 3 seeds'
        """
        over = "" if self.effect is None else f" over {self.seeds} seed{'' if self.seeds == 1 else 's'}"
        return f"{self.unit}: {self.measured}{over}"


def paired(
    claimed: Literal["less", "greater"],
    a: Mapping[int, float],
    b: Mapping[int, float],
    *,
    text: str,
    source: str,
    unit: str,
    printed: str = "",
) -> Claim:
    """Judge "a is `claimed` than b" on the seeds of both; the module's docstring has the rule.

    Args:
        claimed: on which side of b the source puts a.
        a: seed -> number of the method claimed to be better; NaN or Inf where its run did not survive.
        b: the same of its rival.
        text: the claim, as a sentence that can be wrong.
        source: seed and section.
        unit: what a - b is.
        printed: what the source prints for it.

    Returns:
        The claim with its verdict.

    Raises:
        ValueError: ``claimed`` is neither "less" nor "greater".

    >>> judged = paired("less", {0: 1.0, 1: 1.1, 2: 0.9}, {0: 2.0, 1: 2.0, 2: 2.0}, text="", source="", unit="a - b")
    >>> judged.verdict, judged.reading
    ('holds', 'a - b: -1.00 [-1.25, -0.75] over 3 seeds')
    """
    if claimed not in ("less", "greater"):
        raise ValueError(
            f"a claim is 'less' or 'greater', not {claimed!r}: name the side of b that a is claimed to be on"
        )
    shared = sorted(a.keys() & b.keys())
    lost_a = {seed for seed in shared if not math.isfinite(a[seed])}
    lost_b = {seed for seed in shared if not math.isfinite(b[seed])}
    differences = [a[seed] - b[seed] for seed in shared if seed not in lost_a | lost_b]
    effect, interval = _mean_and_interval(differences)
    missing = sorted(a.keys() ^ b.keys())

    verdict: Verdict = "undecided"
    if missing or not shared:
        reason = f"incomplete: {_named(missing)} ran for one method only" if missing else "there are no runs"
    elif lost_a & lost_b:
        reason = f"neither method survived {_named(lost_a & lost_b)}"
    elif lost_a and lost_b:
        reason = f"each method lost runs the other survived: {_named(lost_a)} against {_named(lost_b)}"
    elif lost_a:
        verdict, effect, interval, differences = "fails", None, None, []
        reason = f"it diverged or died on {_named(lost_a)}, where its rival did not"
    else:
        verdict, reason = _side(claimed, interval)
        if lost_b:
            verdict = "holds" if verdict == "holds" else "undecided"
            reason = f"its rival diverged or died on {_named(lost_b)}, left out here" + (
                f"; {reason}" if reason else ""
            )
    return Claim(text, source, verdict, effect, interval, len(differences), unit, printed, reason)


def _side(claimed: str, interval: tuple[float, float] | None) -> tuple[Verdict, str]:
    """The verdict of an interval alone, and what a reader must know of it."""
    if interval is None:
        return "undecided", "an interval needs at least two seeds"
    low, high = interval
    if low <= 0 <= high:
        return "undecided", "no difference on any seed" if low == high else "the interval contains zero"
    same = "the seeds made no difference" if low == high else ""
    return ("holds" if (high < 0) == (claimed == "less") else "fails"), same


def _mean_and_interval(differences: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean and 95% t-interval; a spread of zero gives an interval of zero width."""
    n = len(differences)
    if n == 0:
        return None, None
    if min(differences) == max(differences):  # the mean of equal numbers need not round to that number
        return differences[0], None if n == 1 else (differences[0], differences[0])
    from scipy import stats

    test = stats.ttest_1samp(differences, 0.0)  # of differences, this is the paired test
    low, high = test.confidence_interval(0.95)
    return math.fsum(differences) / n, (float(low), float(high))


def _named(seeds: Iterable[int]) -> str:
    names = [str(seed) for seed in sorted(seeds)]
    return f"seed{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _format(effect: float, low: float, high: float) -> str:
    """Two digits of the interval's half width, and more while an end that is not zero would read as zero."""
    half = (high - low) / 2
    if not half > 0 or not math.isfinite(half):
        return ".4g"
    digits = max(0, 1 - math.floor(math.log10(half)))
    while digits < 6 and any(end and not round(end, digits) for end in (low, high)):
        digits += 1
    if digits < 6 and abs(effect) < 1e6:
        return f".{digits}f"
    return f".{max(3, digits + 1 + math.floor(math.log10(abs(effect) or half)))}g"
