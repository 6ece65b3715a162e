"""sample-convergence: its grid, its two moments against the definition, its claims on made-up results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from thalweg.lab.engine import pursue
from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Result, Study, experiment
from thalweg.lab.experiments.sample_convergence import LEVELS, PRESETS, SWEEP
from thalweg.lab.plan import request, studies, trials
from thalweg.lab.store import Store

EACH = nn.CrossEntropyLoss(reduction="none")


def made(config: Any, seed: int = 0, **values: float) -> Result:
    numbers = {"fixed loss": 1.0, "fixed deviation": 1.0, "fixed d_10": 0.1, "level deviation": 1.0, "level epoch": 2.0}
    rows = [{"k": 1.0, "increment": 0.5}, {"k": 9.0, "increment": 0.1}]
    return Result("", config, seed, "finished", {**numbers, **values}, rows, 0.0, (), {})


def study_of(preset: str, value: Any, **level: Any) -> Study:
    """All runs of a preset, with values by config and seed."""
    wanted = experiment("sample-convergence")
    settings = [trial.config for trial in trials(request("sample-convergence", preset, ["seed=0"]), ())]
    results = [made(config, seed, **value(config, seed)) for config in settings for seed in (0, 1, 2)]
    shared = {key: v for key, v in settings[0].model_dump().items() if key not in wanted.sweep}
    return Study(wanted, shared | level, results)


def test_every_factor_varies_alone_around_the_middle() -> None:
    configs: list[Any] = [t.config for t in trials(request("sample-convergence", "quick", ["seed=0"]), ())]
    conv = {(c.layers, c.kernel, c.filters) for c in configs if c.network == "conv2d"}
    assert conv == {(1, 3, 8), (2, 3, 8), (4, 3, 8), (2, 1, 8), (2, 5, 8), (2, 3, 4), (2, 3, 16)}
    assert len([c for c in configs if c.network == "mlp"]) == 5  # kernels mean nothing to a perceptron
    assert all(data in LEVELS for preset in PRESETS.values() for data in {**SWEEP, **preset.sweep}["data"])


def test_the_paper_preset_is_the_predecessors_code() -> None:
    configs: list[Any] = [t.config for t in trials(request("sample-convergence", "paper", ["seed=0"]), ())]
    grid = {(c.layers, c.filters) for c in configs}
    assert grid == {(d, 16) for d in (1, 3, 5, 7, 10)} | {(5, h) for h in (4, 8, 16, 32, 64)}  # figures: L = 5, h = 16
    assert {c.data for c in configs} == {"mnist", "fashion-mnist", "cifar10", "cifar100"}
    published = {"network": "mlp", "samples": 10000, "lr": 1e-3, "batch": 64, "fixed": 10, "pooling": "none"}
    assert all(published.items() <= c.model_dump().items() for c in configs)


def test_a_run_measures_what_the_definition_says(lab: Path) -> None:
    words = ["network=conv2d", "layers=1", "kernel=3", "filters=2", "samples=60"]
    words += ["fixed=2", "epochs=8", "level=2.21", "seed=0"]
    assert pursue([request("sample-convergence", "quick", words)], Store(), jobs=1) == []
    wanted = experiment("sample-convergence")
    (study,) = studies(wanted, Store().results(wanted))
    (result,) = study.results
    losses = [row["loss"] for row in result.rows if "epoch" in row]
    assert losses[-2] > 2.21 >= losses[-1]  # it stops at the later of the two moments
    assert 4 <= len(losses) < 9
    assert result.values["fixed loss"] == losses[2]
    passed = math.floor(result.values["level epoch"])
    assert losses[passed] >= 2.21 >= losses[passed + 1]
    curve = {row["k"]: row["increment"] for row in result.rows if "k" in row}
    # at k = N - 1 every order has the mean of all but one: mean |l_i - L| / (N - 1), whatever the order
    assert curve[59] == pytest.approx(result.values["fixed deviation"] / 59, rel=1e-9)
    assert wanted.analyse(study).claims == []  # one network has no slope


def test_moments_hold_the_losses_of_every_sample() -> None:
    from thalweg.lab.training.landscape_increments import LossMoments
    from thalweg.lab.training.landscape_task import LandscapeTask
    from thalweg.nn import MatricizedNet

    draw = torch.Generator().manual_seed(0)
    model = MatricizedNet((1, 4, 4), 3, convolutions=1, filters=2, generator=draw)
    x, y = torch.randn(20, 1, 4, 4, generator=draw), torch.randint(3, (20,), generator=draw)
    moments = LossMoments(LandscapeTask(model, x, y, {}), fixed=2, level=0.5)
    one_by_one = torch.stack([EACH(model(x[i : i + 1]), y[i : i + 1])[0] for i in range(20)]).detach().double()
    row = moments.measure(1)
    assert row["loss"] == pytest.approx(float(one_by_one.mean()), rel=1e-6)  # float32 forward passes
    assert row["deviation"] == pytest.approx(float((one_by_one - one_by_one.mean()).abs().mean()), rel=1e-5)
    assert not moments.update({"epoch": 1, "loss": 0.4})
    assert set(moments.taken) == {"level"}
    resumed = LossMoments(LandscapeTask(model, x, y, {}), fixed=2, level=0.5)
    resumed.load_state_dict(moments.state_dict())
    resumed.measure(2)
    assert resumed.update({"epoch": 2, "loss": 0.3})
    assert torch.equal(resumed.taken["level"], moments.taken["level"])


def test_a_confounder_is_told_from_an_effect() -> None:
    def value(config: Any, seed: int) -> dict[str, float]:
        noise = 1 + 0.01 * seed
        width = config.filters**-0.9
        return {
            "fixed loss": width * noise,
            "fixed deviation": width * 1.2**config.layers * 1.1**config.kernel * noise**config.layers,
            "level deviation": 1.2**config.layers
            * 0.9**config.kernel
            * (1 + 0.001 * seed * config.filters)
            * noise ** (config.layers + config.kernel),
        }

    claims = {claim.text: claim for claim in experiment("sample-convergence").analyse(study_of("quick", value)).claims}
    verdicts = {text: claim.verdict for text, claim in claims.items()}
    assert (
        verdicts["2-D convolutions, trained for equal epochs: the increment grows with the number of layers."]
        == "holds"
    )
    assert verdicts["2-D convolutions, at equal loss: the increment grows with kernel size."] == "fails"
    assert verdicts["2-D convolutions, trained for equal epochs: the increment falls with width."] == "holds"
    assert verdicts["2-D convolutions, at equal loss: the increment falls with width."] == "undecided"
    assert verdicts["2-D convolutions: wider networks are trained better after equal epochs."] == "holds"
    assert verdicts["2-D convolutions: at equal loss less than half of the fall with width is left."] == "holds"
    slope = claims["2-D convolutions: wider networks are trained better after equal epochs."].effect
    assert slope == pytest.approx(-0.9 * math.log(2), rel=1e-9)


def test_data_without_a_known_level_are_refused_before_they_are_looked_for() -> None:
    with pytest.raises(LabError, match=r"no level of the loss is known for data=svhn: give one, as in level=0\.5"):
        request("sample-convergence", "quick", ["data=svhn"])
    assert request("sample-convergence", "quick", ["data=svhn", "level=0.5"]).overrides["data"] == ["svhn"]


def test_a_level_that_is_not_reached_makes_no_claim_and_is_told() -> None:
    findings = experiment("sample-convergence").analyse(
        study_of("quick", lambda config, seed: {"level deviation": math.nan} if config.filters == 4 else {})
    )
    assert not any("at equal loss: the increment falls" in claim.text for claim in findings.claims)
    assert any("did not come down to the level" in note for note in findings.notes)


@pytest.mark.parametrize("words", [["kernel=2"], ["fixed=50"], ["head=none"]])
def test_settings_that_do_not_fit_are_refused_before_anything_runs(words: list[str]) -> None:
    with pytest.raises(LabError, match="is not accepted"):
        request("sample-convergence", "quick", words)
