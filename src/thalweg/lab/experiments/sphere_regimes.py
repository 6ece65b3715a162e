"""Three regimes of training on the sphere: an ELR sweep, its phase diagram, equal step sizes (seed 001, figures 5, 6).

A scale-invariant network is trained by SGD on the sphere at fixed effective learning rates (6). Each run is told by
`classify_regime`; between neighbours of different regimes the sweep is refined until both boundaries are known to a
factor of 1.8. The published setting is ConvNet on CIFAR-10; this file has the small network that shows the same.
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
from thalweg.lab.figures import curves
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3: figures 5 and 6 (right), small network"
TITLE = "Three regimes of training on the sphere"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"elr": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
LABELS = ("convergence", "chaotic equilibrium", "divergence", "transition", "invalid")
FACTOR = 1.8


class Config(ScaleSettings):
    """A perceptron on digits with some random labels: without them the second regime is narrow."""

    elr: float = Field(1e-3, gt=0, description="figure 5 sweeps 1e-5 to 1e-1 on ConvNet; ours covers the same regimes")
    epochs: int = Field(200, ge=20, description="ours; the authors' code has 1000")
    label_noise: float = Field(0.2, ge=0, le=1, description="ours: share of random labels")


PRESETS = {
    "quick": Preset("50 s", 3),
    "laptop": Preset("5 min, estimated", 5, {"epochs": 400}),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """The sweep, and midpoints where neighbouring rates lie in different regimes further apart than ``FACTOR``."""
    rates = set(sweep["elr"])
    base = settings.model_dump(exclude={"elr"})
    if tuple(sweep["elr"]) == SWEEP["elr"]:  # rates that were asked for by number are run as they are
        labels = {(r.config.elr, r.seed): _label(r) for r in results}  # type: ignore[attr-defined]
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


def analyse(study: Study) -> Findings:
    """The sweep with its regimes, both boundaries, and the seed's sentences on the three regimes."""
    columns = {
        "train_loss": "loss",
        "cosine_distance": "1 - cos",
        "effective_grad_norm": "eff. grad norm",
        "ESS 1": "ESS, layer 1",
        "ESS 2": "ESS, layer 2",
        "test_error": "test error",
    }
    frame = mean_std(study.results, {"elr": "ELR"}, columns, formats=dict.fromkeys(columns, ".2g"))
    rates = sorted({_elr(result) for result in study.results})
    regimes = [" / ".join(dict.fromkeys(_label(r) for r in study.where(elr=rate))) for rate in rates]
    frame.insert(1, "regime", regimes)
    losses = {
        f"{rate:g}: {regime}": [r.series("train_loss") for r in study.where(elr=rate)]
        for rate, regime in zip(rates, regimes, strict=True)
        if rate in (3e-4, 1e-3, 1e-2, 3e-2, 3e-1)
    }
    sizes = {f"layer {i}": _by_rate(study, f"ESS {i}") for i in (1, 2)}
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


def _elr(result: Result) -> float:
    config: Any = result.config
    return float(config.elr)


def _label(result: Result) -> str:
    return LABELS[int(result.values["regime"])] if result.outcome == "finished" else "invalid"


def _by_rate(study: Study, key: str) -> list[tuple[list[float], list[float]]]:
    return [(list(row), [result.values[key] for result in row.values()]) for row in _seeds(study).values()]


def _seeds(study: Study) -> dict[int, dict[float, Result]]:
    found: dict[int, dict[float, Result]] = {}
    for result in sorted(study.results, key=_elr):
        found.setdefault(result.seed, {})[_elr(result)] = result
    return found


def _boundaries(study: Study) -> Any:
    import pandas as pd

    rows = []
    for seed, by_rate in _seeds(study).items():
        labels = {rate: _label(result) for rate, result in by_rate.items()}
        ends = {
            "convergence to": max((rate for rate, label in labels.items() if label == "convergence"), default=math.nan),
            "equilibrium from": min((r for r, label in labels.items() if label == LABELS[1]), default=math.nan),
            "equilibrium to": max((r for r, label in labels.items() if label == LABELS[1]), default=math.nan),
            "divergence from": min((r for r, label in labels.items() if label == "divergence"), default=math.nan),
        }
        rows.append({"seed": str(seed), **ends})
    return pd.DataFrame(rows)


def _claims(study: Study) -> list[Claim]:
    by_seed = _seeds(study)

    def of(label: str) -> dict[int, list[Result]]:
        return {seed: [r for r in row.values() if _label(r) == label] for seed, row in by_seed.items()}

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
        flat, sharp = ({s: p[i].values["effective_grad_norm"] for s, p in converged.items()} for i in (-1, 0))
        claims.append(
            paired(
                "less",
                flat,
                sharp,
                text="In the first regime a higher ELR leads to lower curvature (effective gradient norm).",
                source="seed 001, section 3, first regime",
                unit="effective gradient norm at the highest convergent ELR minus that at the lowest",
            )
        )
    if all(equilibrium.values()):
        apart = {s: fmean(abs(r.values["ESS 1"] / r.values["ESS 2"] - 1) for r in p) for s, p in equilibrium.items()}
        claims.append(
            paired(
                "less",
                apart,
                dict.fromkeys(apart, 0.03),
                text="In the second regime the layers' effective step sizes are equal, within 3%.",
                source="seed 001, figure 6, right",
                unit="mean |ESS 1 / ESS 2 - 1|, minus 0.03",
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
