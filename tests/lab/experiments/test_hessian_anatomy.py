"""hessian-anatomy: one short run against a dense Hessian, its pictures, its claims on made-up results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from thalweg.curvature import CurvatureOperator
from thalweg.lab.engine import pursue
from thalweg.lab.experiment import Result, Study, experiment
from thalweg.lab.experiments.hessian_anatomy import _below_zero
from thalweg.lab.plan import request, studies, trials
from thalweg.lab.store import Store

WORDS = ["filters=2", "epochs=2", "samples=200", "measured=20", "single=3", "top=3", "seed=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one short run of each convolution."""
    folder = tmp_path_factory.mktemp("runs")
    wish = request("hessian-anatomy", "quick", ["network=conv2d,conv1d", *WORDS])
    assert pursue([wish], Store(folder), jobs=1) == []
    return folder


@pytest.fixture
def study(runs: Path) -> Study:
    wanted = experiment("hessian-anatomy")
    (found,) = studies(wanted, Store(runs).results(wanted))
    return found


def test_the_first_measurement_is_that_of_the_dense_matrices(study: Study) -> None:
    from thalweg.lab.training.landscape_task import landscape_task

    (trial,) = trials(request("hessian-anatomy", "quick", ["network=conv2d", *WORDS]), ())
    work = landscape_task(trial)
    data = work.images[:20].double(), work.labels[:20]
    H = CurvatureOperator(work.model.double(), cross_entropy, data)
    parts = {key: H.with_kind(kind).dense() for key, kind in (("H", "hessian"), ("H_O", "ggn"), ("H_F", "remainder"))}  # type: ignore[arg-type]
    values = study.where(network="conv2d")[0].values
    for key, matrix in parts.items():
        norm = float(torch.linalg.eigvalsh(matrix).abs().max())
        assert values[f"init: {key}"] == pytest.approx(norm, rel=2e-3)  # residuals are at most 1e-3 of the norm
    assert values["init: ggn trace"] == pytest.approx(float(parts["H"].trace()), rel=1e-10)
    assert values["init: trace gap"] < 1e-12
    assert values["init: blocks"] == 0
    ends = torch.linalg.eigvalsh(parts["H"])
    assert values["init: top 3"] == pytest.approx(float(ends[-3]), abs=1e-3 * float(ends.abs().max()))
    assert values["init: lowest"] == pytest.approx(float(ends[0]), abs=1e-3 * float(ends.abs().max()))


def test_densities_integrate_to_one_and_are_drawn_at_three_moments(study: Study) -> None:
    rows = [row for row in study.where(network="conv2d")[0].rows if "t" in row]
    moments = sorted({row["of epoch"] for row in rows})
    assert moments == [0, 1, 2]
    for moment in moments:
        t, density = zip(*((r["t"], r["density"]) for r in rows if r["of epoch"] == moment), strict=True)
        mass = torch.trapezoid(torch.tensor(density), torch.tensor(t))
        assert float(mass) == pytest.approx(1.0, abs=0.02)  # a grid of about two points a width


def test_the_toeplitz_matrix_of_a_sequence_has_constant_diagonals(study: Study) -> None:
    rows = [row for row in study.where(network="conv1d")[0].rows if "T" in row]
    diagonals: dict[int, set[float]] = {}
    for row in rows:
        diagonals.setdefault(int(row["j"] - row["i"]), set()).add(row["T"])
    assert sorted(diagonals) == [-1, 0, 1]
    assert all(len(values) == 1 for values in diagonals.values())
    assert len(rows) == 64 + 2 * 63


def test_findings(study: Study) -> None:
    findings = study.experiment.analyse(study)
    names = [picture.name for picture in findings.pictures]
    assert names == ["ratio", "norms", "eigenvalues", "density", "toeplitz-conv2d", "toeplitz-conv1d"]
    assert len(findings.claims) == 10
    assert {claim.seeds for claim in findings.claims} == {1}
    for table in findings.tables:
        assert table.frame["weights"].tolist() == ["initial", "trained"] * 2
        assert table.frame["network"].tolist() == ["2-D convolutions"] * 2 + ["1-D convolutions"] * 2


def test_verdicts_on_made_up_ratios() -> None:
    wanted = experiment("hessian-anatomy")
    config = wanted.settings("quick", network="mlp")
    values = {"init: ratio": 3.0, "init: single ratio": 20.0, "end: ratio": 0.01, "end: single ratio": 0.02}
    values |= {f"{when}: {key}": 1.0 for when in ("init", "end") for key in ("loss", "H_O", "H_F", "top 1", "lowest")}
    values |= {"init: blocks": 0.0, "end: blocks": 1e-17, "end: trace gap": 1e-15}
    rows = [{"epoch": e, "H": 1.0, "H_O": 1.0, "H_F": 1.0, "ratio": 1.0, "top 1": 1.0, "lowest": -1.0} for e in (0, 1)]
    rows += [{"of epoch": 0, "t": 0.0, "density": 1.0}, {"of epoch": 0, "t": 1.0, "density": 0.5}]
    spread = [1.0, 1.1, 1.2]
    results = [
        Result("", config, s, "finished", {k: v * spread[s] for k, v in values.items()}, rows, 0.0, (), {})
        for s in range(3)
    ]
    shared = {key: value for key, value in config.model_dump().items() if key not in wanted.sweep}
    findings = wanted.analyse(Study(wanted, shared, results))
    assert [claim.verdict for claim in findings.claims] == ["fails", "fails", "holds", "holds", "holds"]


def test_a_diverged_run_does_not_break_the_findings(study: Study) -> None:
    lost = [
        replace(r, outcome="diverged", values={}, rows=[]) if r.config.network == "conv2d" else r for r in study.results
    ]
    findings = study.experiment.analyse(replace(study, results=lost))
    assert [picture.name for picture in findings.pictures][3:] == ["toeplitz-conv1d"]
    assert "seed 0 diverged" in findings.tables[0].frame["not averaged"].tolist()


def test_a_spectrum_that_does_not_reach_below_zero_is_drawn_at_its_precision() -> None:
    config = experiment("hessian-anatomy").settings("quick", network="mlp")
    rows = [{"epoch": 0, "top 1": 2.0, "lowest": -1.0}, {"epoch": 4, "top 1": 3.0, "lowest": 1e-5}]
    drawn = _below_zero(Result("", config, 0, "finished", {}, rows, 0.0, (), {}))
    assert drawn == ([0, 4], [1.0, 3e-3])


def test_images_at_which_every_unit_is_dead_have_no_share_in_the_median() -> None:
    from thalweg.lab.training.landscape_anatomy import Dissection
    from thalweg.lab.training.landscape_task import LandscapeTask
    from thalweg.nn import MatricizedNet

    draw = torch.Generator().manual_seed(0)
    model = MatricizedNet((1, 4, 4), 3, convolutions=0, hidden=(5,), generator=draw)
    images = torch.zeros(4, 1, 4, 4)
    images[0] = torch.randn(1, 4, 4, generator=draw)  # without biases the other three move nothing
    labels = torch.tensor([0, 1, 2, 0])
    alone, many = (Dissection(LandscapeTask(model, images[:n], labels[:n], {}), n, n, 2).measure(False) for n in (1, 4))
    assert 0 < alone["single ratio"] < 100
    assert many["single ratio"] == pytest.approx(
        alone["single ratio"], rel=1e-10
    )  # double precision, the same products
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert Dissection(LandscapeTask(model, images, labels, {}), 4, 4, 2)._single_ratio() == 0.0
