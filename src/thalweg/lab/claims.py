"""Claims: a sentence of a seed, judged by the runs just made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Claim", "Verdict"]

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
        seeds: how many seeds the interval rests on.
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
