from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import experiment
from thalweg.lab.plan import Request, parse, request, studies, trials
from thalweg.lab.report import command
from thalweg.lab.store import Store
from thalweg.lab.trial import execute


@given(st.integers(-50, 50), st.integers(1, 20))
def test_ranges_are_half_open(first: int, length: int) -> None:
    assert parse([f"seed={first}:{first + length}"]) == {"seed": list(range(first, first + length))}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lr"], "is not a setting: write key=value"),
        (["=1"], "is not a setting"),
        (["lr="], "is not a setting"),
        (["lr=1", "lr=2"], "lr is given twice"),
        (["seed=5:2"], "is not a range"),
        (["seed=a:b"], "is not a range"),
    ],
)
def test_words_that_are_no_settings(words: list[str], says: str) -> None:
    with pytest.raises(LabError, match=says):
        parse(words)


@pytest.mark.parametrize(
    ("name", "preset", "words", "says"),
    [
        ("csgd-autoencodr", "quick", [], "no experiment called 'csgd-autoencodr', did you mean 'csgd-autoencoder'"),
        ("csgd-fair", "quik", [], "no preset of csgd-fair called 'quik', did you mean 'quick'"),
        ("csgd-fair", "quick", ["epoch=3"], "no setting of csgd-fair called 'epoch', did you mean 'epochs'"),
        ("csgd-fair", "quick", ["preset=paper"], "the preset is an option: write --preset paper"),
        ("csgd-fair", "quick", ["epochs=many"], "epochs='many' is not accepted: .*valid integer"),
        ("csgd-fair", "quick", ["lr=-1"], "lr='-1' is not accepted: .*greater than 0"),
        ("csgd-fair", "quick", ["lr=nan"], "lr='nan' is not accepted"),
        ("csgd-autoencoder", "quick", ["optimizer=adamw"], "optimizer='adamw' is not accepted: .*'sgd' or 'csgd'"),
        ("csgd-autoencoder", "quick", ["seed=one"], "seed=one is not a list of integers"),
    ],
)
def test_requests_that_cannot_be_met(name: str, preset: str, words: list[str], says: str) -> None:
    with pytest.raises(LabError, match=says):
        request(name, preset, words)


def test_a_grid_is_swept_times_shared_times_seeds() -> None:
    wish = request("csgd-autoencoder", "quick", ["source=text,notebook", "lr=0.1,0.3", "seed=0:3"])
    found = trials(wish, ())
    assert len(found) == 2 * 2 * 2 * 3
    assert len({str(trial.point) for trial in found}) == len(found)
    batches = {(trial.config.source, trial.config.batch, trial.config.patience) for trial in found}  # type: ignore[attr-defined]
    assert batches == {("text", 128, 5), ("notebook", 32, 3)}


def test_a_preset_can_have_a_sweep_of_its_own() -> None:
    own = experiment("csgd-autoencoder")
    changed = replace(own, presets={"quick": replace(own.presets["quick"], sweep={"optimizer": ("sgd",)})})
    assert changed.swept("quick") == {**own.sweep, "optimizer": ("sgd",)}
    assert changed.settings("quick").optimizer == "sgd"  # type: ignore[attr-defined]
    assert own.swept("quick") == own.sweep


def test_preset_seeds_and_a_round_trip_through_json() -> None:
    wish = request("csgd-autoencoder", "laptop", ["lr=0.3"])
    assert list(wish.seeds) == [0, 1, 2]
    assert Request.from_json(wish.to_json()).to_json() == wish.to_json()
    assert wish.name != request("csgd-autoencoder", "laptop", ["lr=0.1"]).name


def test_studies_never_mix_presets_or_changed_settings(lab: object) -> None:
    store, toy = Store(), experiment("toy")
    for preset, words in (("quick", []), ("paper", []), ("quick", ["epochs=3"])):
        for trial in trials(request("toy", preset, words), ()):
            assert execute(str(store.path), store.open(trial.point).id).kind == "done"
    found = studies(toy, store.results(toy))
    assert [(study.preset, study.changes, len(study.results)) for study in found] == [
        ("quick", {}, 4),
        ("quick", {"epochs": 3}, 4),
        ("paper", {}, 6),
    ]
    assert [(r.config.x, r.seed) for r in found[0].results] == [(1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1)]  # type: ignore[attr-defined]
    # The command that the report prints asks for the very runs of the study.
    for study in found:
        _, _, name, _, preset, *words = command(study).split()
        again = {store.open(trial.point).id for trial in trials(request(name, preset, words), ())}
        assert again == {result.id for result in study.results}


def test_equal_seeds_draw_equally_whatever_else_differs() -> None:
    sgd, csgd = trials(request("csgd-autoencoder", "quick", ["seed=3"]), ())
    assert sgd.generator("weights").get_state().equal(csgd.generator("weights").get_state())
    assert not sgd.generator("weights").get_state().equal(sgd.generator("order").get_state())
    other = trials(request("csgd-autoencoder", "quick", ["seed=4"]), ())[0]
    assert not sgd.generator("weights").get_state().equal(other.generator("weights").get_state())
