"""Plans and claims of the experiments on the sphere, on made-up results: which runs they ask for, what they judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from thalweg.lab.experiment import Experiment, Result, Settings, Study, experiment
from thalweg.lab.sphere_runs import LABELS, at_loss, label, rates_in, track

NAMES = ("sphere-trajectories", "sphere-finetuning", "sphere-mse", "sphere-connectivity", "sphere-baselines")


def made(
    config: Settings, seed: int = 0, regime: str = "convergence", rows: Sequence[Any] = (), **values: float
) -> Result:
    numbers = {"regime": float(LABELS.index(regime)), **values}
    return Result("", config, seed, "finished", numbers, rows, 0.0, (), {})


def planned(
    name: str, results: Sequence[Result], sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int] = (0, 1)
) -> list[Any]:
    wanted = experiment(name)
    assert wanted.plan is not None
    return list(wanted.plan(wanted.settings("quick"), {**wanted.swept("quick"), **sweep}, seeds, results))


def pursued(name: str, sweep: Mapping[str, Sequence[Any]]) -> list[list[Any]]:
    """The rounds of new settings, each planned when the one before it has been run."""
    rounds: list[list[Any]] = []
    known: list[Any] = []
    while new := [
        config for config in planned(name, [made(c, s) for c in known for s in (0, 1)], sweep) if config not in known
    ]:
        rounds.append(new)
        known += new
    return rounds


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["quick", "laptop", "paper"])
def test_every_preset_has_settings_and_a_plan_that_ends(name: str, preset: str) -> None:
    wanted: Experiment = experiment(name)
    base, known = wanted.settings(preset), []
    for _ in range(5):
        assert wanted.plan is not None
        plan = list(wanted.plan(base, wanted.swept(preset), [0], [made(c) for c in known]))
        if plan == known:
            break
        known = plan
    else:
        pytest.fail(f"the plan of {name} goes on growing")
    assert len({config.model_dump_json() for config in known}) == len(known)
    assert all(config.preset == preset for config in known)


def test_trajectories_compare_neighbours_when_both_are_there_for_every_seed() -> None:
    first, second = pursued("sphere-trajectories", {"elr": (1e-3, 1e-2, 1e-1)})
    assert [(c.elr, c.against) for c in first] == [(1e-3, 0.0), (1e-2, 0.0), (1e-1, 0.0)]
    assert [(c.elr, c.against) for c in second] == [(1e-3, 1e-2), (1e-2, 1e-1)]
    one_seed = [made(config, 0) for config in first]
    assert planned("sphere-trajectories", one_seed, {"elr": (1e-3, 1e-2, 1e-1)}) == first


def test_finetuning_asks_for_parents_then_for_the_sibling_then_for_the_rest() -> None:
    rounds = pursued("sphere-finetuning", {"start": (0.0, 1e-3), "elr": (5e-4, 1e-2)})
    assert [[(c.start, c.elr) for c in found] for found in rounds] == [
        [(0.0, 5e-4), (0.0, 1e-3), (0.0, 1e-2)],
        [(1e-3, 5e-4)],
        [(1e-3, 1e-2)],
    ]


def test_connectivity_has_paths_between_rates_between_orders_and_inside_runs() -> None:
    runs, paths = pursued("sphere-connectivity", {"elr": (1e-3, 1e-2), "order": (0, 1)})
    assert [(c.elr, c.order) for c in runs] == [(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)]
    assert {(c.elr, c.order, c.other) for c in paths} == {
        (1e-3, 0, 1e-2), (1e-3, 0, 1e-3), (1e-3, 1, 1e-3), (1e-2, 0, 1e-2), (1e-2, 1, 1e-2),
    }  # fmt: skip


def test_a_walk_waits_for_the_descent_that_it_follows() -> None:
    first, second = pursued("sphere-baselines", {"elr": (0.1,), "method": ("walk",)})
    assert ([c.method for c in first], [c.method for c in second]) == (["descent"], ["walk"])


def test_subsets_have_as_many_iterations_as_all_images_unless_epochs_are_given() -> None:
    plan = planned("sphere-mse", [], {"samples": (256, 1280), "elr": (0.1,)})
    assert {c.samples: c.epochs for c in plan} == {256: 1000, 1280: 200}
    plan = planned("sphere-mse", [], {"samples": (256, 1280), "elr": (0.1,), "epochs": (30,)})
    assert {c.samples: c.epochs for c in plan} == {256: 30, 1280: 30}


def test_the_first_regime_is_judged_at_equal_training_loss() -> None:
    rows = [{"epoch": float(i), "train_loss": 2.0**-i, "effective_grad_norm": 3.0 * i} for i in range(1, 8)]
    result = made(experiment("sphere-trajectories").settings("quick"), rows=rows)
    assert at_loss(result, "effective_grad_norm", 2.0**-4) == 12.0
    assert track(result) == ([3.0 * i for i in range(1, 8)], [2.0**-i for i in range(1, 8)])


def test_a_rate_belongs_to_the_regime_of_more_than_half_of_its_runs() -> None:
    config = experiment("sphere-trajectories").settings("quick")
    runs = {
        rate: [made(config, s, LABELS[i]) for s, i in enumerate(told)]
        for rate, told in {1.0: (0, 0, 1), 2.0: (0, 1)}.items()
    }
    assert (rates_in(LABELS[0], runs), rates_in(LABELS[1], runs)) == ([1.0], [])
    assert label(runs[1.0][2]) == LABELS[1]


def test_the_level_of_the_second_regime_is_compared_over_all_starts() -> None:
    wanted = experiment("sphere-finetuning")
    level = {(0.0, 0.1): 1.0, (0.1, 0.1): 1.02, (0.0, 0.2): 2.0, (0.2, 0.1): 0.98}
    results = [
        made(wanted.settings("quick", start=start, elr=elr), seed, LABELS[1], train_loss=loss + seed / 1000)
        for (start, elr), loss in level.items()
        for seed in (0, 1)
    ]
    shared = {k: v for k, v in results[0].config.model_dump().items() if k not in wanted.sweep}
    from thalweg.lab.experiments.sphere_finetuning import _claims

    (claim,) = _claims(Study(wanted, shared, results), [0.1, 0.2])
    assert claim.verdict == "holds"
    assert claim.effect == pytest.approx(1.02 / 0.98 - 1 - 0.1, abs=1e-3)
