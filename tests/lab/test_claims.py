"""Verdicts against scipy's paired test, the rule for runs that did not survive, and the interval's coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from thalweg.lab.claims import Claim, paired

NAN = math.nan
WORDS = {"text": "a is better than b", "source": "seed 000", "unit": "loss, a minus b"}

numbers = st.floats(-1e6, 1e6, allow_nan=False)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8)


def judge(claimed: str, a: list[float], b: list[float]) -> Claim:
    return paired(claimed, dict(enumerate(a)), dict(enumerate(b)), **WORDS)


def test_the_interval_is_that_of_the_paired_t_test():
    a, b = [1.0, 1.4, 0.7, 1.1], [2.0, 2.1, 1.9, 2.6]
    claim = judge("less", a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert claim.interval == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert claim.effect == pytest.approx(np.mean(a) - np.mean(b))
    assert (claim.verdict, claim.seeds, claim.reason) == ("holds", 4, "")


def test_the_interval_is_the_textbook_formula():
    claim = judge("greater", [3.0, 5.0], [1.0, 1.0])  # differences 2 and 4: mean 3, deviation √2, t₁(97.5%) = 12.706
    assert claim.interval == pytest.approx((3 - 12.7062, 3 + 12.7062), abs=1e-4)
    assert (claim.verdict, claim.reason) == ("undecided", "the interval contains zero")


@pytest.mark.parametrize(("claimed", "verdict"), [("less", "holds"), ("greater", "fails")])
def test_the_claimed_side_decides(claimed, verdict):
    assert judge(claimed, [1.0, 1.1, 0.9], [2.0, 2.0, 2.0]).verdict == verdict


@settings(deadline=None)  # a busy machine is no failure
@given(pairs)
def test_swapping_the_methods_swaps_the_verdict(values):
    a, b = map(list, zip(*values, strict=True))
    opposite = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    assert judge("less", b, a).verdict == opposite[judge("less", a, b).verdict]
    assert judge("greater", b, a).verdict == judge("less", a, b).verdict


@settings(deadline=None)
@given(pairs, st.sampled_from(["less", "greater"]))
def test_nothing_holds_or_fails_while_the_interval_contains_zero(values, claimed):
    claim = judge(claimed, *map(list, zip(*values, strict=True)))
    low, high = claim.interval or (0.0, 0.0)
    assert (claim.verdict == "undecided") == (low <= 0 <= high)
    if claim.verdict != "undecided":
        assert (high < 0) == ((claim.verdict == "holds") == (claimed == "less"))


@settings(deadline=None)
@given(numbers, st.integers(2, 5))
def test_equal_differences_give_an_interval_without_width(difference, n):
    claim = judge("less", [difference] * n, [0.0] * n)
    assert claim.interval == (difference, difference)
    assert claim.verdict == ("undecided" if difference == 0 else "holds" if difference < 0 else "fails")


def test_the_interval_covers_the_truth_in_95_of_100_cases():
    rng, trials, hits = np.random.default_rng(0), 1000, 0
    for _ in range(trials):
        a, b = rng.normal(1.0, 2.0, 5), rng.normal(0.4, 1.0, 5)
        low, high = judge("less", a.tolist(), b.tolist()).interval
        hits += low <= 0.6 <= high
    assert abs(hits / trials - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials)  # three standard errors: 0.021


GOOD = [2.0, 2.1, 1.9]
SURVIVAL = {
    "only the claimed method diverged": ([1.0, NAN, 1.0], GOOD, "fails", "seed 1, where its rival did not"),
    "infinity is divergence too": ([1.0, math.inf, 1.0], GOOD, "fails", "seed 1"),
    "one seed is enough for that": ([NAN], [2.0], "fails", "seed 0"),
    "the rival diverged, the rest holds": (
        [1.0, 1.0, 0.9],
        [NAN, 2.0, 2.0],
        "holds",
        "its rival diverged or died on seed 0",
    ),
    "the rival diverged, the rest fails": ([3.0, 3.0, 3.1], [NAN, 2.0, 2.0], "undecided", "its rival diverged"),
    "the rival diverged everywhere": ([1.0, 1.0], [NAN, NAN], "undecided", "at least two seeds"),
    "each lost a run": ([NAN, 1.0, 1.0], [2.0, NAN, 2.0], "undecided", "seed 0 against seed 1"),
    "both lost the same run": ([NAN, 1.0, 1.1], [NAN, 2.0, 2.0], "undecided", "neither method survived seed 0"),
    "one seed": ([1.0], [2.0], "undecided", "at least two seeds"),
    "no runs": ([], [], "undecided", "no runs"),
}


@pytest.mark.parametrize(("a", "b", "verdict", "reason"), SURVIVAL.values(), ids=SURVIVAL)
def test_runs_that_did_not_survive_are_judged(a, b, verdict, reason):
    claim = judge("less", a, b)
    assert claim.verdict == verdict
    assert reason in claim.reason
    assert claim.effect is None or math.isfinite(claim.effect)
    if verdict == "fails":
        assert (claim.effect, claim.interval, claim.seeds) == (None, None, 0)


def test_missing_seeds_leave_it_undecided_and_are_named():
    claim = paired("less", {0: 1.0, 1: 1.1, 2: 0.9}, {0: 2.0, 1: 2.0, 3: 2.0}, **WORDS)
    assert (claim.verdict, claim.seeds) == ("undecided", 2)
    assert claim.reason == "incomplete: seeds 2, 3 ran for one method only"


def test_a_misspelt_side_is_refused():
    with pytest.raises(ValueError, match="'less' or 'greater', not 'lower'"):
        judge("lower", [1.0], [2.0])


@pytest.mark.parametrize(
    ("effect", "interval", "reading"),
    [
        (-2.13, (-2.44, -1.82), "-2.13 [-2.44, -1.82]"),
        (1234.5, (1201.0, 1268.0), "1234 [1201, 1268]"),
        (0.5, (0.0004, 1.0), "0.5000 [0.0004, 1.0000]"),  # an end that decides the verdict must not read as zero
        (2e-8, (1e-8, 3e-8), "2e-08 [1e-08, 3e-08]"),
        (0.5, None, "0.5"),
        (None, None, "not measured"),
    ],
)
def test_reading(effect, interval, reading):
    assert Claim("", "", "undecided", effect, interval, 3, "loss").measured == reading
    assert Claim("", "", "undecided", effect, interval, 3, "loss").reading.startswith(f"loss: {reading}")
