"""Cycles of synthetic sawtooths and of the norm recursion (4) with gradients that wake up at a high ELR."""

import math
from itertools import pairwise

import numpy as np
import pytest

from thalweg.invariance.cycles import find_cycles, zigzag
from thalweg.invariance.equilibrium import equilibrium_interval, next_squared_norm


def sawtooth(period, count, *, depth=1.5, decay=0.9, noise=0.0, seed=0):
    """Norms whose ln ρ² falls by ``depth`` in a share ``decay`` of each period, and losses that spike when it rises."""
    random, t = np.random.default_rng(seed), np.arange(int(period * (count + 0.5)))
    phase = (t % period) / period
    log = depth * np.where(phase < decay, 1 - phase / decay, (phase - decay) / (1 - decay))
    loss = np.where(phase < decay - 0.02, 0.01, 0.01 + np.sin(np.pi * (phase - decay + 0.02) / (1.02 - decay)))
    factor = np.exp(noise * random.standard_normal((2, len(t))))
    return np.exp(log / 2) * factor[0], np.abs(loss) * factor[1]


def recursion(lr, wd, steps, *, asleep=0.05, awake=20.0, wakes=0.05, sleeps=0.01, rho0=6.0):
    """Norms by (4), g̃ being small until the ELR exceeds ``wakes``, then large until it is below ``sleeps``.

    The loss goes 0.3 of the way to its new level each step.
    """
    rho, g, loss, norms, losses, gradients = rho0, asleep, 0.01, [], [], []
    for _ in range(steps):
        elr = lr / rho**2
        g = awake if elr > wakes else asleep if elr < sleeps else g
        loss += 0.3 * ((1.0 if g == awake else 0.01) - loss)
        norms.append(rho)
        losses.append(loss)
        gradients.append(g)
        rho = math.sqrt(next_squared_norm(lr, wd, rho, g))
    return norms, losses, gradients


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("period", [50, 333, 1000])
def test_known_periods(period, noise):
    norms, losses = sawtooth(period, 8, noise=noise)
    found = find_cycles(norms, losses)
    assert found.verdict == "periodic"
    assert len(found.bottoms) == 8
    assert len(found.cycles) == 7
    assert found.period == pytest.approx(period, rel=0.04)  # noise of 0.04 in ln ρ² moves a turning point by 3%
    expected = 0.9 * period + period * np.arange(8)
    np.testing.assert_allclose(found.bottoms, expected, atol=0.05 * period + 1)


def test_phases():
    norms, losses = sawtooth(1000, 5)
    cycle = find_cycles(norms, losses).cycles[2]
    assert (cycle.bottom_before, cycle.top, cycle.bottom) == (2900, 3000, 3900)
    # the loss leaves 0.01 at 0.88 of a period, a step before the bottom at 0.9, and peaks at 0.94
    assert cycle.start == pytest.approx(2940, abs=1)
    assert cycle.onset == pytest.approx(3880, abs=2)
    assert cycle.end == pytest.approx(3940, abs=1)
    assert cycle.phases == (cycle.top - cycle.start, cycle.onset - cycle.top, cycle.end - cycle.onset)
    assert sum(cycle.phases) == pytest.approx(cycle.period, abs=2)


def test_records_every_few_iterations():
    norms, losses = sawtooth(1000, 6)
    dense, sparse = find_cycles(norms, losses), find_cycles(norms[::10], losses[::10], every=10)
    assert sparse.period == dense.period == 1000
    assert sparse.bottoms == dense.bottoms


@pytest.mark.parametrize(("lr", "wd"), [(1.0, 1e-3), (0.5, 1e-3), (2.0, 1e-3), (1.0, 3e-3), (1.0, 3e-4)])
def test_recursion_has_the_period_of_the_corollary(lr, wd):
    predicted = math.log(0.05 / 0.01) / (2 * lr * wd)
    norms, losses, gradients = recursion(lr, wd, int(8 * predicted))
    found = find_cycles(norms, losses, lr=lr, wd=wd)
    assert found.verdict == "periodic"
    assert len(found.cycles) >= 4
    # the prediction is phase B; with g̃ = 20, ρ⁴ grows by 2η²g̃² a step: from the one ELR to the other in 12 steps
    growth = (0.01**-2 - 0.05**-2) / (2 * 20.0**2)
    # rel: g̃ = 0.05 lengthens B by about κ²g̃²/ρ⁴ < 1%; abs: thresholds are met to a step, a step at the bottom is long
    assert found.period == pytest.approx(found.predicted_period + growth, rel=0.01, abs=3)
    assert found.destabilization_elr == pytest.approx(0.05, rel=0.02)
    # the gradients are seen through the norms; 1e-6: short steps lose digits in the difference of squares
    raw = equilibrium_interval(lr, wd, min(gradients), max(gradients))
    assert found.interval.lower == pytest.approx(raw.lower, rel=1e-6)
    assert found.interval.upper == pytest.approx(raw.upper, rel=1e-6)
    assert found.interval.lower <= found.observed[0] <= found.observed[1] <= found.interval.upper
    assert found.percentile_interval.upper < 0.1 * found.interval.upper  # the spikes are fewer than 5% of steps
    assert found.observed[0] <= found.observed_percentiles[0] < found.observed_percentiles[1] <= found.observed[1]
    onsets = [(cycle.top <= cycle.onset <= cycle.end) for cycle in found.cycles]
    assert all(onsets)


def test_period_is_in_inverse_proportion_to_lr_times_wd():
    points = []
    for el in (3e-4, 1e-3, 3e-3):
        norms, losses, _ = recursion(1.0, el, int(6 / el))
        points.append((math.log(el), math.log(find_cycles(norms, losses).period)))
    slope = np.polyfit(*zip(*points, strict=True), 1)[0]
    assert slope == pytest.approx(-1, abs=0.02)  # phases A and C, a few steps of 270 at the least


def test_gradients_given_are_used():
    norms, losses, gradients = recursion(1.0, 1e-3, 6000)
    implied = find_cycles(norms, losses, lr=1.0, wd=1e-3)
    given = find_cycles(norms, losses, lr=1.0, wd=1e-3, effective_grad_norms=gradients)
    assert given.interval.upper == pytest.approx(implied.interval.upper, rel=1e-6)
    thinned = find_cycles(norms[::2], losses[::2], lr=1.0, wd=1e-3, every=2)
    assert thinned.interval is None
    assert thinned.period == pytest.approx(implied.period, abs=2)


def test_norms_that_no_step_made_give_no_interval():
    norms, losses, _ = recursion(1.0, 1e-3, 6000)
    found = find_cycles(norms, losses, lr=1.0, wd=1e-4)  # ten times less decay than there was
    assert found.interval is None
    assert found.percentile_interval is None


def test_rest_is_equilibrium():
    random, squared, norms = np.random.default_rng(0), 9.0, []
    for _ in range(4000):
        norms.append(math.sqrt(squared))
        squared = next_squared_norm(0.1, 0.1, norms[-1], 3 + 0.3 * random.standard_normal())
    found = find_cycles(norms, np.full(4000, 0.5), lr=0.1, wd=0.1)
    assert found.verdict == "equilibrium"
    assert (found.cycles, found.period, found.predicted_period) == ((), None, None)
    assert found.interval.lower <= found.observed[0] <= found.observed[1] <= found.interval.upper


def test_growth_without_decay_is_divergent():
    squared, norms = 1.0, []
    for _ in range(1000):
        norms.append(math.sqrt(squared))
        squared = next_squared_norm(0.1, 0.0, norms[-1], 5.0)
    assert find_cycles(norms, np.ones(1000)).verdict == "divergent"


@pytest.mark.parametrize("rate", [0.01, 1e-4])
def test_a_norm_still_on_its_way_down_is_undecided(rate):
    norms = np.exp(-rate * np.arange(1000))
    assert find_cycles(norms, np.ones(1000)).verdict == "undecided"


def test_one_turn_is_undecided_and_cycles_that_died_out_are_equilibrium():
    norms, losses = sawtooth(1000, 1)
    assert find_cycles(norms[:1000], losses[:1000]).verdict == "undecided"
    norms, losses = sawtooth(100, 4)
    rest = np.full(600, norms[-1])
    found = find_cycles(np.concatenate([norms, rest]), np.concatenate([losses, np.full(600, 0.01)]))
    assert found.verdict == "equilibrium"
    assert len(found.cycles) == 3


def test_zigzag_against_every_pair():
    random = np.random.default_rng(1)
    for _ in range(50):
        values = np.cumsum(random.standard_normal(200))
        turns = zigzag(values, 3.0)
        heights = values[turns]
        assert (np.abs(np.diff(heights)) >= 3.0).all()
        assert (np.diff(np.sign(np.diff(heights))) != 0).all()  # maxima and minima alternate
        for a, b in pairwise(turns):  # nothing between two turns lies outside them
            assert values[a : b + 1].min() == min(values[a], values[b])
            assert values[a : b + 1].max() == max(values[a], values[b])
            # and no smaller swing of that size was passed over
            inner = values[a : b + 1] * (1 if values[b] > values[a] else -1)
            assert (np.maximum.accumulate(inner) - inner).max() < 3.0


def test_bad_input_is_named():
    norms, losses = sawtooth(100, 3)
    broken = norms.copy()
    broken[120] = math.nan
    with pytest.raises(ValueError, match="norms are not finite from record 120"):
        find_cycles(broken, losses)
    with pytest.raises(ValueError, match="losses are not finite"):
        find_cycles(norms, np.where(norms > 1.5, math.inf, losses))
    with pytest.raises(ValueError, match="at least 16"):
        find_cycles(norms[:10], losses[:10])
    with pytest.raises(ValueError, match="recorded together"):
        find_cycles(norms, losses[:-1])
    with pytest.raises(ValueError, match="constant"):
        find_cycles(np.full(100, 2.0), np.ones(100))
    with pytest.raises(ValueError, match="positive"):
        find_cycles(np.where(norms > 1.5, 0.0, norms), losses)
    with pytest.raises(ValueError, match=">= 0"):
        find_cycles(norms, -losses)
    with pytest.raises(ValueError, match="both or neither"):
        find_cycles(norms, losses, lr=0.1)
    with pytest.raises(ValueError, match="swing > 0"):
        find_cycles(norms, losses, swing=0.0)
