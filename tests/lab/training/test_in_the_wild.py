"""Ordinary training watched for periods, shortened: every variant runs, and is what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.invariance import find_cycles
from thalweg.lab.engine import pursue
from thalweg.lab.experiment import experiment
from thalweg.lab.experiments.regimes_in_the_wild import VARIANTS, Config, plan
from thalweg.lab.plan import request, studies
from thalweg.lab.store import Store
from thalweg.lab.training.in_the_wild import _minima, schedule_factor


@given(done=st.floats(0, 1), later=st.floats(0, 1))
def test_schedules_fall_from_one(done: float, later: float) -> None:
    for name in ("constant", "step", "cosine"):
        assert schedule_factor(name, 0.0) == 1
        assert schedule_factor(name, min(done, later)) >= schedule_factor(name, max(done, later))
    assert schedule_factor("step", 0.75) == pytest.approx(0.01)
    assert schedule_factor("cosine", 1.0) == 0


def test_the_plan_gives_each_variant_its_settings_and_the_users_come_first() -> None:
    empty = dict.fromkeys(("lr", "wd", "affine", "augment", "momentum", "optimizer", "schedule"), ())
    planned = plan(Config(preset="quick"), {**empty, "variant": tuple(VARIANTS), "lr": (0.5,)}, [0], [])
    assert [settings.variant for settings in planned] == list(VARIANTS)  # type: ignore[attr-defined]
    assert {settings.lr for settings in planned} == {0.5}  # type: ignore[attr-defined]
    assert planned[4].momentum == 0.9  # type: ignore[attr-defined]


def test_minima_are_the_epochs_before_the_bottoms_of_the_norm() -> None:
    wave = [abs(step % 100 - 20) / 20 for step in range(400)]  # bottoms at 20, 120, 220, 320; tops between
    rho = [2.718281828 ** (height / 4) for height in wave]
    found = find_cycles(rho, [1.0] * 400)
    rows = [{"test_error": float(epoch), "train_loss": 0.0} for epoch in range(1, 41)]  # of ten iterations
    values = _minima(found, rows, 10)
    assert found.bottoms[0] == values["warm_up"]
    assert values["test_error, first"] == found.bottoms[0] // 10
    assert values["test_error, last"] == found.bottoms[-1] // 10
    assert values["period"] == 100


@pytest.mark.slow
def test_every_variant_runs(lab: Path) -> None:
    store, wanted = Store(), experiment("regimes-in-the-wild")
    words = ["seed=0", "epochs=20", "samples=256", "tests=50"]
    assert pursue([request("regimes-in-the-wild", "quick", words)], store, jobs=1) == []
    (study,) = studies(wanted, store.results(wanted))
    assert len(study.results) == len(VARIANTS)
    assert {result.outcome for result in study.results} == {"finished"}
    findings = wanted.analyse(study)
    assert len(findings.tables[0].frame) == len(VARIANTS)
    assert len(findings.claims) == 4
