"""Trajectories of the first regime on the sphere: seed 001, figure 7 (left), and how far they are from one another.

Runs of different ELR share their initial weights and batches. They are compared at equal training loss, in the phase
plane of loss and effective gradient norm. Then the end of each run is looked for on the path of the run of the next
higher ELR: were both on one trajectory, only at different speeds, the slower run's end would lie on the other's path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves, tracks
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.sphere_runs import CIFAR, LABELS, PLANE, at_loss, label, labels, setting, track
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3: figure 7, left"
TITLE = "Trajectories of the first regime at different ELRs"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"elr": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "against": (0.0,)}
SNAPSHOTS = 48


class Config(ScaleSettings):
    """Clean digits: without random labels the first regime is two decades wide."""

    elr: float = Field(1e-3, gt=0, description="figure 7 has the authors' ELRs up to 1e-3 on ConvNet")
    against: float = Field(0.0, ge=0, description="0: train; else compare with the path of the run at this ELR")
    samples: int = Field(1280, ge=0, description="ours: whole batches only; a small last one ends the regime early")
    epochs: int = Field(200, ge=20, description="ours; the authors' code has 1000")


PRESETS = {
    "quick": Preset("40 s", 5),
    "laptop": Preset(
        "10 min, estimated",
        2,
        {**CIFAR, "width": 8, "samples": 2048, "epochs": 150},
        {"elr": (2e-4, 5e-4, 1e-3, 2e-3)},
    ),
    "paper": Preset(
        "4 weeks, estimated",
        2,
        {**CIFAR, "width": 32, "samples": 0, "epochs": 1000},
        {"elr": (1e-5, 5e-5, 1e-4, 2e-4, 5e-4)},
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """A run at every ELR; when all are there, each run against the next."""
    base = settings.model_dump(exclude={"elr", "against"})
    rates = sorted(set(sweep["elr"]))
    done = {(setting(r).elr, r.seed) for r in results if not setting(r).against and r.outcome == "finished"}
    pairs = [(a, b) for a, b in pairwise(rates) if {(rate, seed) for rate in (a, b) for seed in seeds} <= done]
    trained: list[Settings] = [Config(**base, elr=rate) for rate in rates]
    return trained + [Config(**base, elr=a, against=b) for a, b in pairs]


def run(trial: Trial, log: Log) -> Ending:
    """Train one network, or compare two that are trained."""
    from thalweg.lab.training.on_sphere import train_on_sphere
    from thalweg.lab.training.scale_invariant import task
    from thalweg.lab.training.snapshots import Snapshots, log_spaced

    config: Any = trial.config
    if config.against:
        return _compare(trial, log)
    work = task(trial)
    snapshots = Snapshots(work.invariant, log_spaced(config.epochs, SNAPSHOTS))
    return train_on_sphere(trial, log, work=work, rules=[snapshots], measure=snapshots.from_start)


def _compare(trial: Trial, log: Log) -> Ending:
    """How far two runs are apart by epoch, and how far the end of this one is from the other's path."""
    from thalweg.lab.training.snapshots import cosine_distance, read_snapshots

    config: Any = trial.config
    own = read_snapshots(trial.sibling(against=0.0))
    other = read_snapshots(trial.sibling(against=0.0, elr=config.against))
    for epoch in own:
        log.row(epoch=epoch, apart=cosine_distance(own[epoch], other[epoch]))
    end = own[max(own)]
    nearest = min(cosine_distance(end, place) for place in other.values())
    values = {
        "apart": cosine_distance(end, other[max(other)]),
        "off path": math.sqrt(nearest / cosine_distance(end, own[0])),
    }
    return Ending(values)


def analyse(study: Study) -> Findings:
    """Ends of the runs, their phase plane, and the seed's sentences on trajectories."""
    trained = [result for result in study.results if not setting(result).against]
    columns = {
        "train_loss": "loss",
        "effective_grad_norm": "eff. grad norm",
        "test_error": "test error",
        "cosine_distance": "1 - cos of a step",
    }
    frame = mean_std(trained, {"elr": "ELR"}, columns, formats=dict.fromkeys(columns, ".2g"))
    rates = sorted({setting(result).elr for result in trained})
    frame.insert(1, "regime", [labels(_runs(study, rate)) for rate in rates])
    compared = [result for result in study.results if setting(result).against]
    tables = [Table("Where the runs end", frame, "Means over the last tenth of the epochs.")]
    if compared:
        apart = {"off path": "end to the other's path", "apart": "1 - cos of the ends"}
        by = {"elr": "ELR", "against": "against ELR"}
        note = (
            "End to the other's path: chord from the slower run's end to the nearest snapshot of the faster run, over "
            "its chord to the start. 0: on its trajectory; 1: nowhere nearer than at the start."
        )
        tables.append(
            Table("Neighbouring ELRs", mean_std(compared, by, apart, formats=dict.fromkeys(apart, ".2g")), note)
        )

    first = min((r.seed for r in trained), default=0)
    shown = {f"{rate:g}": [r for r in _runs(study, rate) if r.seed == first] for rate in rates}
    moved = {f"{rate:g}": [r.series("from_start") for r in _runs(study, rate)] for rate in rates}
    return Findings(
        claims=_claims(study, trained, compared),
        tables=tables,
        pictures=[
            Picture(
                "phases",
                "Figure 7, left: training loss against effective gradient norm, by ELR",
                tracks({name: [track(r) for r in runs] for name, runs in shown.items()}, **PLANE),
                "One seed; means over stretches of epochs, the marker is the end. At equal loss, left is flatter.",
            ),
            Picture(
                "errors",
                "Figure 7, left: training loss against test error, by ELR",
                tracks(
                    {name: [track(r, "test_error") for r in runs] for name, runs in shown.items()},
                    xlabel="test error",
                    ylabel="training loss",
                ),
                "The same runs.",
            ),
            Picture(
                "distance",
                "Distance from the initial weights, by ELR",
                curves(moved, xlabel="epoch", ylabel="1 - cos(weights, initial weights)"),
                "Mean over seeds; the band is their range.",
            ),
        ],
    )


def _runs(study: Study, rate: float) -> list[Result]:
    return study.where(elr=rate, against=0.0)


def _claims(study: Study, trained: Sequence[Result], compared: Sequence[Result]) -> list[Claim]:
    converged: dict[int, list[Result]] = {result.seed: [] for result in trained}
    for result in sorted(trained, key=lambda r: float(setting(r).elr)):
        if label(result) == LABELS[0]:
            converged[result.seed].append(result)
    if not converged or any(len(runs) < 2 for runs in converged.values()):
        return []
    source = "seed 001, section 3, first regime"
    slow, fast = ({seed: runs[i] for seed, runs in converged.items()} for i in (0, -1))
    level = {s: max(runs[i].values["train_loss"] for i in (0, -1)) for s, runs in converged.items()}

    def judge(key: str, what: str, unit: str, equal_loss: bool) -> Claim:
        a, b = (
            {s: at_loss(r, key, level[s]) if equal_loss else r.values[key] for s, r in runs.items()}
            for runs in (fast, slow)
        )
        where = "at equal training loss" if equal_loss else "at the end of training"
        text = f"In the first regime a higher ELR has the lower {what} {where}."
        return paired("less", a, b, text=text, source=source, unit=f"{unit}, highest convergent ELR minus lowest")

    claims = [
        judge("effective_grad_norm", "curvature (effective gradient norm)", "effective gradient norm", True),
        judge("test_error", "test error", "test error", True),
        judge("test_error", "test error", "test error", False),
    ]
    pairs = sorted({(setting(r).elr, setting(r).against) for r in compared})
    if len(pairs) > 1:
        low, high = (study.by_seed("off path", elr=a, against=b) for a, b in (pairs[0], pairs[-1]))
        claims.append(
            paired(
                "greater", high, low,
                text="The trajectories of the lowest ELRs coincide better than those of higher ones.",
                source=source, unit="end to the other's path, highest two ELRs minus lowest two",
            )
        )  # fmt: skip
    return claims
