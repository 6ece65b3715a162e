"""Every bound of seed 003 on the Hessian of one sample beside the exact norm, over all that the bounds depend on.

    ||H_O|| <= √2 q² |x|² (L + 1) w_T^{2L}                     lemma 2; theorems 1-2, lemmas 3-4 in terms of sizes

The seed concludes that "the estimate of the norm is a power of the weights and exponential in the number of layers".
It measures neither a norm nor a bound. Here both are measured while one property of the network varies at a time:
depth, channels, kernel, weights, pooling, linear layers behind the convolutions, training. Weights are He's, times
``scale``. Printed bounds, corrected ones and tighter ones are all there (`thalweg.curvature.hessian_bounds`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from thalweg.lab.bound_tables import (
    FULL,
    OWN,
    PRINTED,
    Family,
    bound_names,
    exceeded_table,
    growth_table,
    log_norm,
    looseness_table,
    norm_slopes,
)
from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study
from thalweg.lab.figures import curves
from thalweg.lab.landscape_settings import Head, LandscapeSettings
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 003, lemmas 1-4 and theorems 1-2"
TITLE = "Bounds on the Hessian against its exact norm"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {
    "network": ("conv2d", "conv1d", "mlp"),
    "layers": (1, 2, 3, 4),
    "filters": (2, 4, 8),
    "kernel": (1, 3, 5),
    "scale": (1e-6, 1e-3, 0.1, 0.3, 1.0, 2.0),
    "epochs": (0, 5, 20),
    "pooling": ("none", "max", "average"),
    "head": ("average", "whole", "linear"),
    "linear": (1, 2, 3),
    "head_scale": (1.0, 1e-3, 1e-6, 1e-9),
}
CENTRE: dict[str, Any] = {
    "network": "conv2d", "layers": 2, "filters": 4, "kernel": 3, "scale": 1.0, "epochs": 0,
    "pooling": "none", "head": "average", "linear": 1, "head_scale": 1.0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # what varies, and where that is not around the centre
    "depth": ("layers", {}),
    "depth, trained": ("layers", {"epochs": -1}),  # -1: the last of the list
    "channels": ("filters", {}),
    "kernel": ("kernel", {}),
    "weights": ("scale", {}),
    "training": ("epochs", {}),
    "pooling": ("pooling", {"head": "whole"}),
    "linear layers": ("linear", {"head": "linear"}),
    "linear layers' weights": ("head_scale", {"head": "linear"}),
    "depth, 1-D": ("layers", {"network": "conv1d"}),
    "weights, 1-D": ("scale", {"network": "conv1d"}),
    "weights, perceptron": ("scale", {"network": "mlp", "layers": 1, "filters": 8}),  # three linear layers
}
SHOWN = ("theorem 2", "lemma 2", "operator norms", "activations")


class Config(LandscapeSettings):
    """One network; the seed names none."""

    layers: int = Field(2, ge=1, description="ours: L")
    filters: int = Field(4, ge=1, description="ours: C, channels; width of the perceptron")
    head: Head = Field("average", description="ours: theorems 1-2 need average or whole, lemma 4 linear")
    epochs: int = Field(0, ge=0, description="ours: of Adam; 0: initial weights")
    scale: float = Field(1.0, gt=0, description="ours: all weights are multiplied by it after training")
    head_scale: float = Field(1.0, gt=0, description="ours: linear layers behind convolutions, by this besides")
    points: int = Field(8, ge=1, description="ours: training images whose Hessians are bounded")


PRESETS = {
    "quick": Preset("50 s", 3, {"samples": 1000, "batch": 32}),
    "laptop": Preset(
        "5 min",
        3,
        {"data": "mnist", "samples": 5000, "points": 16},
        {
            "layers": (1, 2, 3, 4, 6),
            "filters": (1, 2, 4, 8, 16),
            "kernel": (1, 3, 5, 7),
            "scale": (1e-6, 1e-4, 1e-2, 0.1, 0.3, 1.0, 2.0, 4.0),
            "epochs": (0, 1, 3, 10),
        },
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Every family, each network once."""
    base = settings.model_dump(exclude=set(sweep))
    wanted: dict[str, Settings] = {}
    for varied, around in _around(sweep):
        for value in sweep[varied]:
            config = Config(**base, **{**around, varied: value})
            wanted[config.model_dump_json()] = config
    return list(wanted.values())


def _around(sweep: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What varies in each family, and the other settings, of those that the sweep has."""
    for varied, special in FAMILIES.values():
        last = {key: sweep[key][-1] for key, value in special.items() if value == -1}
        around = {**CENTRE, **special, **last}
        if around["network"] in sweep["network"] and around["head"] in sweep["head"]:
            yield varied, around


def run(trial: Trial, log: Log) -> Ending:
    """Evaluate all bounds on one network."""
    from thalweg.lab.training.landscape_bounds import evaluate_bounds

    config: Any = trial.config
    return evaluate_bounds(trial, log, scale=config.scale, head_scale=config.head_scale, points=config.points)


def analyse(study: Study) -> Findings:
    """Looseness over all that varies, growth of bound and truth, what was exceeded; the seed's sentences."""
    families = dict(_families(study))
    tables = [growth_table(families), looseness_table(families)] if families else []
    return Findings(_claims(study, families), [*tables, exceeded_table(study)], list(_pictures(families)))


def _families(study: Study) -> Iterator[tuple[str, Family]]:
    """Name -> results of a family by seed, in the order of what varies; families with at least two values."""
    sweep = {key: list(dict.fromkeys(getattr(r.config, key) for r in study.results)) for key in SWEEP}
    sweep["epochs"] = sorted(sweep["epochs"])
    for name, (varied, special) in FAMILIES.items():
        last = {key: sweep[key][-1] for key, value in special.items() if value == -1}
        fixed = {key: value for key, value in {**CENTRE, **special, **last}.items() if key != varied}
        found = study.where(**fixed)
        if len({getattr(r.config, varied) for r in found}) > 1:
            yield name, Family(varied, found)


def _pictures(families: Mapping[str, Family]) -> Iterator[Picture]:
    """Truth and bounds against what varies."""
    for name, xlabel in {
        "depth": "L, non-linearities",
        "depth, trained": "L, non-linearities",
        "weights": "factor of all weights",
        "channels": "channels",
        "kernel": "kernel size",
    }.items():
        if name not in families:
            continue
        varied, found = families[name].varied, families[name].results
        series = {}
        for key in (*(bound for bound in SHOWN if bound in bound_names(found)), "H_O", "H"):
            runs = [
                ([getattr(r.config, varied) for r in row], [math.exp(log_norm(r, key)) for r in row])
                for row in ([r for r in found if r.seed == seed] for seed in sorted({r.seed for r in found}))
            ]
            series[f"exact {key}" if key in ("H_O", "H") else key] = runs
        logx = varied in ("scale", "filters")
        ticks = () if varied == "scale" else list(dict.fromkeys(getattr(r.config, varied) for r in found))
        drawn = curves(series, xlabel=xlabel, ylabel="norm", logx=logx, logy=True, ticks=ticks)
        caption = "Median over images, mean over seeds; the band is their range."
        if any(r.values.get("H_O") == 0 for r in found):
            caption += " Where a seed's network is dead (all its units zero) there is no mean."
        yield Picture(name.replace(", ", "-"), f"Bounds and exact norms against {name}", drawn, caption)


def _claims(study: Study, families: Mapping[str, Family]) -> list[Claim]:
    claims = []
    half = 0.5 / study.settings["points"]
    unit = "share of images whose norm exceeds it, in the worst network, minus half an image"
    statements = PRINTED | {
        "own": ("The tighter bounds on H_O hold", ""),
        "full": ("The bounds on the whole H hold", ""),
    }
    for name, (text, where) in statements.items():
        members = {"own": OWN, "full": FULL}.get(name, (name,))
        worst: dict[int, float] = {}
        for r in study.results:
            shares = [r.values[f"{m}: exceeded"] for m in members if f"{m}: exceeded" in r.values]
            if shares:
                worst[r.seed] = max(worst.get(r.seed, 0.0), *shares)
        if worst:
            source = f"seed 003, {where}" if where else "not in the seed"
            claims.append(paired("less", worst, dict.fromkeys(worst, half), text=f"{text}.", source=source, unit=unit))
    source = "seed 003, behind lemma 2"
    if "weights" in families:
        exponent = 2.0 * CENTRE["layers"]
        for text, low, high in (
            ("At small weights the norm of H_O is the bounds' power of them, 2L, within 5%.", 0.0, 0.1),
            ("From He's weights on, the norm of H_O is the bounds' power of them, 2L, within 5%.", 1.0, math.inf),
        ):
            slopes = norm_slopes(families["weights"], "H_O", lambda w, low=low, high=high: low <= w <= high)  # type: ignore[misc]
            miss = {seed: abs(slope / exponent - 1) for seed, slope in slopes.items()}
            said = "|power / 2L - 1|, minus 0.05"
            if miss:
                claims.append(paired("less", miss, dict.fromkeys(miss, 0.05), text=text, source=source, unit=said))
    for name, state in {"depth": "initial weights (He's)", "depth, trained": "trained weights"}.items():
        if name in families:
            truth, bound = (norm_slopes(families[name], key) for key in ("H_O", "lemma 2"))
            claims += [
                paired(
                    "greater", truth, dict.fromkeys(truth, 0.0),
                    text=f"The norm of H_O grows with depth, {state}.", source=source,
                    unit="slope of ln ||H_O|| a layer",
                ),
                paired(
                    "greater", truth, {seed: slope / 2 for seed, slope in bound.items()},
                    text=f"The norm of H_O grows with depth at least half as fast as lemma 2, {state}.", source=source,
                    unit="slope of ln ||H_O|| a layer, minus half of that of lemma 2",
                ),
            ]  # fmt: skip
    return claims
