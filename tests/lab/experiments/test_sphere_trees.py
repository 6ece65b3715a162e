"""Trees of short runs on the sphere: children begin where their parents ended, walks turn as the descents did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thalweg.lab.engine import pursue
from thalweg.lab.experiment import Findings, Study, experiment
from thalweg.lab.plan import request, studies
from thalweg.lab.store import Store

SMALL = ["samples=256", "width=16", "epochs=20", "seed=0"]


def run(name: str, *words: str) -> tuple[Study, Findings]:
    """The study of these runs, and what its experiment finds."""
    given = {word.partition("=")[0] for word in words}
    small = [word for word in SMALL if word.partition("=")[0] not in given]
    store, wanted = Store(), experiment(name)
    assert pursue([request(name, "quick", [*words, *small])], store, jobs=1) == []
    (study,) = studies(wanted, store.results(wanted))
    return study, wanted.analyse(study)


def one(study: Study, **values: Any) -> Any:
    (result,) = study.where(**values)
    return result


def test_a_continuation_begins_with_the_weights_and_statistics_of_its_parent(lab: Path) -> None:
    study, findings = run("sphere-finetuning", "start=0,3e-3", "elr=3e-3,1e-2", "reference=3e-3")
    parent = one(study, start=0.0, elr=3e-3)
    # 360 test images cost 0.47 epochs of 256 training images: every fifth epoch is the first to stay below a tenth
    assert [row["epoch"] for row in parent.rows if "test_error" in row] == [0, 5, 10, 15, 20]
    for elr in (3e-3, 1e-2):
        child = one(study, start=3e-3, elr=elr)
        assert child.rows[0]["from_start"] == 0.0
        for key in ("test_error", "test_loss"):
            assert child.rows[0][key] == parent.rows[-1][key]
        assert child.rows[-1]["from_start"] == child.values["from_start"] > 0
    assert "to sibling" in one(study, start=3e-3, elr=1e-2).values
    assert [table.title for table in findings.tables] == ["From random weights", "Continuations"]


def test_a_walk_turns_by_the_angles_of_its_descent_but_goes_elsewhere(lab: Path) -> None:
    study, findings = run("sphere-baselines", "elr=0.3")
    walk, descent, ascent = (one(study, method=method) for method in ("walk", "descent", "ascent"))
    for a, b in zip(walk.rows[1:], descent.rows[1:], strict=True):
        assert a["cosine_distance"] == pytest.approx(b["cosine_distance"], rel=1e-4)  # weights are in single precision
    assert walk.values["train_loss"] != descent.values["train_loss"]
    assert ascent.values["train_loss"] > descent.values["train_loss"]
    assert len(findings.tables[0].frame) == 3


def test_neighbours_are_compared_from_their_common_start_on(lab: Path) -> None:
    study, findings = run("sphere-trajectories", "elr=1e-3,1e-2")
    pair = one(study, elr=1e-3, against=1e-2)
    assert pair.rows[0] == {"epoch": 0, "apart": 0.0}
    assert pair.rows[-1]["apart"] == pair.values["apart"] > 0
    assert 0 < pair.values["off path"] <= 1
    assert {picture.name for picture in findings.pictures} == {"phases", "errors", "distance"}


def test_paths_join_the_ends_of_runs_that_differ_in_the_order_of_their_batches(lab: Path) -> None:
    study, findings = run("sphere-connectivity", "elr=1e-2")
    across = one(study, order=1, other=1e-2)
    inside = one(study, order=0, other=1e-2)
    assert [row["epoch"] for row in across.rows] == pytest.approx([i / 10 for i in range(11)])
    assert across.values["end"] == inside.values["end"]  # both end where the run of order 0 ends
    assert across.values["start"] != inside.values["start"]
    for path in (across, inside):
        assert path.rows[0]["straight"] == path.values["start"]
        assert path.rows[-1]["turning"] == pytest.approx(path.values["end"], rel=1e-5)
    assert len(findings.tables) == 2


def test_the_quadratic_loss_is_swept_over_subsets(lab: Path) -> None:
    study, findings = run("sphere-mse", "samples=128,256", "elr=0.1", "epochs=20")
    assert {r.config.loss for r in study.results} == {"mse"}  # type: ignore[attr-defined]
    assert len(findings.claims) == 4
    assert len(findings.pictures) == 2
