"""Periodic behaviour of scale-invariant networks under weight decay: figures 1, 3 and 4 of seed 001.

Weight decay shrinks the norm, so the effective learning rate η/ρ² grows until training is thrown out of its minimum;
the large gradients then make the norm grow again. Each run is told by `find_cycles`; runs on the sphere (``elr`` above
0) show at which effective learning rate convergence ends there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import PALETTE, Run, curves, figure, logarithmic
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.slopes import least_squares_slope
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3: figures 1, 3 and 4, propositions 1 and 2, corollary 1, theorem 1"
TITLE = "Periodic behaviour under weight decay"
VERSION = 1
REPLICAS = ("lr", "wd", "elr")
SWEEP: dict[str, tuple[Any, ...]] = {
    "lr": (0.3, 1.0),
    "wd": (1e-3, 3e-3, 1e-2, 3e-2),
    "elr": (0.0, 0.02, 0.03, 0.045, 0.07, 0.1),
}
VERDICTS = ("periodic", "equilibrium", "divergent", "undecided")
CONVERGENCE = 0  # its place among the labels of `classify_regime`
FEWEST, MOST = 4, 40  # cycles of a run whose median period is used, and of one that is drawn


class Config(ScaleSettings):
    """Clean digits, on which training gets to a loss low enough for weight decay to win."""

    samples: int = Field(
        1280, ge=0, description="ours: whole batches only; the gradients of a small last one hide cycles"
    )
    width: int = Field(64, ge=1, description="ours; c, the authors' 32 (convnet, resnet18)")
    epochs: int = Field(800, ge=20, description="ours; the authors' code has 1000")
    lr: float = Field(1.0, gt=0, description="figure 3 has 1e-3, 1e-2, 3e-2 and 1.0")
    wd: float = Field(1e-3, gt=0, lt=1, description="the authors' code has 1e-3")
    elr: float = Field(0.0, ge=0, description="ours: 0, or train on the sphere instead, at this ELR")
    norm: Literal["free", "fixed"] = Field("free", description="fixed: the ablation, see periodic-fixed-norm")


PRESETS = {
    "quick": Preset("70 s", 3),
    "laptop": Preset(
        "25 min", 2,
        {"data": "cifar10", "samples": 640, "tests": 500, "network": "convnet", "width": 8, "batch": 64, "epochs": 400},
        {"lr": (0.1, 0.3), "wd": (1e-2, 3e-2), "elr": (0.0, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)},
    ),
    "paper": Preset(
        "5 d on a CPU, estimated; made for a GPU", 1,
        {"data": "cifar10", "samples": 0, "network": "convnet", "width": 32, "epochs": 1000},
        {"lr": (1e-3, 1e-2, 3e-2, 1.0), "wd": (1e-3,), "elr": (0.0, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3)},
    ),
}  # fmt: skip


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Every lr with every wd in the whole space, and every ELR on the sphere."""
    base = settings.model_dump(exclude={"lr", "wd", "elr"})
    pairs = [(lr, wd) for lr in sweep["lr"] for wd in sweep["wd"]] if 0.0 in sweep["elr"] else []
    whole: list[Settings] = [Config(**base, lr=lr, wd=wd, elr=0.0) for lr, wd in pairs]
    return whole + [Config(**base, lr=sweep["lr"][0], wd=sweep["wd"][0], elr=elr) for elr in sweep["elr"] if elr > 0]


def run(trial: Trial, log: Log) -> Ending:
    """Train one network, in the whole space or on the sphere."""
    from thalweg.lab.training.on_sphere import train_on_sphere
    from thalweg.lab.training.whole_space import train_in_whole_space

    config: Any = trial.config
    return train_on_sphere(trial, log) if config.elr else train_in_whole_space(trial, log)


def run_many(trials: Sequence[Trial], logs: Sequence[Log]) -> list[Ending]:
    """`run` for several rates: one program for the whole space and one for the sphere, where that is faster."""
    from thalweg.lab.training.on_sphere import train_together_on_sphere
    from thalweg.lab.training.whole_space import train_together_in_whole_space

    configs: list[Any] = [trial.config for trial in trials]
    endings: dict[int, Ending] = {}
    for train, sphere in ((train_together_on_sphere, True), (train_together_in_whole_space, False)):
        own = [k for k, config in enumerate(configs) if bool(config.elr) == sphere]
        endings |= zip(own, train([trials[k] for k in own], [logs[k] for k in own]), strict=True)
    return [endings[k] for k in range(len(trials))]


def analyse(study: Study) -> Findings:
    """Cycles of every learning rate and weight decay, the period against their product, one period in detail."""
    free = [result for result in study.results if not _config(result).elr]
    columns = {
        "cycles": "cycles",
        "period": "period",
        "predicted_period": "decay alone",
        "phase A": "A",
        "phase B": "B",
        "phase C": "C",
        "destabilization_elr": "ELR at its end",
        "inside": "in theorem 1's interval",
        "within_printed": "1 - cos in bounds",
    }
    shapes = {key: ".0f" if key.startswith(("period", "predicted", "phase")) else ".2g" for key in columns}
    shapes |= {"cycles": ".1f", "inside": ".3f", "within_printed": ".3f"}
    frame = mean_std(free, {"lr": "lr", "wd": "wd"}, columns, formats=shapes)
    pairs = dict.fromkeys((_config(result).lr, _config(result).wd) for result in free)
    told = [dict.fromkeys(_verdict(result) for result in study.where(lr=lr, wd=wd, elr=0.0)) for lr, wd in pairs]
    frame.insert(2, "verdict", [" / ".join(verdicts) for verdicts in told])
    note = (
        "Iterations: medians over a run's cycles, means over seeds. Decay alone: ln(ρ²max/ρ²min)/2ηλ, corollary 1. "
        "A, B, C: the phases of figure 4. The last two columns: shares of the iterations."
    )
    tables = [Table("Periods", frame, note)]
    if rows := _on_sphere(study):
        import pandas as pd

        tables.append(Table("The same network on the sphere", pd.DataFrame(rows), "Where convergence ends."))
    return Findings(_claims(study, free), tables, _pictures(study, free))


def _config(result: Result) -> Any:
    return result.config


def _verdict(result: Result) -> str:
    return VERDICTS[int(result.values["verdict"])] if result.outcome == "finished" else result.outcome


def _periods(results: Sequence[Result]) -> dict[int, list[tuple[float, float]]]:
    """Seed -> (ηλ, period) of every run with cycles enough."""
    found: dict[int, list[tuple[float, float]]] = {result.seed: [] for result in results}
    for result in results:
        if result.values.get("cycles", 0) >= FEWEST:
            found[result.seed].append((_config(result).lr * _config(result).wd, result.values["period"]))
    return {seed: sorted(points) for seed, points in found.items()}


def _on_sphere(study: Study) -> list[dict[str, Any]]:
    """For each seed, the ELRs between which convergence ends on the sphere, and where periods end elsewhere."""
    rows = []
    for seed in dict.fromkeys(result.seed for result in study.results):
        own = [result for result in study.results if result.seed == seed]
        sphere = sorted((r for r in own if _config(r).elr and r.outcome == "finished"), key=lambda r: _config(r).elr)
        stays = [r.values["regime"] == CONVERGENCE for r in sphere]
        ends = [
            r.values["destabilization_elr"] for r in own if not _config(r).elr and r.values.get("cycles", 0) >= FEWEST
        ]
        if ends and True in stays and False in stays:
            first = stays.index(False)
            low, high = _config(sphere[max(first - 1, 0)]).elr, _config(sphere[first]).elr
            rows.append({"seed": str(seed), "converges": low, "does not": high, "periods end at": median(ends)})
    return rows


def _claims(study: Study, free: Sequence[Result]) -> list[Claim]:
    claims = []
    seeds = sorted({result.seed for result in free})
    most = {seed: max(r.values.get("cycles", 0.0) for r in free if r.seed == seed) for seed in seeds}
    claims.append(
        paired(
            "greater", most, dict.fromkeys(most, 1.5),
            text="Training with normalization and weight decay is periodic.",
            source="seed 001, figure 3", unit="cycles of the run with the most, minus 1.5",
        )
    )  # fmt: skip
    slopes = {
        seed: least_squares_slope([math.log(x) for x, _ in points], [math.log(y) for _, y in points])
        for seed, points in _periods(free).items()
        if len(points) > 2
    }
    if slopes:
        claims.append(
            paired(
                "less", {seed: abs(slope + 1) for seed, slope in slopes.items()}, dict.fromkeys(slopes, 0.1),
                text="The period is inversely proportional to lr·wd: its log-log slope is -1, within 0.1.",
                source="seed 001, corollary 1", unit="|slope + 1|, minus 0.1",
                printed="frequency directly proportional to ηλ",
            )
        )  # fmt: skip
    worst = {
        key: {
            seed: min((r.values[key] for r in free if r.seed == seed and key in r.values), default=math.nan)
            for seed in seeds
        }
        for key in ("inside", "within_printed")
    }
    claims += [
        paired(
            "greater", worst["inside"], dict.fromkeys(seeds, 0.999),
            text="The squared norm stays within theorem 1's interval [κℓ, κL].",
            source="seed 001, theorem 1", unit="least share of iterations inside, minus 0.999",
        ),
        paired(
            "greater", worst["within_printed"], dict.fromkeys(seeds, 0.9),
            text="1 - cos between iterates lies within the bounds of proposition 1, for nine iterations of ten.",
            source="seed 001, figure 4, right", unit="least share of iterations within, minus 0.9",
        ),
    ]  # fmt: skip
    if rows := _on_sphere(study):
        apart = {
            int(row["seed"]): abs(math.log2(row["periods end at"] / math.sqrt(row["converges"] * row["does not"])))
            for row in rows
        }
        claims.append(
            paired(
                "less", apart, dict.fromkeys(apart, 1.0),
                text="Periods end at the ELR at which convergence ends on the sphere, within a factor of 2.",
                source="seed 001, figures 3 and 5", unit="|log2 of their ratio|, minus 1",
            )
        )  # fmt: skip
    return claims


def _pictures(study: Study, free: Sequence[Result]) -> list[Picture]:
    own = [r for r in free if r.seed == free[0].seed and r.outcome == "finished"]
    clear = sorted((r for r in own if FEWEST <= r.values["cycles"] <= MOST), key=lambda r: -r.values["period"])
    shown = {f"lr {_config(r).lr:g}, wd {_config(r).wd:g}": r for r in (clear[:1] + clear[-1:] if clear else own[:2])}
    over_time = {
        "train_loss": ("losses", "Figure 3: training loss by epoch", "training loss"),
        "rho": ("norms", "Figure 3: norm of the weights by epoch", "ρ"),
    }
    pictures = [
        Picture(
            name,
            title,
            curves({label: [r.series(key)] for label, r in shown.items()}, xlabel="epoch", ylabel=ylabel, logy=True),
            "One seed: the longest and the shortest of the clear periods.",
        )
        for key, (name, title, ylabel) in over_time.items()
    ]
    points: dict[str, list[Run]] = {}
    for seed, row in _periods(free).items():
        points[f"seed {seed}"] = [([product for product, _ in row], [period for _, period in row])]
    if any(_periods(free).values()):
        drawn = curves(points, xlabel="ηλ", ylabel="period, iterations", logx=True, logy=True)
        pictures.append(Picture("periods", "Corollary 1: the period against ηλ", drawn, "A slope of -1 is the claim."))
    detailed = max(own, key=lambda r: r.values.get("period", 0.0), default=None)
    if detailed and any("in_period" in row for row in detailed.rows):
        pictures.append(_one_period(detailed))
    return pictures


def _one_period(result: Result) -> Picture:
    """Figure 4: the loss, the norm and the ELR of one period, and 1 - cos between its bounds."""
    rows = [row for row in result.rows if "in_period" in row]
    x = [row["in_period"] for row in rows]
    drawn = figure(2, 2, width=6.4, height=4.6, sharex=True)
    panels = {
        "batch_loss": "training loss",
        "squared_norm": "ρ²",
        "effective_lr": "ELR",
        "step": "1 - cos, and its bounds",
    }
    for axes, (key, title) in zip(drawn.axes, panels.items(), strict=True):
        if key == "step":
            for bound in ("least_step", "largest_step"):
                axes.plot(x, [row[bound] for row in rows], color="black", linewidth=0.6, alpha=0.6, linestyle="-")
        axes.plot(x, [row[key] for row in rows], color=PALETTE[0], linewidth=1.0, linestyle="-")
        logarithmic(axes, "y")
        axes.set_title(title, fontsize=9)
    for axes in drawn.axes[2:]:
        axes.set_xlabel("iteration of the period")
    config = _config(result)
    caption = (
        f"lr {config.lr:g}, wd {config.wd:g}, seed {result.seed}: phase A is over in some iterations, phase B, in "
        "which weight decay acts alone, is nearly all of the period, and C ends it."
    )
    return Picture("one-period", "Figure 4: one period", drawn, caption)
