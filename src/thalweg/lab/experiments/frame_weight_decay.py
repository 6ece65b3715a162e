"""Whether the upper frame bound replaces weight decay: frame penalties and none, with and without it (seed 002).

Slide 15: the penalty "made it possible to drop the standard regularization, weight decay, by a penalty on the upper
bound of the frame". What can be tested of it: without weight decay the bound holds the largest eigenvalue lower than
weight decay does, and nothing is lost in accuracy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Study, Table
from thalweg.lab.figures import panels
from thalweg.lab.frame_settings import CIFAR, FRAMES, METHODS, TIGHT, FrameSettings, Init, Method
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 002, slide 15, last sentence"
TITLE = "Does the upper frame bound replace weight decay?"
VERSION = 2
SWEEP: dict[str, tuple[Any, ...]] = {"method": ("none", *FRAMES), "decay": (0.0, 5e-4)}
NAMES = {
    "frame": "the frame penalty",
    "polyak": "the frame penalty with steps of its own",
    "spectral": "the frame penalty's spectral form",
}
MARGIN = 1.0  # points of accuracy that may be lost when something is "replaced"


class Config(FrameSettings):
    """Penalty and weight decay, crossed."""

    method: Method = Field("none", description="slide 15: frame; polyak and spectral are ours")
    decay: float = Field(0.0, ge=0, description="weight decay of all parameters; 5e-4 is the CIFAR recipes'")
    frame_init: Init = Field("frame", description="of frame and polyak; not in the slides, ours; the others have He's")


PRESETS = {
    "quick": Preset("2 min", 5, {"epochs": 20}),
    "laptop": Preset("15 min", 5, {**CIFAR, "augment": True, "epochs": 12}),
    "paper": Preset(
        "GPU days, estimated",
        3,
        {"data": "cifar10", "network": "resnet34", "width": 64, "augment": True, "epochs": 200},
    ),
}


def run(trial: Trial, log: Log) -> Ending:
    """Train one network, and look at its spectra at the end."""
    from thalweg.lab.training.classification import train_regularized

    config: Any = trial.config
    init: Init = config.frame_init if config.method in TIGHT else "he"
    return train_regularized(
        trial, log, method=config.method, init=init, decay=config.decay, spectra_at=(config.epochs,)
    )


def analyse(study: Study) -> Findings:
    """Accuracy, size and spectrum with and without weight decay."""
    ends = [_summarized(result) for result in study.results]
    columns = {
        "accuracy": "accuracy, %",
        "test_loss": "test loss",
        "train_loss": "training loss",
        "norm": "norm",
        "max": "largest λ_max",
    }
    formats = {"accuracy": ".2f", "test_loss": ".3f", "train_loss": ".3f", "norm": ".1f", "max": ".2f"}
    frame = mean_std(ends, {"method": "method", "decay": "weight decay"}, columns, formats=formats)
    frame["method"] = frame["method"].replace(METHODS)
    methods = [m for m in METHODS if study.where(method=m)]
    decays = list(dict.fromkeys(result.config.model_dump()["decay"] for result in study.results))
    views = {
        METHODS[m]: {f"weight decay {d:g}": [r.series("norm") for r in study.where(method=m, decay=d)] for d in decays}
        for m in methods
    }
    return Findings(
        claims=_claims(replace(study, results=ends)),
        tables=[Table("With and without weight decay", frame, "After training. Norm: Frobenius, of all weights.")],
        pictures=[
            Picture(
                "norms",
                "Norm of all weights by epoch",
                panels(views, columns=min(4, len(views)), xlabel="epoch", ylabel="norm", sharey=True, width=7.2),
                "Mean over seeds; the band is their range.",
            )
        ],
    )


def _summarized(result: Result) -> Result:
    values = dict(result.values)
    largest = [value for key, value in values.items() if key.startswith("max ")]
    return replace(result, values=values | ({"max": max(largest)} if largest else {}))


def _claims(study: Study) -> list[Claim]:
    decays = [d for d in study.experiment.swept(study.preset)["decay"] if study.where(decay=d)]
    if len(decays) < 2 or not study.where(method="none"):
        return []
    without, standard = min(decays), max(decays)
    claims = []
    for method in FRAMES:
        if not study.where(method=method):
            continue
        free = {key: study.by_seed(key, method=method, decay=without) for key in ("accuracy", "max", "norm")}
        name = NAMES[method]
        for other, rival in (("none", "weight decay alone"), (method, "both together")):
            found = study.by_seed("accuracy", method=other, decay=standard)
            claims.append(
                paired(
                    "greater",
                    free["accuracy"],
                    {seed: value - MARGIN for seed, value in found.items()},
                    text=f"Without weight decay {name} is as accurate as {rival}, within {MARGIN:g} point.",
                    source="seed 002, slide 15",
                    unit=f"accuracy in points, minus that of {rival}, plus {MARGIN:g}",
                )
            )
        claims += [
            paired(
                "greater",
                free["accuracy"],
                study.by_seed("accuracy", method="none", decay=without),
                text=f"Without weight decay {name} is more accurate than no penalty.",
                source="seed 002, slides 12, 15",
                unit="accuracy in points, minus that of neither",
            ),
            paired(
                "less",
                free["max"],
                study.by_seed("max", method="none", decay=standard),
                text=f"Without weight decay {name} keeps the largest λ_max lower than weight decay does.",
                source="seed 002, slide 15",
                unit="largest λ_max of a layer, minus that under weight decay",
            ),
        ]
    return claims
