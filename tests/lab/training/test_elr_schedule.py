"""Schedules of the effective learning rate: their shapes, and that the optimizer follows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.lab.engine import pursue
from thalweg.lab.experiment import experiment
from thalweg.lab.experiments.elr_schedule import SCHEDULES
from thalweg.lab.plan import request, studies
from thalweg.lab.store import Store
from thalweg.lab.training.elr_schedule import factor


@given(stay=st.floats(0.01, 0.99), drop=st.floats(1.01, 1e6), done=st.floats(0, 1), later=st.floats(0, 1))
def test_schedules_begin_at_one_and_never_rise(stay: float, drop: float, done: float, later: float) -> None:
    for name in SCHEDULES:
        shape = [factor(name, share, stay=stay, drop=drop) for share in (0.0, min(done, later), max(done, later))]
        assert shape[0] == 1
        assert shape[1] >= shape[2] - 1e-12  # rounding of the cosine
    assert factor("two-stage", min(done, stay), stay=stay, drop=drop) == 1
    assert factor("two-stage", 1.0, stay=stay, drop=drop) == pytest.approx(1 / drop)


def test_the_optimizer_follows_the_schedule_and_rivals_share_their_first_epoch(lab: Path) -> None:
    store, wanted = Store(), experiment("elr-schedule")
    words = ["elr=0.01", "seed=0", "epochs=4", "samples=256", "tests=50"]
    assert pursue([request("elr-schedule", "quick", words)], store, jobs=1) == []
    (study,) = studies(wanted, store.results(wanted))
    rates = {name: study.where(schedule=name)[0].series("lr")[1] for name in SCHEDULES}
    assert rates["constant"] == [0.01] * 4
    assert rates["two-stage"] == pytest.approx([0.01, 0.01, 0.01, 0.001])  # the rate of an epoch is that of its start
    assert rates["cosine"] == pytest.approx([0.01, 0.01 * 0.8535533905932737, 0.005, 0.01 * 0.14644660940672627])
    first = {name: study.where(schedule=name)[0].rows[1]["train_loss"] for name in SCHEDULES}
    assert len(set(first.values())) == 1
    findings = wanted.analyse(study)
    assert len(findings.claims) == 2
    assert len(findings.tables[0].frame) == 3
