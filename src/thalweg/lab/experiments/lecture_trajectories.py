r"""Every optimizer of the lecture, as printed and as it is in torch, on three surfaces.

    -(cos² x₁ + cos² x₂)²,   (1 - x₁)² + 100 (x₂ - x₁²)²,   (x₁² + 100 x₂²)/2

Each has its own best rate on each surface: among half-decades, the one whose path in torch's form is lowest on average
(lowest at the end would choose lucky leaps). The printed form runs at the same rate.

In print AdaDelta never moves, and Adam's first step is 3.16 times too long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from thalweg.lab.best_rate import half_decade
from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import panels
from thalweg.lab.tables import mean_std
from thalweg.lab.terrain import Terrain, contours
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "seed 004, modifications of gradient descent"
TITLE = "Trajectories of every optimizer of the lecture, as printed and as in torch"
VERSION = 1
HEADLINE = True
SURFACES = {
    "cosine": ((1.4, 0.6), (-0.6, 2.0), (-0.9, 1.5)),  # start, range of x₁, range of x₂
    "Rosenbrock": ((-1.2, 1.0), (-1.7, 1.7), (-0.6, 2.0)),
    "ravine": ((-1.0, 0.4), (-1.4, 0.7), (-0.8, 0.8)),
}
PLACES = {"cosine": "the cosine surface", "Rosenbrock": "Rosenbrock's valley", "ravine": "the ravine"}
SWEEP: dict[str, tuple[Any, ...]] = {"surface": tuple(SURFACES)}
RULES = ("descent", "momentum", "Nesterov", "AdaGrad", "AdaDelta", "RMSprop", "Adam", "AdamW")
RATES = {name: range(-6, 3) for name in RULES} | {"AdaDelta": range(-2, 7), "descent": range(-7, 1)}  # half-decades


class Config(Settings):
    """The lecture draws such paths without a function, a start or a rate."""

    surface: Literal["cosine", "Rosenbrock", "ravine"] = Field("cosine", description="cosine: the lecture's")
    steps: int = Field(100, ge=10, description="ours: few, so that speed counts")
    jitter: float = Field(0.1, ge=0, description="ours: standard deviation of the start over seeds")


PRESETS = {"quick": Preset("15 s", 5)}


def run(trial: Trial, log: Log) -> Ending:
    """Descend with every rule at every rate; rows hold the paths at the best ones and the surface below."""
    import torch

    from thalweg import lecture
    from thalweg.lab.training.lecture_paths import grid, record
    from thalweg.lecture import descend

    config: Any = trial.config
    start, x, y = SURFACES[config.surface]
    f = {"cosine": lecture.cosine_surface, "Rosenbrock": lecture.rosenbrock, "ravine": lecture.ravine}[config.surface]
    gradient = lecture.cosine_gradient if config.surface == "cosine" else lecture.gradient_of(f)
    begin = torch.tensor(start, dtype=torch.float64)
    begin += config.jitter * torch.randn(2, generator=trial.generator("start"), dtype=torch.float64)
    least = {"cosine": -4.0}.get(config.surface, 0.0)
    paths: dict[str, torch.Tensor] = {}
    values: dict[str, float] = {}
    for name in RULES:
        rule = {"descent": lecture.gradient_descent}.get(name) or getattr(lecture, name.lower())
        tried = {
            eta: descend(rule, gradient, begin, eta=eta, steps=config.steps).w for eta in map(half_decade, RATES[name])
        }
        means = {eta: float(torch.nan_to_num(f(w) - least, nan=1e300).mean()) for eta, w in tried.items()}
        eta = min(means, key=means.__getitem__)
        paths[name] = tried[eta]
        values |= {f"{name} rate": eta, f"{name} end": float(f(tried[eta][-1]) - least)}
        if name != "descent":
            printed = descend(rule, gradient, begin, eta=eta, steps=config.steps, form="printed").w
            paths[f"{name} printed"] = printed
            values[f"{name} printed end"] = float(f(printed[-1]) - least)
        for form, path in ((name, paths[name]), (f"{name} printed", paths.get(f"{name} printed"))):
            if path is not None:
                values[f"{form} first step"] = float((path[1] - path[0]).norm())
    record(log, paths)
    record(log, {f"height {name}": (f(path) - least).unsqueeze(-1) for name, path in paths.items()})
    grid(log, f, "surface", x=x, y=y)
    return Ending(values)


def analyse(study: Study) -> Findings:
    """Paths and heights by surface, best rates, and what the lecture says of its methods."""
    import pandas as pd

    present = [name for name in SURFACES if study.where(surface=name)]
    views, heights, rows = {}, {}, []
    for surface in present:
        runs = study.where(surface=surface)
        for title, names in (("", RULES[:4]), (" ", RULES[4:])):
            paths = {name: [_path(runs[0], name)] for name in names}
            views[f"{surface}{title}"] = Terrain.recorded(runs[0], "surface", paths)
            heights[f"{surface}{title}"] = {name: [_height(run, name) for run in runs] for name in names}
        for name in RULES:
            own = {f"{name} end": "height at the end", f"{name} printed end": "as printed"}
            columns = {key: heading for key, heading in own.items() if key in runs[0].values}
            cells = mean_std(runs, [], columns, formats=dict.fromkeys(columns, ".2g")).iloc[0]
            rates = ", ".join(f"{rate:g}" for rate in sorted({run.values[f"{name} rate"] for run in runs}))
            rows.append(
                {"surface": surface, "method": name, "best rates": rates} | {h: cells[h] for h in columns.values()}
            )
    frame = pd.DataFrame(rows).fillna("")
    return Findings(
        claims=_claims(study),
        tables=[
            Table(
                "Height above the minimum at the end, each at its best rate",
                frame,
                f"After {study.settings['steps']} steps. As printed: at the same rate.",
            )
        ],
        pictures=[
            Picture(
                "paths",
                "Paths at each method's best rate",
                contours(views, columns=2, width=6.2, height=2.4 * len(present)),
                "From a ring to a marker, one seed, torch's forms.",
            ),
            Picture(
                "heights",
                "Height above the minimum by step",
                panels(
                    heights,
                    columns=2,
                    xlabel="step",
                    ylabel="height above the minimum",
                    logy=True,
                    width=6.2,
                    height=2.3 * len(present),
                    sharex=True,
                ),
                "Mean over seeds; the band is their range.",
            ),
            Picture(
                "printed",
                f"Distance from the start by step on {PLACES[present[-1]]}: as printed and in torch's form",
                _printed(study.where(surface=present[-1])),
                "Mean over seeds; the band is their range. AdaDelta as printed stays where it is; Adam overshoots.",
            ),
        ],
    )


def _path(result: Result, name: str) -> tuple[list[float], list[float]]:
    return result.series(f"{name} 1")[1], result.series(f"{name} 2")[1]


def _height(result: Result, name: str) -> tuple[list[float], list[float]]:
    steps, heights = result.series(f"height {name} 1")
    return steps, [max(height, 1e-16) for height in heights]  # below lies rounding


def _printed(runs: Sequence[Result]) -> Figure:
    """How far each form has got from the start."""
    views: dict[str, dict[str, list[Any]]] = {}
    for name in ("AdaGrad", "AdaDelta", "Adam", "AdamW"):
        for form, key in (("as printed", f"{name} printed"), ("torch", name)):
            distances = []
            for run in runs:
                path = list(zip(*_path(run, key), strict=True))
                distances.append((list(range(len(path))), [math.dist(point, path[0]) for point in path]))
            views.setdefault(name, {})[form] = distances
    return panels(views, columns=2, xlabel="step", ylabel="distance from the start", sharex=True, height=4.0)


def _claims(study: Study) -> list[Claim]:
    def judge(text: str, where: str, a: str, b: str, surface: str) -> list[Claim]:
        one, other = (study.by_seed(f"{name} end", surface=surface) for name in (a, b))
        unit = f"height at the end on {PLACES[surface]}, {a} minus {b}"
        text = f"{text}, on {PLACES[surface]}."
        return [paired("less", one, other, text=text, source=f"seed 004, {where}", unit=unit)] if one else []

    claims = [
        *judge("Momentum ends lower than plain descent", "momentum", "momentum", "descent", "ravine"),
        *judge("Momentum ends lower than plain descent", "momentum", "momentum", "descent", "Rosenbrock"),
        *judge("Nesterov's method ends lower than momentum", "Nesterov", "Nesterov", "momentum", "ravine"),
        *judge(
            "RMSprop, which forgets old gradients, ends lower than AdaGrad", "AdaDelta", "RMSprop", "AdaGrad", "ravine"
        ),
        *judge(
            "AdaDelta as printed ends lower than plain descent", "AdaDelta", "AdaDelta printed", "descent", "cosine"
        ),
        *judge("AdaDelta with its ε ends lower than plain descent", "AdaDelta", "AdaDelta", "descent", "cosine"),
        *judge(
            "Adam as printed ends as low as with bias correction, or lower", "Adam", "Adam printed", "Adam", "cosine"
        ),
    ]
    first = study.by_seed("Adam printed first step", surface="cosine")
    right = study.by_seed("Adam first step", surface="cosine")
    if first:
        ratio = {seed: step / right[seed] for seed, step in first.items()}
        text = "Adam's first step as printed is as long as with bias correction, within 1%."
        unit = "ratio of the first steps, minus 1.01"
        limit = dict.fromkeys(ratio, 1.01)
        claims.append(paired("less", ratio, limit, text=text, source="seed 004, Adam", unit=unit))
    return claims
