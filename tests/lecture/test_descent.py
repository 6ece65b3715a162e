"""Gradient descent in closed form, its stop rules, and the statistics of mini-batches."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.lecture import descend, gradient_descent, gradient_of, minibatch_gradient, parabola, ravine

DOUBLE = torch.float64


def twice(w):
    return 2 * w


@given(eta=st.floats(0.001, 1.2), steps=st.integers(0, 30), start=st.floats(-3, 3))
def test_descent_on_the_parabola_in_closed_form(eta, steps, start):
    path = descend(gradient_descent, gradient_of(parabola), torch.tensor([start], dtype=DOUBLE), eta=eta, steps=steps)
    expected = start * (1 - 2 * eta) ** torch.arange(steps + 1, dtype=DOUBLE)
    # 30 roundings; near η = 1/2 the factor 1 - 2η loses digits against the subtraction w - 2ηw: relative to the start
    torch.testing.assert_close(path.w.flatten(), expected, rtol=1e-12, atol=1e-14 * max(1, abs(start)))
    assert path.steps == steps
    assert not path.still


def test_the_lectures_rates():
    ends = [float(descend(gradient_descent, twice, torch.ones(1, dtype=DOUBLE), eta=eta, steps=20).w[-1])
            for eta in (0.01, 0.1, 0.5, 0.9, 1.0, 1.01)]  # fmt: skip
    assert ends == pytest.approx([0.6676, 0.01153, 0.0, 0.01153, 1.0, 1.4859], abs=1e-4)  # to the digits given


@given(eta=st.floats(0.05, 0.4), tolerance=st.floats(1e-8, 1e-2))
def test_stops_when_the_weights_hardly_change(eta, tolerance):
    """Step k from 1 moves by 2η (1 - 2η)ᵏ⁻¹; the first that moves by no more than the tolerance is the last."""
    path = descend(gradient_descent, twice, torch.ones(1, dtype=DOUBLE), eta=eta, steps=1000, tolerance=tolerance)
    moves = path.w.diff(dim=0).abs().flatten()
    assert path.still
    assert float(moves[-1]) <= tolerance
    assert bool((moves[:-1] > tolerance).all())
    exact = 1 + math.ceil(math.log(tolerance / (2 * eta)) / math.log(1 - 2 * eta) - 1e-9)
    assert abs(path.steps - exact) <= 1  # one step either way where the logarithm is whole but for rounding


def test_stops_at_the_largest_number_of_steps():
    path = descend(gradient_descent, twice, torch.ones(1), eta=1.0, steps=7, tolerance=1e-3)  # it swings for ever
    assert path.steps == 7
    assert not path.still


def test_a_schedule_gets_the_number_of_the_step():
    seen = []
    descend(gradient_descent, twice, torch.ones(1), eta=lambda k: seen.append(k) or 0.1, steps=3)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(("eta", "stable"), [(0.0199, True), (0.0201, False)])
def test_the_ravine_is_stable_below_two_over_kappa(eta, stable):
    gradient = gradient_of(lambda x: ravine(x, condition=100.0))
    end = descend(gradient_descent, gradient, torch.ones(2, dtype=DOUBLE), eta=eta, steps=2000).w[-1]
    assert bool(end[1].abs() < 1) is stable


def test_many_starts_at_once_are_many_runs():
    starts = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    gradient = gradient_of(ravine)
    together = descend(gradient_descent, gradient, starts, eta=0.01, steps=20).w
    for i, start in enumerate(starts):
        alone = descend(gradient_descent, gradient, start, eta=0.01, steps=20).w
        assert torch.equal(together[:, i], alone)


SUMMANDS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


def estimates(n, *, replacement, draws=4000):
    generator = torch.Generator().manual_seed(0)
    gradient = minibatch_gradient(lambda w, i: SUMMANDS[i], 6, n, generator=generator, replacement=replacement)
    return torch.stack([gradient(torch.zeros(3)) for _ in range(draws)])


@pytest.mark.parametrize(("n", "replacement"), [(1, False), (2, False), (2, True), (6, False), (8, True)])
def test_minibatch_gradients_are_unbiased(n, replacement):
    sample = estimates(n, replacement=replacement)
    variance = SUMMANDS.var(0, correction=0) / n * (1 if replacement else (6 - n) / 5)
    error = (variance / len(sample)).sqrt()
    # five standard errors of 4000 draws; with a fixed seed this either always holds or never
    assert bool(((sample.mean(0) - SUMMANDS.mean(0)).abs() <= 5 * error + 1e-15).all())
    torch.testing.assert_close(sample.var(0, correction=0), variance, rtol=0.12, atol=1e-15)  # 5 √(2/4000)


def test_the_variance_of_batches_without_replacement_is_exact():
    """Over all 15 pairs, not over draws."""
    batches = torch.stack([SUMMANDS[list(pick)].mean(0) for pick in itertools.combinations(range(6), 2)])
    expected = SUMMANDS.var(0, correction=0) / 2 * (6 - 2) / (6 - 1)
    torch.testing.assert_close(batches.var(0, correction=0), expected, rtol=1e-12, atol=0)  # rounding


@pytest.mark.parametrize(("count", "n"), [(6, 0), (6, 7)])
def test_an_impossible_batch_is_refused(count, n):
    with pytest.raises(ValueError, match="mini-batch"):
        minibatch_gradient(lambda w, i: w, count, n)


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        descend(gradient_descent, twice, torch.ones(1), eta=0.1, steps=-1)
