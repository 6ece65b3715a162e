"""Grids of learning rates that widen themselves, on results made up from any loss one likes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.lab import best_rate
from thalweg.lab.best_rate import (
    WIDEST,
    best_rates,
    chosen,
    grid_table,
    half_decade,
    losses_by_rate,
    stopped_at,
    widened_grid,
)
from thalweg.lab.experiment import Result, Settings, Study

unhurried = settings(deadline=None)  # the machine may be busy with something else
SEEDS = (0, 1)


class Config(Settings):
    optimizer: str
    lr: float


def result(optimizer: str, lr: float, seed: int, loss: float, *, rows: Sequence[Any] = (), **values: float) -> Result:
    """A finished run; one whose loss is infinite was lost."""
    return Result(
        id=f"{optimizer} {lr} {seed}",
        config=Config(preset="quick", optimizer=optimizer, lr=lr),
        seed=seed,
        outcome="finished" if math.isfinite(loss) else "diverged",
        values={"train_loss": loss if math.isfinite(loss) else math.nan, **values},
        rows=rows,
        seconds=1.0,
        warnings=(),
        environment={},
    )


def study(results: Sequence[Result]) -> Study:
    return Study(experiment=None, settings={"preset": "quick"}, results=results)  # type: ignore[arg-type]


def explored(loss: Callable[[int], float], guess: int, seeds: Sequence[int] = SEEDS) -> list[list[float]]:
    """Every grid asked for until nothing new is."""
    index = {half_decade(k): k for k in range(-60, 60)}
    results = [result("other", half_decade(guess - 1), seed, 0.0) for seed in seeds]  # never mixed up
    grids = [widened_grid("mine", guess, seeds, results)]
    done: set[float] = set()
    while not set(grids[-1]) <= done:
        for lr in grids[-1]:
            if lr not in done:
                results += [result("mine", lr, seed, loss(index[lr]) + 0.01 * seed) for seed in seeds]
        done |= set(grids[-1])
        grids.append(widened_grid("mine", guess, seeds, results))
    return grids


def test_half_decades() -> None:
    assert [half_decade(k) for k in range(-5, 4)] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    assert half_decade(-6) == 0.001


@unhurried
@given(
    optimum=st.integers(-11, 11),
    guess=st.integers(-8, 8),
    left=st.floats(0.01, 9.0),
    right=st.floats(0.01, 9.0),
    limit=st.integers(1, 30),
)
def test_a_best_rate_inside_the_grid_is_found_wherever_it_lies(
    optimum: int, guess: int, left: float, right: float, limit: int
) -> None:
    def loss(k: int) -> float:
        """One valley; runs are lost from ``limit`` half-decades above its floor on."""
        away = k - guess - optimum
        return math.inf if away >= limit else max(right * away, -left * away)

    grids = explored(loss, guess)
    final = grids[-1]
    assert final[0] < half_decade(guess + optimum) < final[-1]
    assert final == [half_decade(k) for k in range(guess + min(optimum, 0) - 1, guess + max(optimum, 0) + 2)]
    for earlier, later in itertools.pairwise(grids):
        assert set(earlier) <= set(later)  # nothing is asked for in vain
        assert len(later) - len(earlier) <= 1  # and no more than one rate ahead
    assert len(final) <= WIDEST


@unhurried
@given(slope=st.sampled_from([-1.0, 1.0]), guess=st.integers(-8, 8))
def test_it_never_asks_beyond_the_widest_grid(slope: float, guess: int) -> None:
    final = explored(lambda k: slope * k, guess)[-1]
    assert len(final) == WIDEST
    low, high = (guess - 1, guess + WIDEST - 2) if slope < 0 else (guess + 2 - WIDEST, guess + 1)
    assert final == [half_decade(k) for k in range(low, high + 1)]


def test_where_every_run_is_lost_it_looks_below_and_gives_up() -> None:
    final = explored(lambda k: math.inf, 0)[-1]
    assert final == [half_decade(k) for k in range(2 - WIDEST, 2)]


def test_one_lost_seed_makes_a_rate_the_worst() -> None:
    losses = {0.3: (2.0, 2.0), 1.0: (0.0, math.inf), 3.0: (3.0, 3.0)}
    results = [result("mine", lr, seed, loss) for lr, pair in losses.items() for seed, loss in enumerate(pair)]
    assert widened_grid("mine", 0, SEEDS, results) == [0.1, 0.3, 1.0, 3.0]  # 0.3 is best and lies on the edge
    assert best_rates(study(results)) == {"mine": 0.3}


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_widened_before_every_seed_has_ended(missing: int, seed: int) -> None:
    rates = [0.3, 1.0, 3.0]
    whole = [result("mine", lr, s, lr) for lr in rates for s in SEEDS]  # the lowest is best
    assert widened_grid("mine", 0, SEEDS, whole) == [0.1, *rates]
    part = [r for r in whole if (r.config.lr, r.seed) != (rates[missing], seed)]  # type: ignore[attr-defined]
    assert widened_grid("mine", 0, SEEDS, part) == rates
    assert widened_grid("mine", 0, SEEDS, []) == rates


@unhurried
@given(losses=st.lists(st.integers(0, 99), min_size=7, max_size=7, unique=True), seed=st.integers(0, 99))
def test_the_same_results_in_any_order_give_the_same_answers(losses: list[int], seed: int) -> None:
    results = [result("mine", half_decade(k - 3), s, loss + s) for k, loss in enumerate(losses) for s in SEEDS] + [
        result("other", 1.0, s, 1.0) for s in SEEDS
    ]
    shuffled = random.Random(seed).sample(results, len(results))
    assert widened_grid("mine", 0, SEEDS, shuffled) == widened_grid("mine", 0, SEEDS, results)
    assert best_rates(study(shuffled)) == best_rates(study(results))
    assert best_rates(study(results)) == {"mine": half_decade(losses.index(min(losses)) - 3), "other": 1.0}
    assert losses_by_rate(study(shuffled), "mine") == losses_by_rate(study(results), "mine")
    names = {"mine": "Mine", "other": "Other"}
    assert grid_table(study(shuffled), names).equals(grid_table(study(results), names))


def test_a_rate_that_only_some_seeds_have_run_is_not_the_best() -> None:
    results = [result("mine", 1.0, seed, 5.0) for seed in SEEDS] + [result("mine", 3.0, 0, 0.0)]
    assert best_rates(study(results)) == best_rates(study(results[::-1])) == {"mine": 1.0}


def test_chosen_takes_every_optimizer_at_its_own_rate() -> None:
    results = [result(name, lr, seed, 1.0) for name in ("a", "b") for lr in (1.0, 3.0) for seed in SEEDS]
    found = chosen(study(results), {"a": 3.0, "b": 1.0})
    assert [entry.id for entry in found] == ["a 3.0 0", "a 3.0 1", "b 1.0 0", "b 1.0 1"]


def test_stopped_at_takes_the_last_epoch_that_ended_in_time() -> None:
    rows = [
        {"epoch": 0, "test_mse": 9.0},  # before training: no loss, no seconds
        {"epoch": 1, "train_loss": 3.0, "test_mse": 7.0, "seconds": 1.0},
        {"epoch": 2, "train_loss": 2.0, "test_mse": 8.0, "seconds": 2.0},
    ]
    whole = study([result("mine", 1.0, 0, 2.0, rows=rows, ssim=0.5)])
    assert [stopped_at(whole, seconds).results[0].values for seconds in (1.5, 2.0, 99.0)] == [rows[1], rows[2], rows[2]]
    assert stopped_at(whole, 0.5).results[0].values == {"epoch": 0, "test_mse": 9.0, "train_loss": math.inf}
    assert whole.results[0].values == {"train_loss": 2.0, "ssim": 0.5}
    assert best_rates(stopped_at(whole, 1.5)) == {"mine": 1.0}


def test_losses_by_rate_has_a_gap_where_a_run_was_lost_or_not_made() -> None:
    results = [result("mine", 1.0, 0, 5.0), result("mine", 1.0, 1, 6.0), result("mine", 0.3, 0, math.inf)]
    (rates, first), (_, second) = losses_by_rate(study(results), "mine")
    assert rates == [0.3, 1.0]
    assert math.isnan(first[0])
    assert first[1] == 5.0
    assert math.isnan(second[0])
    assert second[1] == 6.0


def test_grid_table() -> None:
    results = [
        result("a", 0.1, 0, 1.0),
        result("a", 0.1, 1, 2.0),
        result("a", 1.0, 0, 0.25),
        result("a", 1.0, 1, math.inf),
        result("b", 1.0, 0, math.inf),
        result("b", 1.0, 1, math.inf),
    ]
    frame = grid_table(study(results), {"b": "B", "a": "A", "c": "C"})
    assert frame.columns.tolist() == ["learning rate", "B", "A"]
    assert frame.to_numpy().tolist() == [["0.1", "", "1.5000"], ["1", "††", "0.2500†"]]


def test_the_widest_grid_is_seven_decades() -> None:
    assert best_rate.half_decade(WIDEST) / best_rate.half_decade(0) == 1e7
