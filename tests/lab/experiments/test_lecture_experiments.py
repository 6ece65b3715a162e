"""The lecture's experiments, shortened: what they measure against closed forms, what they say, that they resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from thalweg.lab.engine import pursue
from thalweg.lab.experiment import Findings, Study, experiment
from thalweg.lab.figures import svg
from thalweg.lab.plan import request, studies
from thalweg.lab.store import Store


def ran(name: str, *words: str) -> tuple[Study, Findings]:
    store, wanted = Store(), experiment(name)
    assert pursue([request(name, "quick", words)], store, jobs=1) == []
    (study,) = studies(wanted, store.results(wanted))
    findings = wanted.analyse(study)
    for picture in findings.pictures:
        assert picture.caption
        assert len(svg(picture.figure, picture.name)) < 400_000  # a report of ten topics stays in the megabytes
    assert all(claim.source.startswith("seed 004") for claim in findings.claims)
    return study, findings


def verdicts(findings: Findings) -> list[str]:
    return [claim.verdict for claim in findings.claims]


def test_polynomials(lab: Path) -> None:
    study, findings = ran("lecture-polynomials", "seed=0:4")
    values = study.results[0].values
    x = torch.linspace(-0.5, 1, 3001, dtype=torch.float64)
    f = x**3 - 4 * x**2 + 3 * x - 2
    printed = [-1.6, 1.5, -19.2, 36.8, 127.6, -280.0, 186.1, 653.5, -352.4, 18.2]
    distance = (sum(w * x**j for j, w in enumerate(printed)) - f).square().mean().sqrt()
    assert values["printed degree 9 distance"] == pytest.approx(float(distance), rel=1e-9)
    assert values["corrected degree 9 distance"] < 0.3 < 80 < values["printed degree 9 distance"]
    assert values["α = 0 w7"] == pytest.approx(values["degree 7 w7"], rel=1e-6)  # ridge without a penalty
    sample, y = study.results[0].series("sample")
    assert len(y) == 30
    best = torch.linalg.lstsq(
        torch.vander(torch.tensor(sample, dtype=torch.float64), 4, increasing=True),
        torch.tensor(y, dtype=torch.float64).unsqueeze(1),
    ).solution.flatten()
    assert [values[f"degree 3 w{j}"] for j in range(4)] == pytest.approx(best.tolist(), rel=1e-8)
    assert verdicts(findings)[-1] == "fails"


def test_early_stopping_finds_the_best_epoch(lab: Path) -> None:
    study, _ = ran("lecture-early-stopping", "seed=0:2", "epochs=12", "patience=3")
    for result in study.results:
        epochs, losses = result.series("validation_loss")
        courses = dict(zip(epochs, losses, strict=True))
        best, stop = result.values["best"], result.values["stopped"]
        seen = {epoch: loss for epoch, loss in courses.items() if 1 <= epoch <= stop}
        assert best == min(seen, key=seen.__getitem__)
        assert stop in (best + 3, 12)


def test_dropout(lab: Path) -> None:
    study, findings = ran("lecture-dropout", "seed=0:2", "epochs=2", "p_input=0", "p_hidden=0,0.5")
    dropped = study.where(p_hidden=0.5)
    assert verdicts(findings)[:2] == ["holds", "holds"]  # linear, and the geometric mean of softmax
    for result in dropped:
        assert max(result.values["linear"], result.values["geometric"]) < 1e-12 < result.values["behind ReLU"]
        masks, distances = result.series("distance")
        assert distances[-1] * math.sqrt(masks[-1]) == pytest.approx(1.0, rel=0.5)  # √(p/(1 - p)/n), one draw
    assert {r.seed: r.values["linear"] for r in study.where(p_hidden=0.0)} == {0: 0.0, 1: 0.0}


def test_initialization_follows_the_theory_of_wide_layers(lab: Path) -> None:
    study, findings = ran("lecture-initialization", "seed=0:2", "layers=5")
    for result in study.results:
        for name in ("tanh", "ReLU", "SELU"):
            layers, theory = result.series(f"{name} theory")
            signal = result.series(f"{name} signal")[1]
            assert layers == [0, 1, 2, 3, 4, 5]
            # 512 neurons and 5 layers: a standard deviation of about 0.2 in the logarithm
            assert math.log(signal[-1] / theory[-1]) == pytest.approx(0.0, abs=0.8)
    own = study.where(initialization="own gain")[0].values
    kaiming = study.where(initialization="Kaiming")[0].values
    assert own["ReLU theory"] == pytest.approx(1.0, rel=1e-9)
    assert kaiming["SELU theory"] > 2
    assert len(findings.claims) == 9


def test_transfer_freezes_what_it_says(lab: Path) -> None:
    study, findings = ran("lecture-transfer", "seed=0:2", "epochs=2", "before=60", "task=parity")
    assert len(findings.claims) == 5
    assert len(study.results) == 8
    assert all(0 <= result.values["test_error"] <= 1 for result in study.results)


def test_normalization(lab: Path) -> None:
    study, findings = ran("lecture-normalization", "seed=0:2", "epochs=2", "samples=128", "batch=16,64")
    (share,) = {result.values["linear sigmoid"] for result in study.results}
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = torch.corrcoef(torch.stack([z, z.sigmoid()]))[0, 1] ** 2
    assert share == pytest.approx(float(r), abs=1e-3)  # the correlation's standard error is about 1e-4
    assert len(findings.claims) == 5
    for result in study.where(normalization="batch before"):
        assert abs(result.rows[0]["mean"]) < 1e-5  # β = 0 before training: the mean over the images themselves


def test_descent(lab: Path) -> None:
    study, findings = ran("lecture-descent", "seed=0:3", "trials=500", "starts=50")
    steps, x = study.results[0].series("x² 0.9 1")
    assert x == pytest.approx([(1 - 2 * 0.9) ** k for k in steps], rel=1e-12)
    assert study.results[0].series("on the ridge 0.1 2")[1] == pytest.approx([math.pi / 2] * 101)
    for result in study.results:
        assert result.values["arrived 0.3"] == 0  # beyond 2/8 no minimum attracts
        assert result.series("variance")[1] == pytest.approx(result.series("theory")[1], rel=0.25)  # 500 draws
    assert verdicts(findings)[:3] == ["holds"] * 3


def test_schedules(lab: Path) -> None:
    study, findings = ran("lecture-schedules", "seed=0:3", "steps=200", "replicas=8")
    assert {r.config.shape: round(r.values["end"], 3) for r in study.where()} == {  # type: ignore[attr-defined]
        "constant": 1.0, "exp": 0.368, "str": 0.0, "sig": 0.0, "rep": 0.0, "trap": 0.0, "str+": 0.0, "sig+": 0.0,
    }  # fmt: skip
    assert findings.claims[0].verdict == "holds"


def test_trajectories(lab: Path) -> None:
    study, findings = ran("lecture-trajectories", "seed=0:2", "surface=ravine,cosine", "steps=30")
    for result in study.results:
        assert len(set(result.series("AdaDelta printed 1")[1])) == 1
        x, y = (result.series(f"descent {i}")[1] for i in (1, 2))
        if result.config.surface == "ravine":  # type: ignore[attr-defined]
            eta = result.values["descent rate"]
            assert y[3] == pytest.approx(y[0] * (1 - 100 * eta) ** 3, rel=1e-9, abs=1e-12)
            assert x[3] == pytest.approx(x[0] * (1 - eta) ** 3, rel=1e-9)
        ratio = result.values["Adam printed first step"] / result.values["Adam first step"]
        assert ratio == pytest.approx(math.sqrt(10), rel=1e-2)
    assert findings.claims[-1].verdict == "fails"


def test_race_widens_the_grids_of_every_kind(lab: Path) -> None:
    entrants = "momentum,Adam,str+,Glorot,layer"
    study, findings = ran("lecture-race", "seed=0:2", "epochs=2", "samples=128", f"optimizer={entrants}")
    assert list(findings.tables[0].frame["kind"]) == [
        "optimizer",
        "optimizer",
        "schedule",
        "initialization",
        "normalization",
    ]
    assert {"Adam improves on momentum, each at its own best rate."} <= {claim.text for claim in findings.claims}
    last = study.where(optimizer="str+")[0]
    assert last.values["lr"] == pytest.approx(0.0, abs=1e-9)  # the schedule moves with every step and has ended


def test_race_refuses_an_unknown_entrant() -> None:
    with pytest.raises(Exception, match="expected one of SGD, momentum"):
        request("lecture-race", "quick", ["optimizer=Lion"])
