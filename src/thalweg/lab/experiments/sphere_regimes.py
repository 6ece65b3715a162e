"""Three regimes of training on the sphere: an ELR sweep, its phase diagram, equal step sizes (seed 001, figures 5, 6).

A scale-invariant network is trained by SGD on the sphere at fixed effective learning rates (6). Each run is told by
`classify_regime`; between neighbours of different regimes the sweep is refined until both boundaries are known to a
factor of 1.8. The published setting is ConvNet on CIFAR-10; by default a small network on digits shows the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves, tracks
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.sphere_runs import CIFAR, LABELS, PLANE, label, labels, setting, track
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3: figures 5 and 6 (right)"
TITLE = "Three regimes of training on the sphere"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"elr": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
REPLICAS = ("elr",)
FACTOR = 1.8
SHOWN = 6  # rates in a figure of all epochs


class Config(ScaleSettings):
    """A perceptron on digits with some random labels: without them the second regime is narrow."""

    elr: float = Field(1e-3, gt=0, description="figure 5 sweeps 1e-5 to 1e-1 on ConvNet; ours covers the same regimes")
    epochs: int = Field(200, ge=20, description="ours; the authors' code has 1000")
    label_noise: float = Field(0.2, ge=0, le=1, description="ours: share of random labels; the seed's has none")
    refine: bool = Field(True, description="ours: rates between neighbours of different regimes are added")


PRESETS = {
    "quick": Preset("40 s", 3),
    "laptop": Preset(
        "15 min",
        2,
        {**CIFAR, "width": 8, "samples": 2048, "epochs": 80},
        {"elr": (2e-4, 5e-4, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)},
    ),
    "paper": Preset(
        "4 weeks, estimated",
        3,
        {**CIFAR, "width": 32, "epochs": 1000, "refine": False},
        {"elr": (1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 5e-2, 1e-1)},
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """The sweep, and midpoints where neighbouring rates lie in different regimes further apart than ``FACTOR``."""
    rates = set(sweep["elr"])
    base = settings.model_dump(exclude={"elr"})
    own = PRESETS[settings.preset].sweep.get("elr", SWEEP["elr"])
    if base["refine"] and tuple(sweep["elr"]) == own:  # rates that were asked for by number are run as they are
        labels = {(setting(r).elr, r.seed): label(r) for r in results}
        rates |= {rate for rate, _ in labels}
        for seed in seeds:
            known = sorted(rate for rate in rates if (rate, seed) in labels)
            for low, high in pairwise(known):
                pair = {labels[low, seed], labels[high, seed]}
                if len(pair) > 1 and "invalid" not in pair and high / low > FACTOR:
                    rates.add(float(f"{math.sqrt(low * high):.2g}"))
    return [Config(**base, elr=rate) for rate in sorted(rates)]


def run(trial: Trial, log: Log) -> Ending:
    """Train one network at one ELR and tell its regime."""
    from thalweg.lab.training.on_sphere import train_on_sphere

    return train_on_sphere(trial, log)


def run_many(trials: Sequence[Trial], logs: Sequence[Log]) -> list[Ending]:
    """`run` for several ELRs, as one program where that is faster."""
    from thalweg.lab.training.on_sphere import train_together_on_sphere

    return train_together_on_sphere(trials, logs)


def analyse(study: Study) -> Findings:
    """The sweep with its regimes, both boundaries, and the seed's sentences on the three regimes."""
    layers = {key: f"ESS, layer {key[4:]}" for key in dict.fromkeys(key for r in study.results for key in _sizes(r))}
    columns = {
        "train_loss": "loss",
        "cosine_distance": "1 - cos",
        "effective_grad_norm": "eff. grad norm",
        **layers,
        "test_error": "test error",
    }
    frame = mean_std(study.results, {"elr": "ELR"}, columns, formats=dict.fromkeys(columns, ".2g"))
    rates = sorted({setting(result).elr for result in study.results})
    regimes = [labels(study.where(elr=rate)) for rate in rates]
    frame.insert(1, "regime", regimes)
    told = dict(zip(rates, regimes, strict=True))
    shown = {f"{rate:g}: {told[rate]}": study.where(elr=rate) for rate in rates[:: -(-len(rates) // SHOWN)]}
    losses = {name: [r.series("train_loss") for r in runs] for name, runs in shown.items()}
    plane = {name: [track(r) for r in runs[:1]] for name, runs in shown.items()}
    sizes = {name.removeprefix("ESS, "): _by_rate(study, key) for key, name in layers.items()}
    return Findings(
        claims=_claims(study),
        tables=[
            Table(
                "The sweep",
                frame,
                "Means over the last tenth of the epochs; two regimes are named where the seeds disagree.",
            ),
            Table("Where the regimes end", _boundaries(study), "A boundary lies between the two rates."),
        ],
        pictures=[
            Picture(
                "losses",
                "Figure 5: training loss by epoch",
                curves(losses, xlabel="epoch", ylabel="training loss", logy=True),
                "Convergence, chaotic equilibrium, and the level of random directions.",
            ),
            Picture(
                "phases",
                "Figure 5, right: training loss against effective gradient norm, by ELR",
                tracks(plane, **PLANE),
                "One seed; means over stretches of epochs, the marker is the end.",
            ),
            Picture(
                "levels",
                "Final training loss against effective learning rate",
                curves({"loss": _by_rate(study, "train_loss")}, xlabel="ELR", ylabel="loss", logx=True, logy=True),
                "Mean over seeds; the band is their range.",
            ),
            Picture(
                "step-sizes",
                "Figure 6, right: effective step sizes of the layers",
                curves(sizes, xlabel="ELR", ylabel="effective step size", logx=True, logy=True),
                "Apart in the first regime, equal in the second: negative feedback (9).",
            ),
        ],
    )


def _sizes(result: Result) -> dict[str, float]:
    return {key: value for key, value in result.values.items() if key.startswith("ESS ")}


def _by_rate(study: Study, key: str) -> list[tuple[list[float], list[float]]]:
    return [(list(row), [result.values[key] for result in row.values()]) for row in _seeds(study).values()]


def _seeds(study: Study) -> dict[int, dict[float, Result]]:
    found: dict[int, dict[float, Result]] = {}
    for result in sorted(study.results, key=lambda r: float(setting(r).elr)):
        found.setdefault(result.seed, {})[setting(result).elr] = result
    return found


def _boundaries(study: Study) -> Any:
    import pandas as pd

    rows = []
    for seed, by_rate in _seeds(study).items():
        converged, settled, diverged = (
            [rate for rate, result in by_rate.items() if label(result) == name] for name in LABELS[:3]
        )
        ends = {
            "convergence to": max(converged, default=math.nan),
            "equilibrium from": min(settled, default=math.nan),
            "equilibrium to": max(settled, default=math.nan),
            "divergence from": min(diverged, default=math.nan),
        }
        rows.append({"seed": str(seed), **ends})
    return pd.DataFrame(rows)


def _claims(study: Study) -> list[Claim]:
    by_seed = _seeds(study)

    def of(name: str) -> dict[int, list[Result]]:
        return {seed: [r for r in row.values() if label(r) == name] for seed, row in by_seed.items()}

    converged, equilibrium, diverged = (of(label) for label in LABELS[:3])
    regimes = {seed: float(sum(bool(part[seed]) for part in (converged, equilibrium, diverged))) for seed in by_seed}
    claims = [
        paired(
            "greater",
            regimes,
            dict.fromkeys(regimes, 2.5),
            text="There are three regimes: convergence, chaotic equilibrium, divergence.",
            source="seed 001, section 3",
            unit="regimes seen, minus 2.5",
        )
    ]
    if all(len(part) > 1 for part in converged.values()):
        for key, what in {
            "effective_grad_norm": "curvature (effective gradient norm)",
            "test_error": "test error",
        }.items():
            high, low = ({s: p[i].values[key] for s, p in converged.items()} for i in (-1, 0))
            claims.append(
                paired(
                    "less",
                    high,
                    low,
                    text=f"In the first regime a higher ELR leads to lower {what}.",
                    source="seed 001, section 3, first regime",
                    unit=f"{what}, highest convergent ELR minus lowest",
                )
            )
    if all(equilibrium.values()):
        apart = {
            s: fmean(max(_sizes(r).values()) / min(_sizes(r).values()) - 1 for r in p) for s, p in equilibrium.items()
        }
        claims.append(
            paired(
                "less",
                apart,
                dict.fromkeys(apart, 0.03),
                text="In the second regime the layers' effective step sizes are equal, within 3%.",
                source="seed 001, figure 6, right",
                unit="mean of largest over smallest ESS - 1, minus 0.03",
            )
        )
    if all(diverged.values()):
        level = {s: min(r.values["train_loss"] / r.values["random_loss"] for r in p) for s, p in diverged.items()}
        claims.append(
            paired(
                "greater",
                level,
                dict.fromkeys(level, 0.8),
                text="In the third regime the loss is that of random directions, or at most a fifth lower.",
                source="seed 001, section 3, third regime",
                unit="least loss of a divergent run over that of the initial random weights, minus 0.8",
            )
        )
    return claims
