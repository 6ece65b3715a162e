"""The experiments of seed 002: printed numbers, claims on made-up results, one short run from settings to findings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thalweg.lab.engine import pursue
from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Result, Study, experiment, experiment_names
from thalweg.lab.experiments import frame_anatomy, frame_classification, frame_picture
from thalweg.lab.plan import request, studies
from thalweg.lab.store import Store
from thalweg.lab.tables import render

NAMES = [name for name in experiment_names() if name.startswith("frame")]


def study(name: str, values: Any, seeds: int = 3, preset: str = "quick", **more: Any) -> Study:
    """A study whose results are ``values(config, seed)``; None is a run that diverged."""
    wanted = experiment(name)
    sweep = wanted.swept(preset)
    results = []
    grid: list[dict[str, Any]] = [{}]
    for key, choices in sweep.items():
        grid = [{**point, key: choice} for point in grid for choice in choices]
    for point in grid:
        config = wanted.settings(preset, **point)
        for seed in range(seeds):
            found = values(config, seed)
            rows = [{"epoch": 0, **(found or {})}, {"epoch": 8, **(found or {})}]
            outcome = "finished" if found else "diverged"
            results.append(Result("", config, seed, outcome, found or {}, rows, 1.0, (), {}))
    shared = {k: v for k, v in results[0].config.model_dump().items() if k not in wanted.sweep}
    return Study(wanted, shared, results)


def verdicts(name: str, made: Study) -> dict[str, str]:
    return {claim.text: claim.verdict for claim in experiment(name).analyse(made).claims}


@pytest.mark.parametrize("name", NAMES)
def test_every_value_names_where_it_comes_from(name: str) -> None:
    wanted = experiment(name)
    assert "quick" in wanted.presets
    for key, value in wanted.config.model_fields.items():
        assert value.description, f"{name}: {key} has no source"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "frame-picture"])
def test_bounds_the_wrong_way_round_are_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(LabError, match=r"upper=2\.0 is not accepted: at least lower=3 expected"):
        request(name, "quick", ["lower=3"])
    assert request(name, "quick", ["lower=3", "upper=3"]).overrides == {"lower": ["3"], "upper": ["3"]}


def test_the_published_setting() -> None:
    wanted = experiment("frame-classification")
    assert wanted.swept("paper") == {
        "network": ("resnet34", "resnet50"),
        "data": ("cifar10", "cifar100", "svhn"),
        "method": ("none", "mhe", "so", "srip", "ocnn", "frame"),
    }
    paper = wanted.settings("paper").model_dump()
    expected = {
        "epochs": 200,
        "batch": 128,
        "width": 64,
        "shrink": 1,
        "samples": 0,
        "augment": True,
        "frame_decay": 0.0,
    }
    assert expected.items() <= paper.items()


def test_the_printed_tables_are_the_slides() -> None:
    cells = {
        pair: [cell.split(" ± ") for cell in row.split(", ")] for pair, row in frame_classification.PRINTED.items()
    }
    assert {len(row) for row in cells.values()} == {6}
    means = np.array([[float(mean) for mean, _ in row] for row in cells.values()])
    # sums over each column as added up from the slides by hand
    np.testing.assert_allclose(means.sum(1), [568.62, 457.76, 579.68, 570.18, 465.44, 581.83], atol=1e-9)
    best = means.argmax(1).tolist()
    assert best == [5, 5, 5, 4, 5, 5]  # bold: the frame penalty, but OCNN for ResNet-50 on CIFAR-10


def test_accuracies_beside_the_printed_ones_and_their_order() -> None:
    made = study(
        "frame-classification",
        lambda c, seed: {
            "accuracy": float(frame_classification._printed(c.network, c.data)[c.method].split()[0]) + 0.001 * seed
        },
        preset="paper",
    )
    findings = experiment("frame-classification").analyse(made)
    assert [table.title for table in findings.tables] == ["Accuracy, ResNet-34", "Accuracy, ResNet-50"]
    assert list(findings.tables[0].frame["CIFAR-10, printed"])[-1] == "95.17 ± 0.05"
    assert list(findings.tables[0].frame["CIFAR-10"])[-1] == "95.17 ± 0.00"
    assert {claim.verdict for claim in findings.claims} == {"holds"}  # what is printed says so of itself
    assert len(findings.claims) == 6 * (5 + 1)
    (exception,) = [claim for claim in findings.claims if "less accurate" in claim.text]
    assert exception.text == "ResNet-50, CIFAR-10: the frame penalty is less accurate than OCNN."
    assert exception.printed == "-0.04"
    assert "svg" not in render(findings.tables[0], "markdown")


def test_a_lost_run_is_named_in_the_table_and_loses_its_claims() -> None:
    made = study(
        "frame-classification",
        lambda c, seed: None if c.method == "frame" and seed == 1 else {"accuracy": 90.0 + seed},
    )
    findings = experiment("frame-classification").analyse(made)
    assert findings.tables[0].frame.iloc[-1]["digits, not averaged"] == "seed 1 diverged"
    assert [claim.verdict for claim in findings.claims] == ["fails"] * 5 + ["undecided"]


def spectrum(low: float, high: float, inside: float, R: float, cos: float, accuracy: float = 50.0) -> dict[str, float]:
    layers = ("stem", "blocks.0.convolutions.0", "last")
    row: dict[str, float] = {"accuracy": accuracy, "coherence": cos, "norm": 3.0}
    for name in layers:
        row |= {f"min {name}": low, f"max {name}": high, f"inside {name}": inside, f"R {name}": R}
    return row


def test_who_keeps_the_bounds() -> None:
    def values(c: Any, seed: int) -> dict[str, float]:
        shift = 0.01 * seed
        if c.method == "frame" and c.init == "frame":
            return {**spectrum(0.7 + shift, 1.7, 1.0, 0.0, 0.04 + shift / 10), "max last": 2.7}
        if c.method == "polyak":
            return spectrum(0.6, 1.9 + shift, 1.0, 0.1, 0.1)
        if c.method == "frame":
            return spectrum(0.0, 2.1, 0.01 + shift, 5.0, 0.2)
        if c.method == "spectral":
            return spectrum(0.1, 1.9 + shift, 0.97 + shift, 200.0, 0.05)
        return spectrum(0.0, 20.0 + seed, 0.1, 7000.0, 0.11 + shift / 5)

    found = verdicts("frame-anatomy", study("frame-anatomy", values))
    assert found == {
        "R = 0 implies A <= λ <= B: in every layer and at every epoch.": "fails",  # of the made-up classifier
        "The frame penalty, from tight frames, keeps every layer it acts on inside [A, B].": "holds",
        "The frame penalty, from tight frames, bounds the condition number: κ(WᵀW) = κ(W)² <= B/A "
        "(printed: κ(W) <= B/A).": "holds",
        "The frame penalty builds a frame from He's initialization too: no eigenvalue is below A.": "fails",
        "The frame penalty with steps of its own, from tight frames, keeps every layer inside [A, B], "
        "the classifier too.": "holds",
        "The spectral form, from He's initialization, brings 95% of every layer's spectrum into [A, B].": "holds",
        "Under the spectral form no λ_max is above 1.1 B.": "holds",
        "From He's initialization the frame penalty makes weights less correlated than no penalty does.": "fails",
        "From tight frames the frame penalty makes weights less correlated than no penalty does.": "holds",
    }


def test_the_tables_of_the_anatomy_leave_the_classifier_out_of_the_worst_layer_only() -> None:
    made = study("frame-anatomy", lambda c, seed: {**spectrum(0.7, 1.7, 1.0, 0.1, 0.04), "inside last": 0.2})
    worst, shares = experiment("frame-anatomy").analyse(made).tables
    assert set(worst.frame["least share in [A, B]"]) == {"1.000 ± 0.000"}
    assert set(shares.frame["last"]) == {"0.200 ± 0.000"}
    assert list(shares.frame.columns) == ["method", "start", "stem", "0.0", "last", "seeds"]
    assert len(worst.frame) == 16


def test_a_diverged_run_does_not_break_the_anatomy() -> None:
    made = study("frame-anatomy", lambda c, seed: None if c.method == "mhe" else spectrum(0.7, 1.7, 1.0, 0.1, 0.04))
    findings = experiment("frame-anatomy").analyse(made)
    assert "seed 0 diverged" in findings.tables[0].frame["not averaged"].tolist()[2]


def test_weight_decay_replaced_or_not() -> None:
    def values(c: Any, seed: int) -> dict[str, float]:
        accuracy = {"none": 50.0 + 2000 * c.decay, "frame": 51.5, "polyak": 51.5, "spectral": 48.0}[
            c.method
        ] + 0.01 * seed * (c.decay > 0)
        high = 20.0 if c.method == "none" else 1.7
        return {"test_loss": 1.0, "train_loss": 1.0, **spectrum(0.7, high + 0.01 * seed, 1.0, 0.0, 0.1, accuracy)}

    found = verdicts("frame-weight-decay", study("frame-weight-decay", values))
    assert list(found.values()) == ["holds"] * 8 + ["fails", "holds", "fails", "holds"]
    only = study("frame-weight-decay", values)
    alone = Study(only.experiment, only.settings, only.where(method="frame"))
    assert experiment("frame-weight-decay").analyse(alone).claims == []


@pytest.mark.parametrize("system", list(frame_picture.SYSTEMS))
def test_the_picture_draws_what_linear_algebra_says(system: str) -> None:
    W = np.array(frame_picture.vectors(system))
    values = np.linalg.eigvalsh(W.T @ W)
    degrees, energy = frame_picture._around(system)
    z = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    np.testing.assert_allclose(energy, ((W @ z) ** 2).sum(0), atol=1e-12)  # float64, values of order 1
    # a sinusoid of 2θ sampled every 2 degrees misses its extremes by at most 1 - cos 2°, six in ten thousand
    assert min(energy) == pytest.approx(values[0], abs=2e-3)
    assert max(energy) == pytest.approx(values[1], abs=2e-3)
    tight = {"orthogonal", "mercedes"}
    assert (values[1] - values[0] < 1e-12) == (system in tight)
    assert (values[0] < 1e-12) == (system == "incomplete")


def test_frame_picture_from_runs_to_findings(lab: Path) -> None:
    store, wanted = Store(), experiment("frame-picture")
    assert pursue([request("frame-picture", "quick")], store, jobs=1) == []
    (made,) = studies(wanted, store.results(wanted))
    findings = wanted.analyse(made)
    assert [claim.verdict for claim in findings.claims] == ["holds"] * 3
    rows = findings.tables[0].frame.set_index("system")
    assert (rows.loc["mercedes", "A"], rows.loc["mercedes", "B"]) == ("1.5", "1.5")
    assert rows.loc["incomplete", "B/A = κ(W)²"] == "∞"
    assert [picture.name for picture in findings.pictures] == ["configurations", "inequality", "toeplitz"]


def test_anatomy_from_runs_to_findings(lab: Path) -> None:
    store, wanted = Store(), experiment("frame-anatomy")
    words = ["epochs=2", "width=4", "samples=128", "tests=50", "seed=0", "method=none,frame", "init=frame"]
    assert pursue([request("frame-anatomy", "quick", words)], store, jobs=1) == []
    (made,) = studies(wanted, store.results(wanted))
    none, frame = made.where(method="none"), made.where(method="frame")
    shared = {key: value for key, value in none[0].rows[0].items() if key != "seconds"}
    assert shared == {key: frame[0].rows[0][key] for key in shared}  # of one seed, all have the same weights
    assert none[0].values["R stem"] > frame[0].values["R stem"]
    findings = wanted.analyse(made)
    assert [picture.name for picture in findings.pictures] == ["shares", "spectra"]
    epochs, shares = frame_anatomy._least_share(frame[0])
    assert (epochs, shares[0]) == ([0, 1, 2], 1.0)
    assert all(math.isfinite(share) for share in shares)
