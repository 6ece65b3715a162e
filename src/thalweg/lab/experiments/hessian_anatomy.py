"""The Hessian over training: its two parts, its spectrum, its trace; and a convolution as a Toeplitz matrix (seed 003).

    H = H_O + H_F,    H_O = mean Jᵀ A J,    H_F = mean Σ_c (p - y)_c ∇²z_c          "decomposition of the Hessian"

The seed neglects H_F: "in classification ||H_F|| << ||H_O||". H_F carries the factor p - y, so this depends on how well
the network is trained: it is measured from the initial weights on, of the mean Hessian and of single samples. In a
network of linear layers and ReLU no layer's own block of H_F differs from zero, hence tr H = tr H_O: also measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Study, Table
from thalweg.lab.figures import PALETTE, curves, figure, logarithmic, styled
from thalweg.lab.landscape_settings import NETWORKS, LandscapeSettings, Pooling
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "seed 003, decomposition of the Hessian; convolutions as linear operators"
TITLE = "The Hessian over training: Gauss-Newton and remainder, spectrum, trace"
VERSION = 2
SWEEP: dict[str, tuple[Any, ...]] = {"network": ("conv2d", "conv1d", "mlp")}
MUCH_LESS = 0.1  # what "<<" is taken to mean
RESOLVED = 1e-3  # of the largest eigenvalue: the precision of all of them


class Config(LandscapeSettings):
    """Small networks, so that the whole Hessian can be written down."""

    filters: int = Field(6, ge=1, description="ours: channels; mlp: hidden width")
    pooling: Pooling = Field("max", description="ours: behind the first ReLU")
    lr: float = Field(1e-2, gt=0, description="ours: of Adam")
    epochs: int = Field(40, ge=2, description="ours: until the loss is small")
    measured: int = Field(100, ge=1, description="ours: training images over which the Hessian is taken")
    single: int = Field(16, ge=1, description="ours: of them, those that are also looked at alone")
    top: int = Field(10, ge=1, description="ours: largest eigenvalues")


PRESETS = {
    "quick": Preset("40 s", 3, {"samples": 1000}),
    "laptop": Preset(
        "7 min",
        3,
        {"data": "mnist", "samples": 5000, "filters": 8, "measured": 500, "epochs": 40, "lr": 3e-3},
        {"network": ("conv2d", "mlp")},
    ),
}


def run(trial: Trial, log: Log) -> Ending:
    """Train one network and dissect its Hessian."""
    from thalweg.lab.training.landscape_anatomy import train_and_dissect

    config: Any = trial.config
    return train_and_dissect(trial, log, samples=config.measured, single=config.single, top=config.top)


def analyse(study: Study) -> Findings:
    """Both parts by epoch, the spectrum before and after, the trace; the seed's sentence on H_F."""
    norms = {"loss": "loss", "H_O": "||H_O||", "H_F": "||H_F||", "ratio": "||H_F||/||H_O||"}
    norms |= {"single ratio": "single samples"}
    top = study.settings["top"]
    spectrum = {"top 1": "λ 1", f"top {top}": f"λ {top}", "lowest": "λ min", "ggn trace": "tr H_O"}
    spectrum |= {"blocks": "blocks", "trace gap": "trace gap"}
    gap = GAP if _has(study, "init: trace gap") else ""
    tables = [
        Table("The two parts, before and after training", _by_moment(study, norms), NORMS),
        Table("Spectrum and trace, before and after training", _by_moment(study, spectrum), SPECTRUM + gap),
    ]
    return Findings(_claims(study), tables, _pictures(study))


NORMS = "Norms: of the mean Hessian's parts. Single samples: the median of ||H_F,i||/||H_O,i|| over single images."
SPECTRUM = "λ: eigenvalues of H. Blocks: the largest ||H_F||/||H_O|| of a layer's diagonal block."
GAP = " Trace gap: |tr H - tr H_O|/tr H_O, tr H from every diagonal entry (up to 1500 parameters)."


def _by_moment(study: Study, columns: Mapping[str, str]) -> pd.DataFrame:
    """Two rows for each network: at the initial weights and at the trained ones."""
    import pandas as pd

    frames = []
    for when, weights in {"init": "initial", "end": "trained"}.items():
        named = {f"{when}: {key}": heading for key, heading in columns.items() if _has(study, f"{when}: {key}")}
        formats = {key: {"ggn trace": ".3g", "trace gap": ".1g"}.get(key.partition(": ")[2], ".2g") for key in named}
        frames.append(mean_std(study.results, {"network": "network"}, named, formats=formats))
        frames[-1].insert(1, "weights", weights)
    both = pd.concat(frames).sort_index(kind="stable").reset_index(drop=True)
    return both.assign(network=both["network"].replace(NETWORKS))


def _has(study: Study, key: str) -> bool:
    return any(key in r.values for r in study.results)


def _network(result: Result) -> str:
    return str(result.config.model_dump()["network"])


def _pictures(study: Study) -> list[Picture]:
    names = list(dict.fromkeys(map(_network, study.results)))
    ratios = {NETWORKS[name]: [r.series("ratio") for r in study.where(network=name)] for name in names}
    first = study.where(network=names[0])
    norms = {f"||{key}||": [r.series(key) for r in first] for key in ("H", "H_O", "H_F")}
    top = study.settings["top"]
    shown = [i for i in (1, 2, 5, 10, 20) if i < top] + [top]
    ends = {f"λ {i}": [r.series(f"top {i}") for r in first] for i in shown}
    ends["−λ min"] = [_below_zero(r) for r in first]
    what = f"{NETWORKS[names[0]]}. Mean over seeds; the band is their range."
    pictures = [
        Picture(
            "ratio",
            "||H_F||/||H_O|| by epoch",
            curves(ratios, xlabel="epoch", ylabel="||H_F||/||H_O||", logy=True),
            "Of the mean Hessian. Mean over seeds; the band is their range.",
        ),
        Picture("norms", "Norms by epoch", curves(norms, xlabel="epoch", ylabel="norm", logy=True), what),
        Picture(
            "eigenvalues",
            "Eigenvalues of H by epoch",
            curves(ends, xlabel="epoch", ylabel="λ", logy=True),
            f"{what} −λ min is drawn at {RESOLVED:g} of λ 1, the precision, where it is less.",
        ),
    ]
    pictures += [_densities(r) for r in first if any("density" in row for row in r.rows)][:1]
    for name in names:
        pictures += [_toeplitz(r) for r in study.where(network=name) if any("T" in row for row in r.rows)][:1]
    return pictures


def _below_zero(result: Result) -> tuple[list[float], list[float]]:
    """How far the spectrum reaches below zero, at least what is resolved, by epoch."""
    epochs, lowest = result.series("lowest")
    largest = result.series("top 1")[1]
    return epochs, [max(-low, RESOLVED * high) for low, high in zip(lowest, largest, strict=True)]


def _densities(result: Result) -> Picture:
    """Spectral density at the start, early and at the end, on an axis each: their ranges differ."""
    epochs = sorted({row["of epoch"] for row in result.rows if "of epoch" in row})
    drawn = figure(len(epochs), 1, width=4.8, height=1.6 * len(epochs))
    for axes, epoch in zip(drawn.axes, epochs, strict=True):
        rows = [row for row in result.rows if row.get("of epoch") == epoch]
        highest = max(row["density"] for row in rows)
        floor = highest * 1e-6
        axes.fill_between(
            [r["t"] for r in rows], floor, [max(r["density"], floor) for r in rows], color=PALETTE[0], alpha=0.35
        )
        axes.set_title(f"epoch {epoch:g}", loc="left", fontsize=9)
        logarithmic(axes, "y")
        axes.set_ylim(floor, 3 * highest)
    drawn.axes[-1].set_xlabel("eigenvalue")
    drawn.axes[len(epochs) // 2].set_ylabel("density")
    caption = (
        f"{NETWORKS[_network(result)]}, one seed: the bulk at zero, outliers apart. Each mass is a narrow Gaussian."
    )
    return Picture("density", "Spectral density of H", drawn, caption)


def _toeplitz(result: Result) -> Picture:
    """The matrix of the first layer, one filter: squares whose area is |weight|, in two colours for the signs."""
    entries: Sequence[Any] = [row for row in result.rows if "T" in row]
    largest = max(abs(row["T"]) for row in entries)
    drawn = figure(1, 1, width=4.8, height=4.6)
    axes = drawn.axes[0]
    side = max(max(row["i"], row["j"]) for row in entries) + 1
    for sign, colour, name in ((1, PALETTE[0], "positive"), (-1, PALETTE[1], "negative")):
        part = [row for row in entries if row["T"] * sign > 0]
        area = [(250 / side) ** 2 * abs(row["T"]) / largest for row in part]
        axes.scatter([r["j"] for r in part], [r["i"] for r in part], s=area, c=colour, marker="s", linewidths=0)
        axes.plot([], [], color=colour, marker="s", linestyle="none", label=name)  # for the legend, of one size
    axes.set(xlabel="input", ylabel="output", xlim=(-1, side), ylim=(side, -1), aspect="equal")
    with styled():
        drawn.legend(loc="outside upper left", ncols=2)
    network = _network(result)
    kind = "Banded Toeplitz" if network == "conv1d" else "Toeplitz blocks in a Toeplitz arrangement"
    caption = (
        f"{kind}: what is empty is zero. Each row has the same few weights; rows at borders lack those in the padding."
    )
    title = f"{NETWORKS[network]}: a filter of the first layer as a matrix"
    return Picture(f"toeplitz-{network}", title, drawn, caption)


def _claims(study: Study) -> list[Claim]:
    claims = []
    source = "seed 003, decomposition of the Hessian"
    for network in dict.fromkeys(map(_network, study.results)):
        who = NETWORKS[network]
        for when, state in {"init": "with initial weights", "end": "after training"}.items():
            for key, of in {"ratio": "the mean Hessian", "single ratio": "single samples"}.items():
                found = study.by_seed(f"{when}: {key}", network=network)
                powers = {seed: math.log10(value) if value > 0 else math.nan for seed, value in found.items()}
                text = f"{who}, {state}: ||H_F|| << ||H_O||, at most a tenth, for {of}."
                unit = f"log10 of ||H_F||/||H_O|| of {of}, plus 1"
                limit = dict.fromkeys(powers, math.log10(MUCH_LESS))
                claims.append(paired("less", powers, limit, text=text, source=source, unit=unit))
        gap = {
            r.seed: max(value for key, value in r.values.items() if key.endswith(("blocks", "trace gap")))
            for r in study.where(network=network)
            if r.outcome == "finished"
        }
        claims.append(
            paired(
                "less",
                {seed: math.log10(max(value, 1e-18)) for seed, value in gap.items()},
                dict.fromkeys(gap, -8.0),
                text=f"{who}: tr H = tr H_O, as no layer's own block has a remainder; to eight digits.",
                source="not in the seed",
                unit="log10 of the largest relative difference, plus 8",
            )
        )
    return claims
