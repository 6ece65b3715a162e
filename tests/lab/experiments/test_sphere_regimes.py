"""sphere-regimes, shortened: what a run measures, that it resumes bit for bit, how the sweep is refined."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from thalweg.invariance.regimes import Label
from thalweg.lab.data.batches import Batches
from thalweg.lab.engine import pursue
from thalweg.lab.experiment import Result, experiment
from thalweg.lab.experiments.sphere_regimes import FACTOR, SWEEP, Config, plan
from thalweg.lab.plan import request, studies
from thalweg.lab.sphere_runs import LABELS
from thalweg.lab.store import Store


def test_labels_are_those_of_the_classifier() -> None:
    assert get_args(Label) == LABELS


def result(elr: float, label: str, seed: int = 0) -> Result:
    values = {"regime": float(LABELS.index(label))}
    return Result("", Config(preset="quick", elr=elr), seed, "finished", values, (), 0.0, (), {})


def test_the_sweep_is_refined_where_neighbours_differ_and_nowhere_else() -> None:
    def truth(elr: float) -> str:
        return "convergence" if elr < 2e-3 else "chaotic equilibrium" if elr < 0.06 else "divergence"

    sweep = {"elr": experiment("sphere-regimes").sweep["elr"]}
    rates: list[float] = []
    for _ in range(10):
        wanted = [
            settings.elr for settings in plan(Config(preset="quick"), sweep, [0], [result(r, truth(r)) for r in rates])
        ]
        if wanted == rates:
            break
        rates = wanted
    for low, high in itertools.pairwise(rates):
        assert truth(low) == truth(high) or high / low <= FACTOR
    assert len(rates) <= len(sweep["elr"]) + 4  # two halvings of a half-decade at each boundary
    assert plan(Config(preset="quick"), {"elr": [0.5]}, [0], [])[0].elr == 0.5
    coarse = [result(rate, truth(rate)) for rate in SWEEP["elr"]]
    unrefined = plan(Config(preset="quick", refine=False), sweep, [0], coarse)
    assert [settings.elr for settings in unrefined] == list(SWEEP["elr"])


def run(words: list[str]) -> Result:
    store, wanted = Store(), experiment("sphere-regimes")
    assert pursue([request("sphere-regimes", "quick", words)], store, jobs=1) == []
    (study,) = studies(wanted, store.results(wanted))
    (found,) = study.results
    assert wanted.analyse(study).tables
    return found


@pytest.mark.slow
def test_a_divergent_run_is_measured_and_told(lab: Path) -> None:
    found = run(["elr=0.3", "seed=0", "epochs=20"])
    assert LABELS[int(found.values["regime"])] == "divergence"
    assert found.values["cosine_distance"] > 0.5
    assert found.values["ESS 1"] > 1
    assert found.values["train_loss"] > 0.8 * found.values["random_loss"]


@pytest.mark.slow
def test_measurements_survive_an_interruption_in_the_middle_of_an_epoch(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["elr=0.01", "seed=0", "epochs=20"]
    whole = run(words)
    monkeypatch.setenv("THALWEG_RUNS", str(tmp_path / "torn"))
    monkeypatch.setattr("thalweg.lab.training.loop.RARITY", 0)
    monkeypatch.setattr("thalweg.lab.training.loop.fit.__kwdefaults__", {**_defaults(), "checkpoint_every": 0.0})
    given = SimpleNamespace(count=0)
    take = Batches._take

    def until_interrupted(self: Batches, tensor: Any) -> Any:
        given.count += 1
        if given.count == 95:  # two tensors a batch, twelve batches an epoch: in the fourth epoch
            raise RuntimeError("interrupted")
        return take(self, tensor)

    monkeypatch.setattr(Batches, "_take", until_interrupted)
    assert [failure.kind for failure in pursue([request("sphere-regimes", "quick", words)], Store(), jobs=1)] == [
        "failed"
    ]
    resumed = run(words)
    assert resumed.values == whole.values
    for a, b in zip(resumed.rows, whole.rows, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def _defaults() -> dict[str, Any]:
    from thalweg.lab.training.loop import fit

    return dict(fit.__kwdefaults__ or {})
