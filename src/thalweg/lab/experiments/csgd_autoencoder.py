"""CSGD against SGD at the same learning rate, on an autoencoder: figure 2 and table 1 of seed 000.

The seed's text and its author's notebook disagree on the batch size and on when training stops; the printed numbers are
the notebook's. Both are here, as ``source=text`` and ``source=notebook``. Unlike in the seed, whose single runs start
from different weights, the optimizers of one seed share initial weights and batches.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 000, sections 4-5: figure 2, table 1"
TITLE = "CSGD against SGD at the same learning rate, on an autoencoder"
VERSION = 1
HEADLINE = True
SWEEP = {"optimizer": ("sgd", "csgd")}
NAMES = {"sgd": "SGD", "csgd": "CSGD"}

SOURCES: dict[str, dict[str, Any]] = {
    "text": {"batch": 128, "patience": 5, "min_lr": 0.0},
    "notebook": {"batch": 32, "patience": 3, "min_lr": 1e-5},
}
FORMATS = {"test_mse": ".3f", "ssim": ".3f", "train_loss": ".5f", "epoch": ".0f"}
PUBLISHED = {"data": "fashion-mnist", "lr": 0.1, "epochs": 100, "hidden": 128, "latent": 16}
PRINTED = {"sgd": "15.0783 / 0.6020", "csgd": "12.3370 / 0.6555"}
TERMS = (
    "Test MSE: squared error summed over an image's pixels, averaged over the test images. SSIM: scikit-image's "
    "definition (uniform 7x7 window, data_range 1), averaged over the test images."
)


class Autoencoding(Settings):
    """What every run of the autoencoder has."""

    data: str = Field("fashion-mnist", description="section 4.2")
    lr: float = Field(0.1, gt=0, description="section 4.3")
    epochs: int = Field(100, ge=1, description="section 4.3")
    batch: int = Field(128, ge=1, description="section 4.3 says 128, the notebook 32")
    hidden: int = Field(128, ge=1, description="section 4.1")
    latent: int = Field(16, ge=1, description="section 4.3")


class Config(Autoencoding):
    """Sections 4.3 and 4.4 of the seed, or its author's notebook."""

    source: Literal["text", "notebook"] = Field("text", description="which of the two published settings")
    optimizer: Literal["sgd", "csgd"] = Field("sgd", description="section 4.6: the two that are compared")
    min_delta: float = Field(1e-3, ge=0, description="section 4.4: an epoch is flat below this relative change")
    gamma: float = Field(0.5, gt=0, lt=1, description="section 4.4: factor on the learning rate after a flat epoch")
    patience: int = Field(5, ge=1, description="section 4.4 stops after 5 flat epochs, the notebook after 3")
    min_lr: float = Field(0.0, ge=0, description="floor under the learning rate: the notebook's 1e-5; text: none")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_source(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**SOURCES.get(values.get("source", "text"), {}), **values}


PRESETS = {
    "quick": Preset("15 s", 5, {"data": "digits", "source": "notebook", "epochs": 60, "lr": 1.0}),
    "laptop": Preset("8 min", 3),
    "paper": Preset("15 min, estimated", 5),
}


def run(trial: Trial, log: Log) -> Ending:
    """Train one autoencoder by the plateau rule of section 4.4."""
    import torch

    from thalweg.lab.training.reconstruction import train_autoencoder
    from thalweg.lab.training.stopping import PlateauRule
    from thalweg.optim import CSGD

    config: Any = trial.config
    make = {"sgd": torch.optim.SGD, "csgd": CSGD}[config.optimizer]
    plateau = config.model_dump(include={"patience", "min_delta", "gamma", "min_lr"})
    return train_autoencoder(
        trial,
        log,
        lambda model: [make(model.parameters(), lr=config.lr)],
        lambda optimizers: [PlateauRule(optimizers[0], **plateau)],
    )


def analyse(study: Study) -> Findings:
    """Table 1 and figure 2 of the seed, what explains them, and the seed's claims at the same learning rate."""
    columns = {"test_mse": "test MSE", "ssim": "SSIM", "train_loss": "training loss", "epoch": "epochs"}
    frame = mean_std(study.results, ["optimizer"], columns, formats=FORMATS)
    if PUBLISHED.items() <= study.settings.items():
        frame["printed MSE / SSIM"] = frame["optimizer"].map(PRINTED)
    layers = {key: key.removeprefix("s_max ") for key in study.results[0].values if key.startswith("s_max ")}
    spectra = mean_std(study.results, ["optimizer"], layers, formats=dict.fromkeys(layers, ".1f"))
    growth = "CSGD's step is lengthened up to 1 + s² times, and each long step raises s."
    return Findings(
        claims=_claims(study),
        tables=[
            Table("Table 1: reconstruction of the test images", frame.replace({"optimizer": NAMES}), TERMS),
            Table("Largest singular value s of each layer's weight", spectra.replace({"optimizer": NAMES}), growth),
        ],
        pictures=[
            Picture(
                "training-error",
                "Figure 2: training error by epoch",
                curves(_series(study, "train_loss"), xlabel="epoch", ylabel="squared error per pixel", logy=True),
                "Mean over seeds; the band is their range.",
            ),
            Picture(
                "sharpness",
                "How close each step is to instability",
                curves(_series(study, "sharpness"), xlabel="epoch", ylabel="sharpness λ(lr P H)"),
                "Top eigenvalue of learning rate x preconditioner P x Hessian H (P = I for SGD); from 2 on a step is "
                "unstable. At the same learning rate CSGD takes the longer steps.",
            ),
        ],
    )


def _series(study: Study, key: str) -> dict[str, list[tuple[list[float], list[float]]]]:
    return {label: [result.series(key) for result in study.where(optimizer=name)] for name, label in NAMES.items()}


def _claims(study: Study) -> list[Claim]:
    target = study.by_seed("train_loss", optimizer="sgd")
    epochs = {
        name: {r.seed: _epochs_to(r, target.get(r.seed, math.nan)) for r in study.where(optimizer=name)}
        for name in NAMES
    }
    mse, ssim = ({name: study.by_seed(key, optimizer=name) for name in NAMES} for key in ("test_mse", "ssim"))
    return [
        paired(
            "less",
            epochs["csgd"],
            epochs["sgd"],
            text="At the same learning rate CSGD converges faster than SGD.",
            source="seed 000, section 5.1",
            unit="epochs until SGD's final training loss is reached, CSGD minus SGD",
        ),
        paired(
            "less",
            mse["csgd"],
            mse["sgd"],
            text="At the same learning rate CSGD has the lower test MSE.",
            source="seed 000, table 1",
            unit="test MSE, CSGD minus SGD",
            printed="-2.741",
        ),
        paired(
            "greater",
            ssim["csgd"],
            ssim["sgd"],
            text="At the same learning rate CSGD has the higher SSIM.",
            source="seed 000, table 1",
            unit="SSIM, CSGD minus SGD",
            printed="+0.0535",
        ),
    ]


def _epochs_to(result: Result, loss: float) -> float:
    """First epoch whose training loss is at most ``loss``, or one more than were run; NaN for a lost run."""
    if result.outcome != "finished":
        return math.nan
    epochs, losses = result.series("train_loss")
    return next((epoch for epoch, value in zip(epochs, losses, strict=True) if value <= loss), epochs[-1] + 1)
