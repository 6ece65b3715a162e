"""A schedule made from the regimes: the second first, then down into the first (the practical use of seed 001).

At equal budget a constant ELR, a cosine from it to zero, and the schedule of two stages (constant, then falling
exponentially by ``drop``) are compared, each at its own best first ELR. The best is the one with the lowest mean test
error, for each alike: all three are flattered alike.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3, conclusions: schedules of the effective learning rate"
TITLE = "A schedule of the effective learning rate made from the regimes"
VERSION = 1
SCHEDULES = ("constant", "cosine", "two-stage")
SWEEP: dict[str, tuple[Any, ...]] = {"schedule": SCHEDULES, "elr": (1e-3, 3e-3, 1e-2, 3e-2, 6e-2)}


class Config(ScaleSettings):
    """A perceptron on digits with some random labels, as in sphere-regimes."""

    schedule: Literal["constant", "cosine", "two-stage"] = Field("two-stage", description="what is compared")
    elr: float = Field(1e-2, gt=0, description="the first ELR; swept over the first two regimes")
    stay: float = Field(0.5, gt=0, lt=1, description="ours: share of the epochs at the first ELR (two-stage)")
    drop: float = Field(100.0, gt=1, description="ours: first ELR over last (two-stage)")
    label_noise: float = Field(0.2, ge=0, le=1, description="ours: share of random labels, as in sphere-regimes")


PRESETS = {
    "quick": Preset("90 s", 5),
    "laptop": Preset("15 min, estimated", 10, {"epochs": 400}),
    "paper": Preset(
        "10 d on a CPU, estimated; made for a GPU", 3,
        {"data": "cifar10", "network": "convnet", "width": 32, "label_noise": 0.0, "epochs": 1000},
        {"elr": (1e-4, 5e-4, 1e-3, 2e-3, 5e-3)},
    ),
}  # fmt: skip


def run(trial: Trial, log: Log) -> Ending:
    """Train one network on the sphere."""
    from thalweg.lab.training.elr_schedule import train_with_elr_schedule

    return train_with_elr_schedule(trial, log)


def analyse(study: Study) -> Findings:
    """Every schedule by its first ELR, and the best of each against the others."""
    best = _best(study)
    columns = {"test_error": "test error", "train_loss": "training loss"}
    frame = mean_std(
        study.results, {"schedule": "schedule", "elr": "first ELR"}, columns, formats={"train_loss": ".2g"}
    )
    marks = ["best" if best.get(row["schedule"]) == row["first ELR"] else "" for _, row in frame.iterrows()]
    frame.insert(2, "", marks)
    errors = {name: _by_rate(study, name) for name in SCHEDULES if study.where(schedule=name)}
    over_time = {
        f"{name}, {rate:g}": [r.series("test_error") for r in study.where(schedule=name, elr=rate)]
        for name, rate in best.items()
    }
    return Findings(
        _claims(study, best),
        [Table("Schedules at equal budget", frame, "Means over the last tenth of the epochs.")],
        [
            Picture(
                "rates",
                "Test error against the first ELR",
                curves(errors, xlabel="first ELR", ylabel="test error", logx=True),
                "Mean over seeds; the band is their range.",
            ),
            Picture(
                "errors",
                "Test error by epoch, each schedule at its best",
                curves(over_time, xlabel="epoch", ylabel="test error"),
                "Mean over seeds; the band is their range.",
            ),
        ],
    )


def _best(study: Study) -> dict[str, float]:
    """Schedule -> the first ELR with the lowest mean test error; one at which a run was lost cannot be best."""
    found: dict[str, float] = {}
    for name in SCHEDULES:
        rates = sorted({_elr(result) for result in study.where(schedule=name)})
        means = {rate: fmean(study.by_seed("test_error", schedule=name, elr=rate).values()) for rate in rates}
        if kept := {rate: mean for rate, mean in means.items() if math.isfinite(mean)}:
            found[name] = min(kept, key=kept.__getitem__)
    return found


def _elr(result: Any) -> float:
    return float(result.config.elr)


def _by_rate(study: Study, name: str) -> list[tuple[list[float], list[float]]]:
    rows: dict[int, list[tuple[float, float]]] = {}
    for result in sorted(study.where(schedule=name), key=_elr):
        error = result.values["test_error"] if result.outcome == "finished" else math.nan
        rows.setdefault(result.seed, []).append((_elr(result), error))
    return [([x for x, _ in row], [y for _, y in row]) for row in rows.values()]


def _claims(study: Study, best: dict[str, float]) -> list[Claim]:
    error = {name: study.by_seed("test_error", schedule=name, elr=rate) for name, rate in best.items()}
    return [
        paired(
            "less",
            error["two-stage"],
            error[rival],
            text=f"The second regime first and then the first generalizes better than {what}.",
            source="seed 001, section 3: conclusions",
            unit=f"test error, two stages minus {rival}, each at its best first ELR",
        )
        for rival, what in (("constant", "a constant ELR"), ("cosine", "a cosine"))
        if rival in error and "two-stage" in error
    ]
