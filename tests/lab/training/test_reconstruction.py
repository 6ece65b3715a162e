"""What is measured of an autoencoder, by scikit-image and by the definition; what counts as a silent death."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from skimage.metrics import structural_similarity

from thalweg.lab.data.catalogue import load
from thalweg.lab.experiment import experiment
from thalweg.lab.plan import request, trials
from thalweg.lab.store import RunFolder, Store
from thalweg.lab.training.checkpoint import load_checkpoint
from thalweg.lab.training.reconstruction import LAYERS, _dead, _mean_ssim, _warnings
from thalweg.lab.trial import Log, Trial, execute
from thalweg.nn import Autoencoder
from thalweg.operators import largest_singular_value


def planned(*words: str) -> tuple[Trial, RunFolder]:
    (trial,) = trials(request("csgd-autoencoder", "quick", ["seed=0", *words]), ())
    return trial, Store().open(trial.point)


def trained(folder: RunFolder) -> Autoencoder:
    model = Autoencoder((1, 8, 8))
    model.load_state_dict(load_checkpoint(folder.checkpoint)["parts"]["model"])
    return model


@pytest.mark.parametrize("optimizer", ["sgd", "csgd"])
def test_the_measurements_are_what_their_names_say(lab: Path, optimizer: str) -> None:
    trial, folder = planned("epochs=2", f"optimizer={optimizer}")
    ending = experiment("csgd-autoencoder").run(trial, Log(folder))
    model, tests = trained(folder), load("digits").test.images
    with torch.no_grad():
        outputs = model(tests).numpy().astype("float64")
    images = tests.numpy().astype("float64")
    pairs = list(zip(images[:, 0], outputs[:, 0], strict=True))
    similarities = [structural_similarity(a, b, win_size=7, data_range=1.0) for a, b in pairs]
    errors = [float(((a - b) ** 2).sum()) for a, b in pairs]
    # The laboratory's sums are over 64 float32 pixels and 49 in a window: each rounds by 2^-24.
    assert ending.values["ssim"] == pytest.approx(fmean(similarities), rel=1e-5)
    assert ending.values["test_mse"] == pytest.approx(fmean(errors), rel=1e-5)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for name, layer in zip(LAYERS, layers, strict=True):
        assert ending.values[f"s_max {name}"] == largest_singular_value(layer.weight)
    assert (ending.outcome, ending.values["epoch"]) == ("finished", 2)
    assert ending.data == {"digits": load("digits").fingerprint}
    assert 0 < ending.values["sharpness"] <= ending.values["bound"] * (1 + 1e-5)  # equal for SGD, in float32
    rows = folder.rows()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0].keys() == {"epoch", "test_mse", "sharpness", "bound", *(f"s_max {name}" for name in LAYERS)}
    assert rows[-1] == {key: value for key, value in ending.values.items() if key != "ssim"} | {
        "seconds": rows[-1]["seconds"]
    }


def test_mean_ssim_of_equal_and_of_different_images() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert _mean_ssim(images, images) == pytest.approx(1.0, abs=1e-6)  # float32
    assert _mean_ssim(images, 1 - images) < 0


def row(epoch: int, s: float, mse: float, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "test_mse": mse, **{f"s_max {name}": 1.0 for name in LAYERS}, "s_max decoder 1": s, **more}


@pytest.mark.parametrize(
    ("last", "dead"),
    [
        (row(9, s=11.0, mse=5.0), True),  # exploded, no better than the mean image
        (row(9, s=11.0, mse=9.0), True),  # better than untrained: a saturated answer may be
        (row(9, s=11.0, mse=25.0), True),
        (row(9, s=11.0, mse=4.9), False),  # exploded, yet it learnt
        (row(9, s=10.0, mse=25.0), False),  # tenfold is not more than tenfold
        (row(9, s=1.5, mse=25.0), False),  # only bad
    ],
)
def test_a_silent_death(last: dict[str, Any], dead: bool) -> None:
    assert _dead([row(0, s=1.0, mse=20.0), row(1, s=1e6, mse=1.0), last], 5.0) is dead


def test_any_layer_may_be_the_one_that_exploded() -> None:
    for name in LAYERS:
        assert _dead([row(0, s=1.0, mse=20.0), row(1, s=1.0, mse=20.0) | {f"s_max {name}": 10.5}], 5.0)


def test_what_the_warnings_say() -> None:
    calm = [row(0, 1, 20, bound=1.0, sharpness=0.5), row(1, 1, 10, bound=2.0, sharpness=1.0)]
    assert _warnings(calm, "finished") == []
    wild = [*calm, row(2, 5, 20, bound=3.0, sharpness=1.5), row(3, 9, 20, bound=9.0, sharpness=2.5)]
    (warning,) = _warnings(wild, "finished")
    assert "passed the stable limit 2/h at epoch 2, at most 4.5-fold" in warning
    assert "sharpness peaked at 2.5 (unstable from 2 on)" in warning
    lost = [*wild, row(4, 99, 20, bound=None, sharpness=None)]  # null in the file: it was not finite
    first, second = _warnings(lost, "dead")
    assert first == warning
    assert second.startswith("silent death")
    assert _warnings([row(0, 1, 20)], "finished") == []  # an optimizer whose stability is not measured


@pytest.mark.parametrize("lr", ["1e2", "1e4", "1e8", "1e30"])
@pytest.mark.parametrize("optimizer", ["sgd", "csgd"])
def test_a_learning_rate_out_of_all_proportion_is_an_outcome_not_a_crash(lab: Path, optimizer: str, lr: str) -> None:
    _, folder = planned("epochs=3", f"optimizer={optimizer}", f"lr={lr}", "batch=128")
    outcome = execute(str(lab), folder.id)
    assert outcome.kind == "done", outcome.message
    assert folder.state() in ("diverged", "dead")
    warned = [entry["warning"] for entry in folder.rows() if "warning" in entry]
    assert any(text.startswith("silent death") for text in warned) == (folder.state() == "dead")
    (result,) = Store().results(experiment("csgd-autoencoder"))
    assert all(isinstance(value, float | int) for value in result.values.values())
    assert math.isnan(result.values["train_loss"]) or result.outcome == "dead"
