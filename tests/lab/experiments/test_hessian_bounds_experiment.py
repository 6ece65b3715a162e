"""hessian-bounds: its families, one network evaluated by hand, its claims on made-up results."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from thalweg.lab.bound_tables import norm_slopes
from thalweg.lab.engine import pursue
from thalweg.lab.experiment import Result, Study, experiment
from thalweg.lab.experiments.hessian_bounds import _families
from thalweg.lab.plan import request, studies, trials
from thalweg.lab.store import Store

BOUNDS = ("lemma 2", "theorem 2", "operator norms", "full Hessian, exact H_O", "lemma 2 for H")


def made(config: Any, seed: int, exceeded: str = "") -> Result:
    """||H_O|| = w⁴ e^L, lemma 2 a hundred times w⁴ e^{3L}."""
    L, w = config.layers, config.scale
    H_O = w**4 * math.exp(L) * (1 + 0.001 * seed * L)
    values = {"H_O": H_O, "H": H_O + w, "loss": 1.0}
    for name in BOUNDS:
        over = float(name == exceeded and w < 1e-3)
        values |= {
            f"{name}: log10": math.log10(100 * w**4 * math.exp(3 * L)),
            f"{name}: loose": 2.0,
            f"{name}: exceeded": over,
            f"{name}: excess": 3.0 * over,
            f"{name}: proved": float(name != exceeded),
        }
    return Result("", config, seed, "finished", values, (), 0.0, (), {})


@pytest.fixture
def study() -> Study:
    wanted = experiment("hessian-bounds")
    configs = [trial.config for trial in trials(request("hessian-bounds", "quick", ["seed=0"]), ())]
    results = [made(config, seed, "lemma 2 for H") for config in configs for seed in (0, 1, 2)]
    shared = {key: value for key, value in configs[0].model_dump().items() if key not in wanted.sweep}
    return Study(wanted, shared, results)


@pytest.mark.parametrize("preset", ["quick", "laptop"])
def test_no_network_is_run_twice_and_every_family_has_all_its_values(preset: str) -> None:
    configs: list[Any] = [t.config for t in trials(request("hessian-bounds", preset, ["seed=0"]), ())]
    assert len({config.model_dump_json() for config in configs}) == len(configs)
    swept = experiment("hessian-bounds").swept(preset)
    assert {c.layers for c in configs if c.epochs == max(swept["epochs"])} == set(swept["layers"])
    assert {c.scale for c in configs if c.network == "conv1d"} == set(swept["scale"])
    assert {c.head_scale for c in configs if c.head == "linear"} == set(swept["head_scale"])


def test_slopes_and_verdicts(study: Study) -> None:
    families = dict(_families(study))
    assert norm_slopes(families["weights"], "H_O")[0] == pytest.approx(4.0, rel=1e-9)
    assert norm_slopes(families["depth"], "lemma 2")[0] == pytest.approx(3.0, rel=1e-9)
    verdicts = {claim.text: claim.verdict for claim in study.experiment.analyse(study).claims}
    assert verdicts["Lemma 2 bounds the norm of H_O."] == "holds"
    assert verdicts["Lemma 2 also bounds the norm of H, as ||H|| ~ ||H_O||."] == "fails"
    assert verdicts["At small weights the norm of H_O is the bounds' power of them, 2L, within 5%."] == "holds"
    assert verdicts["The norm of H_O grows with depth, initial weights (He's)."] == "holds"
    assert (
        verdicts["The norm of H_O grows with depth at least half as fast as lemma 2, initial weights (He's)."]
        == "fails"
    )


def test_tables_and_pictures(study: Study) -> None:
    findings = study.experiment.analyse(study)
    growth, looseness, exceeded = (table.frame for table in findings.tables)
    assert growth.set_index("varied").loc["depth", "H_O"].startswith("1.0")
    assert set(looseness["varied"]) == set(dict(_families(study)))
    row = exceeded.set_index("bound").loc["lemma 2 for H"]
    assert (row["proved"], row["largest exact/bound"], row["on"]) == ("no", "3", "H")
    assert [picture.name for picture in findings.pictures] == [
        "depth",
        "depth-trained",
        "weights",
        "channels",
        "kernel",
    ]


@pytest.mark.parametrize("count", [1, 9])
def test_a_study_that_has_only_begun_can_be_looked_at(study: Study, count: int) -> None:
    begun = replace(study, results=study.results[:count])
    assert study.experiment.analyse(begun).tables[-1].title == "What was exceeded"


def test_a_diverged_run_is_named(study: Study) -> None:
    lost = [
        replace(r, outcome="diverged", values={}) if r.config.layers == 3 and r.seed == 1 else r for r in study.results
    ]
    growth, looseness, _ = study.experiment.analyse(replace(study, results=lost)).tables
    row = looseness.frame.set_index(["varied", "value"]).loc[("depth", "3")]
    assert row["not averaged"] == "seed 1 diverged"
    assert growth.frame.set_index("varied").loc["depth", "H_O"].startswith("1.0")  # of the layers that are left


def test_one_network_by_hand(lab: Path) -> None:
    words = ["network=conv2d", "layers=2", "filters=4", "kernel=3", "scale=0.5", "epochs=0", "pooling=none"]
    words += ["head=average", "linear=1", "head_scale=1.0", "seed=0", "points=2"]
    wish = request("hessian-bounds", "quick", words)
    assert pursue([wish], Store(), jobs=1) == []
    wanted = experiment("hessian-bounds")
    (study,) = studies(wanted, Store().results(wanted))
    (result,) = study.where(scale=0.5)

    from thalweg.lab.training.landscape_task import landscape_task

    (trial,) = [t for t in trials(wish, ()) if t.config == result.config]
    work = landscape_task(trial)
    draw = trial.generator("He's weights")
    weights = [torch.nn.init.kaiming_normal_(torch.empty(p.shape), generator=draw) for p in work.model.parameters()]
    model = work.model.double()
    names = [name for name, _ in model.named_parameters()]
    sizes, shapes = [w.numel() for w in weights], [w.shape for w in weights]

    def loss(theta: torch.Tensor, i: int) -> torch.Tensor:
        parts = [part.reshape(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        z = functional_call(model, dict(zip(names, parts, strict=True)), (work.images[i : i + 1].double(),))
        return torch.nn.functional.cross_entropy(z, work.labels[i : i + 1])

    theta = torch.cat([0.5 * w.double().flatten() for w in weights])
    norms = [torch.linalg.eigvalsh(torch.func.hessian(loss)(theta, i)).abs().max() for i in range(2)]
    assert result.values["H"] == pytest.approx(float(torch.stack(norms).median()), rel=1e-9)  # float64
    assert result.values["theorem 2: exceeded"] == 0
