"""sphere-toy against the closed forms it is judged by, and against a simulation written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from thalweg.lab.engine import pursue
from thalweg.lab.experiment import experiment
from thalweg.lab.plan import request, studies
from thalweg.lab.store import Store


@pytest.fixture
def study(lab: Path):  # type: ignore[no-untyped-def]
    store, wanted = Store(), experiment("sphere-toy")
    assert pursue([request("sphere-toy", "quick", ["steps=2000", "seed=0:3"])], store, jobs=1) == []
    (found,) = studies(wanted, store.results(wanted))
    return found


def test_levels_and_verdicts(study) -> None:  # type: ignore[no-untyped-def]
    for result in study.results:
        A, values = result.config.relative, result.values
        assert values["predicted"] == pytest.approx(max(0.0, (1 - 1 / A) / 2), rel=1e-12)
        assert abs(values["level"] - values["predicted"]) < 0.02  # of S; time means of chaos miss by 1% here
        assert all(0 <= loss <= 15 + 1e-9 for loss in result.series("loss")[1])  # F lies between 0 and S = 15
    verdicts = [claim.verdict for claim in study.experiment.analyse(study).claims]
    assert verdicts == ["holds", "holds", "holds", "fails", "holds"]


def test_a_run_equals_the_projected_gradient_step_written_out(study) -> None:  # type: ignore[no-untyped-def]
    from thalweg.lab.plan import trials

    (trial,) = trials(request("sphere-toy", "quick", ["relative=1.5", "seed=0"]), ())
    alphas = [1.0, 2.0, 4.0, 8.0]
    from thalweg.invariance import SphereToy

    point = SphereToy(alphas).start(trial.generator("start")).tolist()
    losses = []
    for _ in range(11):
        losses.append(sum(a * x * x / (x * x + y * y) for a, (x, y) in zip(alphas, point, strict=True)))
        moved = []
        for a, (x, y) in zip(alphas, point, strict=True):
            turn = 2 * a * x * y / (x * x + y * y) ** 2 * 1.5 / 15
            moved.append((x - turn * y, y + turn * x))
        norm = math.sqrt(sum(x * x + y * y for x, y in moved))
        point = [(x / norm, y / norm) for x, y in moved]
    (result,) = study.where(relative=1.5)[:1]
    steps, recorded = result.series("loss")
    assert steps[:2] == [0, 10]
    assert recorded[0] == pytest.approx(losses[0], rel=1e-12)
    assert recorded[1] == pytest.approx(losses[10], rel=1e-9)  # ten steps of rounding, before chaos could grow it
