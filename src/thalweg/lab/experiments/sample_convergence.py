"""How the loss settles with sample size: |L_{k+1} - L_k| against depth, kernel and width (seed 003, experiments).

    L_{k+1} - L_k = (l_{k+1} - L_k)/(k + 1),      d_k = E |L_{k+1} - L_k| -> D/(k + 1),   D = mean |l_i - L_N|

over orders of the samples, in closed form. From k of about 100 on a whole curve is the one number D: curves are
compared by ln D. Each factor varies alone around the middle of the others' lists; the seed's own lists are unpublished.

The seed trains for a fixed time and finds the increment to fall with filters, "presumably because such networks are
trained better". So every network is measured twice: after a fixed number of epochs, and where its loss passes one level
common to all, to which it goes on training. What is left at the level is not an effect of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from thalweg.lab.claims import Claim, paired
from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.landscape_settings import NETWORKS, LandscapeSettings
from thalweg.lab.slopes import least_squares_slope
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 003, experiments: number of layers, kernel size, number of filters"
TITLE = "Loss increments against sample size, by depth, kernel and width"
VERSION = 2
HEADLINE = True
SWEEP: dict[str, tuple[Any, ...]] = {
    "data": ("digits",),
    "network": ("conv2d", "conv1d", "mlp"),
    "layers": (1, 2, 4),
    "kernel": (1, 3, 5),
    "filters": (4, 8, 16),
}
LEVELS = {"digits": 0.1, "mnist": 0.15, "fashion-mnist": 0.45, "cifar10": 1.4, "cifar100": 3.6}
AXES = {"layers": "layers", "kernel": "kernel size", "filters": "filters"}
FACTORS = {"layers": "layer", "kernel": "two pixels of kernel", "filters": "doubling of width"}


class Config(LandscapeSettings):
    """Networks around the middle of the lists; Adam, batch and epochs of the predecessor's code."""

    fixed: int = Field(10, ge=1, description="epochs of the first comparison; the predecessor's code")
    level: float = Field(0.0, ge=0, description="ours: loss of the second; 0: the data set's own, see its table")
    epochs: int = Field(60, ge=1, description="ours: at most, to reach the level")

    @field_validator("fixed")
    @classmethod
    def _within(cls, fixed: int, info: ValidationInfo) -> int:
        if fixed > info.data.get("epochs", fixed):
            raise ValueError(f"at most epochs={info.data['epochs']} expected")
        return fixed


PRESETS = {
    "quick": Preset("50 s", 3, {"samples": 1000, "batch": 16, "epochs": 40}),
    "laptop": Preset(
        "30 min",
        3,
        {"samples": 4000, "pooling": "max", "batch": 32},
        {
            "data": ("mnist", "fashion-mnist", "cifar10"),
            "layers": (1, 3, 5),
            "kernel": (1, 3, 5),
            "filters": (4, 16, 32),
        },
    ),
    "paper": Preset(
        "10 h, estimated",
        3,
        {"samples": 10000},
        {
            "data": ("mnist", "fashion-mnist", "cifar10", "cifar100"),
            "network": ("mlp",),
            "layers": (1, 3, 5, 7, 10),
            "kernel": (),
            "filters": (4, 8, 16, 32, 64),
        },
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """For each data set and network, every factor alone around the middle of the others' lists."""
    from thalweg.lab.data.catalogue import names

    base = settings.model_dump(exclude=set(sweep))
    wanted: dict[str, Settings] = {}
    for data in sweep["data"]:
        if data in names() and not (base["level"] or data in LEVELS):  # another name is refused with a better reason
            raise LabError(f"no level of the loss is known for data={data}: give one, as in level=0.5")
        for network in sweep["network"]:
            own = {factor: sweep[factor] for factor in _factors(network) if sweep[factor]}
            middle = {factor: values[len(values) // 2] for factor, values in own.items()}
            for factor, values in own.items():
                for value in values:
                    config = Config(**base, data=data, network=network, **{**middle, factor: value})
                    wanted[config.model_dump_json()] = config
    return list(wanted.values())


def _factors(network: str) -> list[str]:
    return [factor for factor in FACTORS if not (network == "mlp" and factor == "kernel")]


def run(trial: Trial, log: Log) -> Ending:
    """Train one network to both moments."""
    from thalweg.lab.training.landscape_increments import train_for_increments

    config: Any = trial.config
    return train_for_increments(trial, log, fixed=config.fixed, level=config.level or LEVELS[config.data])


def analyse(study: Study) -> Findings:
    """The figures of the seed, the slopes of ln D at both moments, and its sentences."""
    import pandas as pd

    columns = {
        "fixed loss": "L",
        "fixed deviation": "D",
        "fixed d_10": "d at k = 10",
        "level deviation": "D at the level",
        "level epoch": "its epoch",
    }
    formats = dict.fromkeys(columns, ".2g") | {"level epoch": ".1f"}
    tables = []
    for data, network in _groups(study):
        found = study.where(data=data, network=network)
        by = {factor: factor for factor in _factors(network)}
        frame = mean_std(sorted(found, key=_size), by, columns, formats=formats)
        tables.append(Table(f"{NETWORKS[network]} on {data}", frame, _note(study, data)))
    rows = [row for group in _groups(study) for row in _slope_rows(study, *group)]
    note = (
        "Slopes of logarithms by least squares over a factor's list, mean ± std over seeds. At the level: equal loss."
    )
    missed = [r for r in study.results if r.outcome == "finished" and math.isnan(r.values["level deviation"])]
    notes = [f"{len(missed)} of {len(study.results)} runs did not come down to the level."] if missed else []
    tables.insert(0, Table("What a factor does", pd.DataFrame(rows), note))
    return Findings(_claims(study), tables, _pictures(study), notes)


def _note(study: Study, data: str) -> str:
    fixed, level = study.settings["fixed"], study.settings["level"] or LEVELS.get(data)
    return f"L, D: mean l and mean |l - L| after {fixed} epochs; d: the increment. The level is a loss of {level:g}."


def _config(result: Result) -> Any:
    return result.config


def _size(result: Result) -> tuple[int, ...]:
    return tuple(getattr(_config(result), factor) for factor in FACTORS)


def _groups(study: Study) -> list[tuple[str, str]]:
    return list(dict.fromkeys((_config(r).data, _config(r).network) for r in study.results))


def _line(study: Study, data: str, network: str, factor: str) -> list[Result]:
    """The results in which ``factor`` varies alone: those of the others' commonest values."""
    found = study.where(data=data, network=network)
    fixed = {
        other: _middle([getattr(r.config, other) for r in found]) for other in _factors(network) if other != factor
    }
    alone = [r for r in found if all(getattr(r.config, other) == value for other, value in fixed.items())]
    return sorted(alone, key=_size)


def _middle(values: Sequence[int]) -> int:
    return max(set(values), key=values.count)


def _place(factor: str, value: int) -> float:
    """Where a value stands on a factor's axis, whose unit is that of ``FACTORS``."""
    return {"layers": float(value), "kernel": value / 2, "filters": math.log2(value)}[factor]


def _slopes(study: Study, data: str, network: str, factor: str, key: str) -> dict[int, float]:
    """Seed -> slope of ln(value) along a factor; seeds without all values of it are left out."""
    line = _line(study, data, network, factor)
    values = {getattr(r.config, factor) for r in line}
    found = {}
    for seed in sorted({r.seed for r in line}):
        points = {
            _place(factor, getattr(r.config, factor)): r.values.get(key, math.nan)
            for r in line
            if r.seed == seed and r.outcome == "finished"
        }
        if 1 < len(values) == len(points) and all(value > 0 for value in points.values()):
            found[seed] = least_squares_slope(list(points), [math.log(value) for value in points.values()])
    return found


MEASURES = {
    "fixed deviation": "ln D, fixed epochs",
    "level deviation": "ln D, at the level",
    "fixed loss": "ln L, fixed epochs",
}


def _slope_rows(study: Study, data: str, network: str) -> list[dict[str, Any]]:
    import numpy as np

    rows = []
    for factor in _factors(network):
        row: dict[str, Any] = {"data": data, "network": NETWORKS[network], "per": FACTORS[factor]}
        for key, heading in MEASURES.items():
            slopes = list(_slopes(study, data, network, factor, key).values())
            spread = f" ± {np.std(slopes, ddof=1):.2f}" if len(slopes) > 1 else ""
            row[heading] = f"{fmean(slopes):+.2f}{spread}" if slopes else None
        rows.append(row)
    return rows


def _pictures(study: Study) -> list[Picture]:
    """|L_{k+1} - L_k| by k, one figure for each factor of the first network on the first data set."""
    data, network = _groups(study)[0]
    pictures = []
    for factor in _factors(network):
        series: dict[str, list[tuple[list[float], list[float]]]] = {}
        for result in _line(study, data, network, factor):
            rows = [row for row in result.rows if "k" in row]
            name = f"{factor} {getattr(result.config, factor)}"
            series.setdefault(name, []).append(([row["k"] for row in rows], [row["increment"] for row in rows]))
        drawn = curves(series, xlabel="sample size k", ylabel="E |L(k+1) - L(k)|", logx=True, logy=True)
        title = f"Loss increment by {'' if factor == 'kernel' else 'number of '}{AXES[factor]}"
        caption = f"{NETWORKS[network]} on {data}, fixed epochs: mean over seeds, band of their range."
        pictures.append(Picture(f"increments-{factor}", title, drawn, caption))
        by_value = {
            what: [
                ([getattr(r.config, factor) for r in runs], [r.values.get(key, math.nan) for r in runs])
                for runs in _by_seed(_line(study, data, network, factor))
            ]
            for key, what in {"fixed deviation": "fixed epochs", "level deviation": "at equal loss"}.items()
        }
        drawn = curves(
            by_value,
            xlabel=AXES[factor],
            ylabel="D = mean |l - L|",
            logx=factor == "filters",
            logy=True,
            ticks=list(dict.fromkeys(getattr(r.config, factor) for r in _line(study, data, network, factor))),
        )
        caption = "The increment is D/(k + 1) at large k. Mean over seeds, band of their range."
        pictures.append(
            Picture(f"deviation-{factor}", f"D against {AXES[factor]}, trained alike and to one loss", drawn, caption)
        )
    return pictures


def _by_seed(line: Sequence[Result]) -> list[list[Result]]:
    return [[r for r in line if r.seed == seed] for seed in sorted({r.seed for r in line})]


def _claims(study: Study) -> list[Claim]:
    networks = list(dict.fromkeys(network for _, network in _groups(study)))
    claims = []
    for network in networks:
        who = NETWORKS[network]
        for factor in _factors(network):
            grows = factor != "filters"
            verb = "grows" if grows else "falls"
            noun = {"layers": "the number of layers", "kernel": "kernel size", "filters": "width"}[factor]
            first = network == networks[0]  # the others are judged as the seed trains only
            for key, how in {"fixed deviation": "trained for equal epochs", "level deviation": "at equal loss"}.items():
                if first or key == "fixed deviation":
                    text = f"{who}, {how}: the increment {verb} with {noun}."
                    claims += _judge(study, network, factor, key, "greater" if grows else "less", text, "ln D")
            if first and factor == "filters":
                text = f"{who}: wider networks are trained better after equal epochs."
                claims += _judge(study, network, factor, "fixed loss", "less", text, "ln L")
                claims += _explained(study, network)
    return claims


def _mean_slopes(study: Study, network: str, factor: str, key: str) -> dict[int, float]:
    """Seed -> mean slope over the data sets that have one for it."""
    per_data = [_slopes(study, data, n, factor, key) for data, n in _groups(study) if n == network]
    seeds = set.intersection(*map(set, per_data)) if per_data else set()
    return {seed: fmean(slopes[seed] for slopes in per_data) for seed in sorted(seeds)}


def _judge(study: Study, network: str, factor: str, key: str, side: Any, text: str, what: str) -> list[Claim]:
    slopes = _mean_slopes(study, network, factor, key)
    unit = f"slope of {what} per {FACTORS[factor]}"
    source = (
        "seed 003, " + {"layers": "number of layers", "kernel": "kernel size", "filters": "number of filters"}[factor]
    )
    return [paired(side, slopes, dict.fromkeys(slopes, 0.0), text=text, source=source, unit=unit)] if slopes else []


def _explained(study: Study, network: str) -> list[Claim]:
    """Most of the fall with filters is gone where the loss is equal."""
    fixed, level = (_mean_slopes(study, network, "filters", key) for key in ("fixed deviation", "level deviation"))
    shared = sorted(fixed.keys() & level.keys())
    if not shared:
        return []
    return [
        paired(
            "less",
            {seed: abs(level[seed]) for seed in shared},
            {seed: abs(fixed[seed]) / 2 for seed in shared},
            text=f"{NETWORKS[network]}: at equal loss less than half of the fall with width is left.",
            source="seed 003, number of filters",
            unit="|slope| at equal loss minus half of |slope| at equal epochs",
        )
    ]
