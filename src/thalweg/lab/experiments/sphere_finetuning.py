"""Continuations on the sphere with another ELR: seed 001, figures 7 (right) and 8, as trees of runs.

Parents are trained from random weights. A child goes on from its parent's weights and running statistics at a new ELR,
on the same sphere and with batches in the same order as every other child. Paths and distances are measured from the
child's start to its end, and from its end to that of its sibling at the ELR ``reference``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves, tracks
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.sphere_runs import CIFAR, LABELS, PLANE, at_loss, labels, rates_in, setting, track
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3: figures 7 (right) and 8"
TITLE = "Continuations at another ELR: levels, minima and the way between them"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {
    "start": (0.0, 5e-4, 2e-3, 1.5e-2, 4e-2),
    "elr": (5e-4, 2e-3, 1.5e-2, 4e-2),
}
STAYS = 1.5  # times the parent's loss: a run whose loss rises higher has left


class Config(ScaleSettings):
    """A parent (``start`` = 0), or its continuation."""

    start: float = Field(0.0, ge=0, description="ELR of the parent; 0: random weights")
    elr: float = Field(2e-3, gt=0, description="ours: two of the first regime and two of the second")
    reference: float = Field(
        5e-4, gt=0, description="ours: each child's end is compared with its sibling's at this ELR"
    )
    samples: int = Field(1280, ge=0, description="ours: whole batches only; a small last one is noise")
    label_noise: float = Field(0.2, ge=0, le=1, description="ours: without it the second regime is narrow")
    epochs: int = Field(150, ge=20, description="ours, of parents and of children; the authors' code has 1000")


PRESETS = {
    "quick": Preset("55 s", 3),
    "laptop": Preset(
        "25 min, estimated",
        2,
        {**CIFAR, "width": 8, "samples": 2048, "epochs": 80},
        {"start": (0.0, 5e-4, 2e-3, 1e-2, 2e-2), "elr": (5e-4, 2e-3, 1e-2, 2e-2)},
    ),
    "paper": Preset(
        "8 weeks, estimated",
        2,
        {**CIFAR, "width": 32, "samples": 0, "epochs": 1000, "reference": 1e-4},
        {"start": (0.0, 1e-4, 5e-4, 1e-3, 5e-3), "elr": (1e-4, 5e-4, 1e-3, 5e-3)},
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Parents; then the children at ``reference``; then the others."""
    base: dict[str, Any] = settings.model_dump(exclude={"start", "elr"})
    done = {(setting(r).start, setting(r).elr, r.seed) for r in results}
    starts, rates, reference = sorted({*sweep["start"]} - {0.0}), sorted({*sweep["elr"]}), base["reference"]

    def ready(*runs: tuple[float, float]) -> bool:
        return {(*run, seed) for run in runs for seed in seeds} <= done

    wanted = [(0.0, rate) for rate in sorted({*starts, *rates})]
    for start in starts:
        if ready((0.0, start)):
            wanted.append((start, reference))
            if ready((0.0, start), (start, reference)):
                wanted += [(start, rate) for rate in rates if rate != reference]
    return [Config(**base, start=start, elr=elr) for start, elr in wanted]


def run(trial: Trial, log: Log) -> Ending:
    """Train a parent, or go on from one."""
    from thalweg.lab.training.connectivity import barrier, path_losses
    from thalweg.lab.training.on_sphere import train_on_sphere
    from thalweg.lab.training.scale_invariant import task
    from thalweg.lab.training.snapshots import Snapshots, continue_from, read_weights

    config: Any = trial.config
    work = task(trial)
    if not config.start:
        return train_on_sphere(trial, log, work=work)
    continue_from(trial.sibling(start=0.0, elr=config.start), work)
    began = [param.detach().clone() for param in work.invariant]
    snapshots = Snapshots(work.invariant, ())
    ending = train_on_sphere(trial, log, work=work, rules=[snapshots], measure=snapshots.from_start)
    values = {**ending.values, **snapshots.from_start(), "barrier": barrier(path_losses(work, began, work.invariant))}
    if config.elr != config.reference:
        other = read_weights(trial.sibling(elr=config.reference), work)
        values["to sibling"] = barrier(path_losses(work, work.invariant, other))
    return Ending(values, ending.outcome, ending.seconds, ending.data)


def analyse(study: Study) -> Findings:
    """Levels by start and new ELR, phase planes, and the seed's sentences on continuations."""
    columns = {
        "train_loss": "loss",
        "effective_grad_norm": "eff. grad norm",
        "test_error": "test error",
        "from_start": "1 - cos to the start",
        "barrier": "barrier to the start",
        "to sibling": "to the sibling",
    }
    parents, children = ([r for r in study.results if bool(setting(r).start) is child] for child in (False, True))

    def table(results: Sequence[Result], by: Mapping[str, str]) -> Any:
        known = {key: name for key, name in columns.items() if any(key in r.values for r in results)}
        return mean_std(results, by, known, formats=dict.fromkeys(columns, ".2g"))

    rates = sorted({setting(r).elr for r in parents})
    frame = table(parents, {"elr": "ELR"})
    frame.insert(1, "regime", [labels(study.where(start=0.0, elr=rate)) for rate in rates])
    tables = [Table("From random weights", frame, "Means over the last tenth of the epochs.")]
    if children:
        frame = table(children, {"start": "from ELR", "elr": "to ELR"})
        note = (
            "Barrier: highest rise of the training loss on the straight path above the line between both ends; "
            f"negative where it is convex. Sibling: the continuation of the same start at ELR {_reference(study):g}."
        )
        tables.append(Table("Continuations", frame, note))
    return Findings(_claims(study, rates), tables, _pictures(study, rates) if children else [])


def _reference(study: Study) -> float:
    return float(study.settings["reference"])


def _regimes(study: Study, rates: Iterable[float]) -> tuple[list[float], list[float]]:
    """Rates of the first and of the second regime, as runs from random weights tell."""
    runs = {rate: study.where(start=0.0, elr=rate) for rate in rates}
    return rates_in(LABELS[0], runs), rates_in(LABELS[1], runs)


def _pictures(study: Study, rates: Sequence[float]) -> list[Picture]:
    starts = sorted({setting(r).start for r in study.results} - {0.0})
    first = min(r.seed for r in study.results)
    low, settled = _regimes(study, rates)
    pictures = []

    def plane(begun: Iterable[float], to: Iterable[float]) -> dict[str, Any]:
        ways = {(a, b): [r for r in study.where(start=a, elr=b) if r.seed == first] for a in begun for b in to}
        return {f"{a:g} to {b:g}": [track(r) for r in runs] for (a, b), runs in ways.items() if runs}

    if settled:
        target = settled[0]
        runs = {
            f"from {start:g}" if start else "random weights": study.where(start=start, elr=target)
            for start in (0.0, *starts)
        }
        levels = {name: [r.series("train_loss") for r in found] for name, found in runs.items() if found}
        pictures.append(
            Picture(
                "levels",
                f"Figure 8, left: continuations at ELR {target:g}",
                curves(levels, xlabel="epoch", ylabel="training loss", logy=True),
                "Mean over seeds; the band is their range. One level, wherever a run comes from.",
            )
        )
    for name, title, begun in (
        ("first", "Figure 7, right: within the first regime", low),
        ("second", "Figure 8, right: from the second regime into the first", settled),
    ):
        if drawn := plane([start for start in begun if start in starts], low):
            caption = "One seed; means over stretches of epochs, the marker is the end."
            pictures.append(Picture(name, title, tracks(drawn, **PLANE), caption))
    return pictures


def _claims(study: Study, rates: Sequence[float]) -> list[Claim]:
    starts = sorted({setting(r).start for r in study.results} - {0.0})
    first, second = _regimes(study, rates)
    seeds = sorted({r.seed for r in study.results})
    claims: list[Claim] = []

    def value(key: str, start: float, elr: float) -> dict[int, float]:
        return study.by_seed(key, start=start, elr=elr)

    def judge(claimed: str, a: Mapping[int, float], b: Mapping[int, float], text: str, where: str, unit: str) -> None:
        side: Literal["less", "greater"] = "less" if claimed == "less" else "greater"
        claims.append(paired(side, a, b, text=text, source=f"seed 001, {where}", unit=unit))

    for rate in second:
        levels = [value("train_loss", start, rate) for start in (0.0, *starts)]
        if all(set(level) == set(seeds) for level in levels):
            spread = {s: max(level[s] for level in levels) / min(level[s] for level in levels) - 1 for s in seeds}
            judge(
                "less", spread, dict.fromkeys(spread, 0.1),
                f"Second regime: the level at ELR {rate:g} is the same whatever the start, within 10%.",
                "figure 8, left", "highest over lowest level - 1, minus 0.1",
            )  # fmt: skip
    inside = [rate for rate in first if rate in starts]
    if len(inside) > 1 and all(study.where(start=a, elr=b) for a in inside for b in inside):
        low, high = inside[0], inside[-1]
        for claimed, says, way in (
            ("less", "lower ELR stays: its loss stays below", (high, low)),
            ("greater", "higher ELR leaves: its loss exceeds", (low, high)),
        ):
            limit = {s: STAYS * loss for s, loss in value("train_loss", 0.0, way[0]).items()}
            judge(
                claimed, _peaks(study, *way), limit,
                f"First regime: a continuation at a {says} {STAYS:g} times the start's.",
                "figure 7, right", f"highest loss minus {STAYS:g} times the start's, {way[0]:g} to {way[1]:g}",
            )  # fmt: skip
        judge(
            "less", value("from_start", high, low), value("from_start", low, high),
            "First regime: a continuation at a lower ELR ends nearer to its start than one at a higher ELR.",
            "figure 7, right", f"1 - cos to the start, {high:g} to {low:g} minus {low:g} to {high:g}",
        )  # fmt: skip
    begun = [rate for rate in second if rate in starts]
    there = [study.where(start=start, elr=rate) for start in begun for rate in first]
    if all(there) and len(begun) > 1 and len(first) > 1 and first[0] == _reference(study):
        near, far, ends = begun[0], begun[-1], (first[0], first[-1])
        for start, place, claimed, minima in (
            (near, "low", "less", "one minimum: there is no barrier between them"),
            (far, "high", "greater", "different minima: there is a barrier between them"),
        ):
            barrier = value("to sibling", start, ends[1])
            judge(
                claimed, barrier, dict.fromkeys(barrier, 0.0),
                f"From {start:g}, {place} in the second regime, ELRs {ends[0]:g} and {ends[1]:g} lead to {minima}.",
                "figure 8, right", "barrier",
            )  # fmt: skip
        judge(
            "greater", _unlike(study, far, *ends), _unlike(study, near, *ends),
            f"From {far:g} the two differ more in curvature at equal training loss than from {near:g}.",
            "figure 8, right", "|ln ratio of effective gradient norms|, difference",
        )  # fmt: skip
    return claims


def _peaks(study: Study, start: float, elr: float) -> dict[int, float]:
    return {r.seed: max(r.series("train_loss")[1]) for r in study.where(start=start, elr=elr)}


def _unlike(study: Study, start: float, low: float, high: float) -> dict[int, float]:
    """|ln| of the ratio of effective gradient norms of two continuations where their training losses are equal."""
    found = {}
    for a, b in zip(study.where(start=start, elr=low), study.where(start=start, elr=high), strict=True):
        level = max(r.values["train_loss"] for r in (a, b))
        found[a.seed] = abs(
            math.log(at_loss(a, "effective_grad_norm", level) / at_loss(b, "effective_grad_norm", level))
        )
    return found
