"""Linear connectivity of what training on the sphere finds: seed 001, section 3, first and second regime.

Losses are measured on the paths between ends of runs that differ in ELR, or in the order of their batches, or in
nothing (two places of one run). The first tell whether minima of the first regime lie in one basin, the last whether
the region of an equilibrium is convex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.sphere_runs import CIFAR, LABELS, labels, rates_in, setting
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from thalweg.lab.training.scale_invariant import Task

SOURCE = "seed 001, section 3: linear connectivity of the first and second regime"
TITLE = "Linear connectivity of minima and equilibria on the sphere"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"elr": (5e-4, 2e-3, 1.5e-2, 4e-2), "order": (0, 1), "other": (0.0,)}


class Config(ScaleSettings):
    """A run (``other`` = 0), or the path from its end to that of the run at the ELR ``other`` and order 0."""

    elr: float = Field(2e-3, gt=0, description="ours: two of the first regime and two of the second")
    order: int = Field(0, ge=0, description="ours: which order of the batches")
    other: float = Field(0.0, ge=0, description="ours: 0: train; the run's own ELR and order: a path inside the run")
    samples: int = Field(1280, ge=0, description="ours: whole batches only")
    label_noise: float = Field(0.2, ge=0, le=1, description="ours: without it the second regime is narrow")
    epochs: int = Field(150, ge=20, description="ours, as in sphere-finetuning; the authors' code has 1000")


PRESETS = {
    "quick": Preset("50 s", 3),
    "laptop": Preset(
        "15 min, estimated",
        2,
        {**CIFAR, "width": 8, "samples": 2048, "epochs": 120},
        {"elr": (5e-4, 2e-3, 1e-2, 2e-2)},
    ),
    "paper": Preset(
        "4 weeks, estimated",
        2,
        {**CIFAR, "width": 32, "samples": 0, "epochs": 1000},
        {"elr": (1e-4, 2e-4, 5e-4, 1e-3, 5e-3)},
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Every ELR in both orders; then all paths between ELRs, between orders and inside runs whose ends are there."""
    base = settings.model_dump(exclude={"elr", "order", "other"})
    rates = sorted(set(sweep["elr"]))
    trained = [(rate, order) for rate in rates for order in sweep["order"]]
    done = {(setting(r).elr, setting(r).order, r.seed) for r in results if not setting(r).other}
    paths = [(a, 0, b) for a, b in combinations(rates, 2)] + [(a, order, a) for a, order in trained]
    ready = [
        (a, order, b)
        for a, order, b in paths
        if {(rate, i, seed) for rate, i in ((a, order), (b, 0)) for seed in seeds} <= done
    ]
    runs: list[Settings] = [Config(**base, elr=elr, order=order) for elr, order in trained]
    return runs + [Config(**base, elr=elr, order=order, other=other) for elr, order, other in ready]


def run(trial: Trial, log: Log) -> Ending:
    """Train one network, or measure a path between two ends."""
    from thalweg.lab.training.on_sphere import train_on_sphere
    from thalweg.lab.training.scale_invariant import task
    from thalweg.lab.training.snapshots import Snapshots

    config: Any = trial.config
    work = task(trial)
    if config.other:
        return _path(trial, log, work)
    if config.order:
        work.batches.load_state_dict({"generator": trial.generator(f"order {config.order}").get_state(), "position": 0})
    return train_on_sphere(trial, log, work=work, rules=[Snapshots(work.invariant, [3 * config.epochs // 4])])


def _path(trial: Trial, log: Log, work: Task) -> Ending:
    """Both paths from this run's end; inside one run, from its place after three quarters of the epochs."""
    from thalweg.lab.training.connectivity import barrier, path_losses
    from thalweg.lab.training.snapshots import read_snapshots, read_weights, unflattened

    config: Any = trial.config
    end = trial.sibling(other=0.0, elr=config.other, order=0)
    if config.other == config.elr and config.order == 0:
        start = unflattened(read_snapshots(end)[3 * config.epochs // 4], work)
    else:
        start = read_weights(trial.sibling(other=0.0), work)
    straight, turning = (path_losses(work, start, read_weights(end, work), path) for path in ("straight", "turning"))
    for i, (a, b) in enumerate(zip(straight, turning, strict=True)):
        log.row(epoch=i / (len(straight) - 1), straight=a, turning=b)
    values = {"start": straight[0], "end": straight[-1], "straight": barrier(straight), "turning": barrier(turning)}
    return Ending(values | {"rise": max(straight[1:-1]) - max(straight[0], straight[-1])}, data=work.data)


def analyse(study: Study) -> Findings:
    """Barriers of all paths, and the seed's sentences on connectivity."""
    runs, paths = ([r for r in study.results if bool(setting(r).other) is there] for there in (False, True))
    rates = sorted({setting(r).elr for r in runs})
    kinds = {
        "Between ELRs, same batches": [r for r in paths if setting(r).other != setting(r).elr],
        "Between orders of the batches, same ELR": [r for r in paths if setting(r).order],
        "Inside a run": [r for r in paths if setting(r).other == setting(r).elr and not setting(r).order],
    }
    columns = {
        "start": "loss at one end",
        "end": "at the other",
        "straight": "barrier",
        "turning": "barrier, groups turning",
        "rise": "rise above both ends",
    }
    told = ", ".join(f"{rate:g}: {labels(study.where(elr=rate, other=0.0))}" for rate in rates)
    notes = (
        "Barrier: highest rise of the training loss above the line between both ends; negative where it is convex.",
        f"Regimes: {told}.",
        "From three quarters of the epochs to the end.",
    )
    by, shapes = {"elr": "ELR", "other": "to ELR"}, dict.fromkeys(columns, ".2g")
    tables = [
        Table(name, mean_std(found, by, columns, formats=shapes), note)
        for (name, found), note in zip(kinds.items(), notes, strict=True)
        if found
    ]
    pictures = [
        Picture(
            f"paths-{number}",
            f"Loss on straight paths: {name[0].lower()}{name[1:]}",
            curves(_along(study, found), xlabel="place on the path", ylabel="training loss", logy=True),
            "Mean over seeds; the band is their range.",
        )
        for number, (name, found) in enumerate(kinds.items())
        if found
    ]
    return Findings(_claims(study, rates), tables, pictures)


def _along(study: Study, paths: Sequence[Result]) -> dict[str, list[tuple[list[float], list[float]]]]:
    ends = dict.fromkeys((setting(r).elr, setting(r).order, setting(r).other) for r in paths)
    return {
        f"{a:g} to {b:g}": [r.series("straight") for r in study.where(elr=a, order=order, other=b)]
        for a, order, b in ends
    }


def _claims(study: Study, rates: Sequence[float]) -> list[Claim]:
    runs = {rate: study.where(elr=rate, other=0.0) for rate in rates}
    first, second = (rates_in(name, runs) for name in LABELS[:2])

    def judge(claimed: Literal["less", "greater"], path: tuple[float, int, float], key: str, text: str) -> list[Claim]:
        elr, order, other = path
        found = study.by_seed(key, elr=elr, order=order, other=other)
        unit = f"{'rise above both ends' if key == 'rise' else 'barrier'}, {elr:g} to {other:g}"
        zero = dict.fromkeys(found, 0.0)
        return [paired(claimed, found, zero, text=text, source="seed 001, section 3", unit=unit)] if found else []

    claims = []
    if len(first) > 1:
        text = "Minima found at different ELRs of the first regime, all else equal, are not linearly connected."
        claims += judge("greater", (first[0], 0, first[-1]), "rise", text)
    for rate in first[-1:]:
        text = f"Minima found at ELR {rate:g} with batches in different orders are not linearly connected."
        claims += judge("greater", (rate, 1, rate), "rise", text)
    for rate in second:
        text = f"Second regime, ELR {rate:g}: the loss is convex between two places of one run."
        claims += judge("less", (rate, 0, rate), "straight", text)
    return claims
