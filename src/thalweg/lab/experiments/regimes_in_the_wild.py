"""The regimes and periods of seed 001 outside their laboratory: whole space, ordinary networks, practical training.

Scale-invariant networks at three products lr·wd show convergence, periods and equilibrium in the whole space; ordinary
networks (affine normalization, trained last layer) are then trained with momentum, augmentation, AdamW and schedules,
and watched for periods. The warm-up is the time to the first bottom of the norm; minima are compared from period to
period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3: figure 1, warm-up, minima of periods, and ordinary training"
TITLE = "Regimes and periods in ordinary training"
VERSION = 1
VARIANTS: dict[str, dict[str, Any]] = {
    "small lr·wd": {"lr": 0.1, "wd": 1e-3},
    "medium lr·wd": {"lr": 1.0, "wd": 3e-3},
    "large lr·wd": {"lr": 1.0, "wd": 0.1},
    "ordinary": {"lr": 1.0, "wd": 3e-3, "affine": True},
    "momentum": {"lr": 0.1, "wd": 3e-3, "affine": True, "momentum": 0.9},
    "augmentation": {"lr": 1.0, "wd": 3e-3, "affine": True, "augment": True},
    "adamw": {"lr": 0.01, "wd": 0.3, "affine": True, "optimizer": "adamw"},
    "step schedule": {"lr": 1.0, "wd": 3e-3, "affine": True, "schedule": "step"},
    "cosine": {"lr": 1.0, "wd": 3e-3, "affine": True, "schedule": "cosine"},
}
SWEEP: dict[str, tuple[Any, ...]] = {
    "variant": tuple(VARIANTS),
    **dict.fromkeys(("lr", "wd", "affine", "augment", "momentum", "optimizer", "schedule"), ()),
}
NOTE = (
    "Period and warm-up in iterations; means over seeds. Periods of a dozen iterations without spikes of the loss are "
    "the noise of an equilibrium."
)
VERDICTS = ("periodic", "equilibrium", "divergent", "undecided")


class Config(ScaleSettings):
    """A perceptron on clean digits, as in ``periodic``; what a variant changes is listed in ``VARIANTS``."""

    samples: int = Field(1280, ge=0, description="ours: whole batches only, as in periodic")
    width: int = Field(64, ge=1, description="ours; c, the authors' 32 (convnet, resnet18)")
    epochs: int = Field(400, ge=20, description="ours; the authors' code has 1000")
    variant: str = Field("ordinary", description="a name in VARIANTS, which gives the settings below")
    lr: float = Field(1.0, gt=0, description="of the variant")
    wd: float = Field(3e-3, ge=0, description="of the variant")
    momentum: float = Field(0.0, ge=0, lt=1, description="of the variant")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="of the variant")
    schedule: Literal["constant", "step", "cosine"] = Field("constant", description="of the variant")


PRESETS = {
    "quick": Preset("60 s", 3),
    "laptop": Preset("5 min, estimated", 5, {"epochs": 1600}),
    "paper": Preset(
        "10 d on a CPU, estimated; made for a GPU", 3,
        {"data": "cifar10", "samples": 0, "network": "convnet", "width": 32, "epochs": 1000},
    ),
}  # fmt: skip


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """The settings of every variant; values that were asked for come before a variant's own."""
    asked = {key: values[0] for key, values in sweep.items() if key != "variant" and values}
    base = {key: value for key, value in settings.model_dump().items() if key not in sweep}
    return [Config(**base, variant=name, **{**VARIANTS.get(name, {}), **asked}) for name in sweep["variant"]]


def run(trial: Trial, log: Log) -> Ending:
    """Train one network."""
    from thalweg.lab.training.in_the_wild import train_in_the_wild

    return train_in_the_wild(trial, log)


def analyse(study: Study) -> Findings:
    """What became of every variant, the minima of its periods, and the claims."""
    columns = {
        "cycles": "cycles",
        "spikes": "loss spikes",
        "period": "period",
        "warm_up": "warm-up",
        "train_loss, end": "training loss",
        "test_error, end": "test error",
    }
    shown = {key: name for key, name in columns.items() if any(key in result.values for result in study.results)}
    shapes = {key: ".0f" if key in ("period", "warm_up") else ".2g" for key in shown}
    frame = mean_std(study.results, {"variant": "variant"}, shown, formats={**shapes, "cycles": ".1f", "spikes": ".1f"})
    told = [" / ".join(dict.fromkeys(_verdict(r) for r in study.where(variant=name))) for name in frame["variant"]]
    frame.insert(1, "verdict", told)
    minima = {
        f"{key}, {place}": f"{short}, {place} minimum"
        for key, short in (("train_loss", "loss"), ("test_error", "test error"))
        for place in ("first", "second", "last")
    }
    periodic = [result for result in study.results if result.values.get("cycles", 0) >= 2]
    present = {key: name for key, name in minima.items() if any(key in result.values for result in periodic)}
    tables = [Table("What became of training", frame, NOTE)]
    if present:
        later = mean_std(periodic, {"variant": "variant"}, present, formats=dict.fromkeys(present, ".2g"))
        tables.append(Table("Minima of successive periods", later, "The epoch before each bottom of the norm."))
    norms = {
        name: [r.series("rho") for r in study.where(variant=name)[:1]]
        for name in ("small lr·wd", "medium lr·wd", "large lr·wd", "ordinary", "cosine")
        if study.where(variant=name)
    }
    drawn = curves(norms, xlabel="epoch", ylabel="ρ", logy=True)
    return Findings(
        _claims(study), tables, [Picture("norms", "Norm of the scale-invariant weights", drawn, "One seed.")]
    )


def _verdict(result: Result) -> str:
    return VERDICTS[int(result.values["verdict"])] if result.outcome == "finished" else result.outcome


def _claims(study: Study) -> list[Claim]:
    def cycles(name: str) -> dict[int, float]:
        return study.by_seed("cycles", variant=name)

    where = "seed 001, section 3.1"
    claims = [
        paired(
            "greater",
            cycles(name),
            dict.fromkeys(cycles(name), 1.5),
            text=f"Periodic behaviour remains {what}.",
            source=where,
            unit="cycles, minus 1.5",
        )
        for name, what in (
            ("ordinary", "in an ordinary network, with parameters that are not scale-invariant"),
            ("momentum", "with momentum"),
            ("augmentation", "with data augmentation"),
        )
        if cycles(name)
    ]
    if cycles("cosine") and cycles("ordinary"):
        claims.append(
            paired(
                "less",
                cycles("cosine"),
                cycles("ordinary"),
                text="An aggressive schedule (cosine) suppresses the periods.",
                source=where,
                unit="cycles with the schedule, minus cycles without",
            )
        )
    return claims
