"""The ablation of the periodic behaviour: the same training with the norm held fixed (seed 001, section 3).

If periods come from the norm, which weight decay shrinks until the effective learning rate is too high, there must be
none when every step is followed by rescaling to the initial norm; weight decay then only lengthens the step, by
1/(1 - ηλ).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3, periodic behaviour: the ablation"
TITLE = "No periods where the norm is fixed"
VERSION = 1
NORMS = ("free", "fixed")
SWEEP: dict[str, tuple[Any, ...]] = {"norm": NORMS}


class Config(ScaleSettings):
    """The clearest periods of ``periodic``, and the same without a free norm."""

    samples: int = Field(1280, ge=0, description="ours: whole batches only, as in periodic")
    width: int = Field(64, ge=1, description="ours; c, the authors' 32 (convnet, resnet18)")
    epochs: int = Field(800, ge=20, description="ours; the authors' code has 1000")
    lr: float = Field(1.0, gt=0, description="ours; figure 3 has 1e-3, 1e-2, 3e-2 and 1.0")
    wd: float = Field(1e-3, gt=0, lt=1, description="the authors' code has 1e-3")
    norm: Literal["free", "fixed"] = Field("free", description="fixed: rescaled to the initial norm after every step")


PRESETS = {
    "quick": Preset("20 s", 3),
    "laptop": Preset("5 min, estimated", 10, {"epochs": 2000}),
    "paper": Preset(
        "2 d on a CPU, estimated; made for a GPU", 3,
        {"data": "cifar10", "samples": 0, "network": "convnet", "width": 32, "epochs": 1000, "lr": 0.03},
    ),
}  # fmt: skip


def run(trial: Trial, log: Log) -> Ending:
    """Train one network, its norm free or fixed."""
    from thalweg.lab.training.whole_space import train_in_whole_space

    return train_in_whole_space(trial, log)


def analyse(study: Study) -> Findings:
    """Spikes of the loss with and without a free norm."""
    columns = {"spikes": "loss spikes", "final_loss": "training loss", "test_error": "test error"}
    frame = mean_std(study.results, {"norm": "norm"}, columns, formats={"spikes": ".3g", "final_loss": ".2g"})
    losses = {f"{norm} norm": [r.series("train_loss") for r in study.where(norm=norm)[:1]] for norm in NORMS}
    note = "A spike: the loss, averaged over an epoch, rises at least tenfold above a level it had come down to."
    caption = "One seed. The same learning rate, weight decay, initial weights and batches."
    drawn = curves(losses, xlabel="epoch", ylabel="training loss", logy=True)
    return Findings(
        _claims(study),
        [Table("With and without a free norm", frame, note)],
        [Picture("losses", "Training loss by epoch", drawn, caption)],
    )


def _claims(study: Study) -> list[Claim]:
    free, fixed = (study.by_seed("spikes", norm=norm) for norm in NORMS)
    where = "seed 001, section 3, periodic behaviour"
    return [
        paired(
            "greater", free, dict.fromkeys(free, 1.5),
            text="With a free norm training is thrown out of its minimum again and again.",
            source=where, unit="loss spikes, minus 1.5",
        ),
        paired(
            "less", fixed, dict.fromkeys(fixed, 0.5),
            text="Fixing the norm removes the periods.",
            source=where, unit="loss spikes with the norm fixed, minus 0.5",
        ),
    ]  # fmt: skip
