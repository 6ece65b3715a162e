"""The spectrum of every layer over training, for every penalty and initialization: who keeps [A, B] (seed 002).

The frame penalty's purpose is A <= λ(V) <= B in every layer, V = WᵀW (WWᵀ where m < n). Here the eigenvalues themselves
are looked at: all of them, of every layer with its borders. The seed names no initialization; from He's its penalty
collapses weights, because diagonal dominance is not in sight and W = 0 is stationary with R = A².
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Study, Table
from thalweg.lab.figures import PALETTE, figure, logarithmic, panels, styled
from thalweg.lab.frame_settings import CIFAR, FRAMES, INITS, METHODS, FrameSettings, Init, Method
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "seed 002, slides 4, 9, 10, 15: what the penalties do to the layers"
TITLE = "Who keeps every layer's spectrum in [A, B]: penalties and initializations"
VERSION = 2
SWEEP: dict[str, tuple[Any, ...]] = {"method": tuple(METHODS), "init": tuple(INITS)}
CLASSIFIER = "last"  # as a part of the loss the frame penalty leaves it out, see thalweg.lab.training.classification
ZERO = 1e-8  # R below it counts as R = 0
SLACK = 1e-4  # of an eigenvalue: sums in float32
LEAST = 1e-3  # smallest eigenvalue drawn


class Config(FrameSettings):
    """The frame penalties without weight decay, the others with it, as in the recipes."""

    method: Method = Field("none", description="slide 12; polyak and spectral are ours")
    init: Init = Field("he", description="not in the slides: He's, or tight frames with bound √(AB)")
    decay: float = Field(5e-4, ge=0, description="of all methods but the frame penalties; the CIFAR recipes'")
    frame_decay: float = Field(0.0, ge=0, description="of the frame penalties; slide 15: dropped")


PRESETS = {
    "quick": Preset("100 s", 3, {"width": 8, "epochs": 8}),
    "laptop": Preset("30 min", 3, {**CIFAR, "epochs": 10}),
    "paper": Preset(
        "GPU weeks, estimated",
        3,
        {"data": "cifar10", "network": "resnet34", "width": 64, "augment": True, "epochs": 200},
    ),
}


def run(trial: Trial, log: Log) -> Ending:
    """Train one network; its spectra are measured before, after 1, 4, 16, … epochs and at the end."""
    from thalweg.lab.training.classification import train_regularized

    config: Any = trial.config
    powers = [4**k for k in range(config.epochs.bit_length()) if 4**k < config.epochs]
    return train_regularized(
        trial,
        log,
        method=config.method,
        init=config.init,
        decay=config.frame_decay if config.method in FRAMES else config.decay,
        spectra_at=(0, *powers, config.epochs),
    )


def analyse(study: Study) -> Findings:
    """The worst layer of every method and initialization, all layers at the end, and the seed's sentences."""
    ends = [_summarized(result) for result in study.results]
    by = {"method": "method", "init": "start"}
    columns = {
        "inside": "least share in [A, B]",
        "min": "least λ_min",
        "max": "largest λ_max",
        "coherence": "mean |cos|",
        "norm": "norm",
        "accuracy": "accuracy, %",
    }
    formats = {"inside": ".3f", "min": ".3f", "max": ".2f", "coherence": ".3f", "norm": ".1f", "accuracy": ".1f"}
    worst = mean_std(ends, by, columns, formats=formats)
    layers = dict.fromkeys(name for result in study.results for name in _layers(result))
    shares = mean_std(
        study.results,
        by,
        {f"inside {name}": _short(name) for name in layers},
        formats={f"inside {name}": ".3f" for name in layers},
    )
    for frame in (worst, shares):
        frame["method"], frame["start"] = frame["method"].replace(METHODS), frame["start"].replace(INITS)
    used = {INITS[i]: i for i in INITS if study.where(init=i)}
    views = {
        METHODS[m]: {start: [_least_share(r) for r in study.where(method=m, init=i)] for start, i in used.items()}
        for m in METHODS
        if study.where(method=m)
    }
    A, B = study.settings["lower"], study.settings["upper"]
    return Findings(
        claims=_claims(study, A, B),
        tables=[
            Table(
                f"The worst layer after training, [A, B] = [{A:g}, {B:g}]",
                worst,
                "Of the layers of each run but the classifier: the least share of eigenvalues inside, the least and "
                "the largest eigenvalue. Mean |cos|: between the filters of a layer. Norm: Frobenius, of all weights.",
            ),
            Table(
                "Share of each layer's eigenvalues in [A, B] after training",
                shares,
                "In the order of the network: the stem, the convolutions as block.convolution, the classifier (last).",
            ),
        ],
        pictures=[
            Picture(
                "shares",
                "The layer, but the classifier, with the smallest share of its spectrum in [A, B]",
                panels(
                    views,
                    columns=min(4, len(views)),
                    xlabel="epoch",
                    ylabel="share inside",
                    sharey=True,
                    width=7.2 if len(views) > 2 else 4.8,
                ),
                "Mean over seeds; the band is their range.",
            ),
            Picture(
                "spectra",
                "From λ_min to λ_max of every layer after training",
                _spectra(study, A, B),
                f"One seed; a line for each layer, the first on top. Dashed: A, B. What is below {LEAST:g} is cut.",
            ),
        ],
    )


def _layers(result: Result) -> list[str]:
    return [key.removeprefix("min ") for key in result.values if key.startswith("min ")]


def _short(name: str) -> str:
    return name.replace("blocks.", "").replace("convolutions.", "").replace("shortcut.0", "shortcut")


def _summarized(result: Result) -> Result:
    """The result with ``inside``, ``min``, ``max`` and ``condition`` of the worst layer but the classifier."""
    from dataclasses import replace

    values = dict(result.values)
    if layers := [name for name in _layers(result) if name != CLASSIFIER]:
        values |= {
            "inside": min(values[f"inside {name}"] for name in layers),
            "min": min(values[f"min {name}"] for name in layers),
            "max": max(values[f"max {name}"] for name in layers),
            "condition": max(values[f"max {name}"] / max(values[f"min {name}"], 1e-12) for name in layers),
        }
    return replace(result, values=values)


def _least_share(result: Result) -> tuple[list[float], list[float]]:
    layers = [name for name in _layers(result) if name != CLASSIFIER]
    rows = [row for row in result.rows if layers and f"inside {layers[0]}" in row]
    return [row["epoch"] for row in rows], [min(row[f"inside {name}"] for name in layers) for row in rows]


def _spectra(study: Study, A: float, B: float) -> Figure:
    inits = [i for i in INITS if study.where(init=i)]
    methods = [m for m in METHODS if study.where(method=m)]
    drawn = figure(1, len(inits), width=7.2, height=0.55 * len(methods) + 0.8, sharex=True, sharey=True, squeeze=False)
    with styled():
        for axes, init in zip(drawn.axes, inits, strict=True):
            for place, method in enumerate(methods):
                result = study.where(method=method, init=init)[:1]
                layers = _layers(result[0]) if result else []
                for k, name in enumerate(layers):
                    low, high = result[0].values[f"min {name}"], result[0].values[f"max {name}"]
                    height = place + 0.35 * (2 * k / max(1, len(layers) - 1) - 1)
                    look: dict[str, Any] = {
                        "color": PALETTE[place % len(PALETTE)],
                        "linestyle": "-",
                        "linewidth": 1.2,
                        "marker": "|",
                        "markersize": 3,
                    }
                    axes.plot([max(low, LEAST), max(high, LEAST)], [height] * 2, **look)
            for bound in (A, B):
                axes.axvline(bound, color="black", linestyle=(0, (5, 2)), linewidth=0.8)
            logarithmic(axes, "x")
            axes.set_title(f"start: {INITS[init]}", loc="left", fontsize=9)
            axes.set(xlabel="eigenvalue of V", yticks=range(len(methods)), yticklabels=[METHODS[m] for m in methods])
        if drawn.axes:
            drawn.axes[0].invert_yaxis()
    return drawn


def _claims(study: Study, A: float, B: float) -> list[Claim]:
    worst: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for result in map(_summarized, study.results):
        if result.outcome == "finished":
            config = result.config.model_dump()
            for key in ("inside", "min", "max", "condition", "coherence"):
                worst.setdefault((config["method"], config["init"]), {}).setdefault(key, {})[result.seed] = (
                    result.values[key]
                )

    def at(value: float, found: dict[int, float]) -> dict[int, float]:
        return dict.fromkeys(found, value)

    claims = []
    excess = _excess_where_zero(study, A, B)
    if excess:
        claims.append(
            paired(
                "less", excess, at(SLACK, excess),
                text="R = 0 implies A <= λ <= B: in every layer and at every epoch.",
                source="seed 002, slide 10",
                unit=f"farthest eigenvalue outside [A, B] where R = 0, minus {SLACK:g}",
            )
        )  # fmt: skip
    if kept := worst.get(("frame", "frame")):
        outside = {s: max(A - kept["min"][s], kept["max"][s] - B) for s in kept["min"]}
        claims += [
            paired(
                "less", outside, at(0.0, outside),
                text="The frame penalty, from tight frames, keeps every layer it acts on inside [A, B].",
                source="seed 002, slides 9, 10; the start is ours",
                unit="farthest eigenvalue outside [A, B]; inside is negative",
            ),
            paired(
                "less", kept["condition"], at(B / A, kept["condition"]),
                text="The frame penalty, from tight frames, bounds the condition number: κ(WᵀW) = κ(W)² <= B/A "
                "(printed: κ(W) <= B/A).",
                source="seed 002, slide 9",
                unit=f"largest λ_max/λ_min of a layer, minus {B / A:g}",
            ),
        ]  # fmt: skip
    if lost := worst.get(("frame", "he")):
        smallest = {s: value if value > SLACK else 0.0 for s, value in lost["min"].items()}
        claims.append(
            paired(
                "greater", smallest, at(A, smallest),
                text="The frame penalty builds a frame from He's initialization too: no eigenvalue is below A.",
                source="seed 002, slide 10; the slides name no initialization",
                unit=f"least λ_min of a layer, minus {A:g}",
            )
        )  # fmt: skip
    if steady := _every_layer(study, "polyak", "frame"):
        outside = {s: max(A - least, largest - B) for s, (_, least, largest) in steady.items()}
        claims.append(
            paired(
                "less", outside, at(0.0, outside),
                text="The frame penalty with steps of its own, from tight frames, keeps every layer inside [A, B], "
                "the classifier too.",
                source="seed 002, slides 9, 10; the steps and the start are ours",
                unit="farthest eigenvalue outside [A, B]; inside is negative",
            )
        )  # fmt: skip
    if spectral := _every_layer(study, "spectral", "he"):
        share = {s: inside for s, (inside, _, _) in spectral.items()}
        largest = {s: top for s, (_, _, top) in spectral.items()}
        claims += [
            paired(
                "greater", share, at(0.95, share),
                text="The spectral form, from He's initialization, brings 95% of every layer's spectrum into [A, B].",
                source="beyond seed 002",
                unit="least share of a layer, minus 0.95",
            ),
            paired(
                "less", largest, at(1.1 * B, largest),
                text="Under the spectral form no λ_max is above 1.1 B.",
                source="beyond seed 002",
                unit=f"largest λ_max of a layer, minus {1.1 * B:g}",
            ),
        ]  # fmt: skip
    for init, start in {"he": "He's initialization", "frame": "tight frames"}.items():
        frame, none = worst.get(("frame", init)), worst.get(("none", init))
        if frame and none:
            claims.append(
                paired(
                    "less", frame["coherence"], none["coherence"],
                    text=f"From {start} the frame penalty makes weights less correlated than no penalty does.",
                    source="seed 002, slides 4, 15",
                    unit="mean |cos| between filters, frame minus none",
                )
            )  # fmt: skip
    return claims


def _every_layer(study: Study, method: Method, init: Init) -> dict[int, tuple[float, float, float]]:
    """Seed -> least share inside, least and largest eigenvalue of all layers, the classifier too."""
    return {
        result.seed: (
            min(value for key, value in result.values.items() if key.startswith("inside ")),
            min(value for key, value in result.values.items() if key.startswith("min ")),
            max(value for key, value in result.values.items() if key.startswith("max ")),
        )
        for result in study.where(method=method, init=init)
        if result.outcome == "finished"
    }


def _excess_where_zero(study: Study, A: float, B: float) -> dict[int, float]:
    """Seed -> how far the farthest eigenvalue of a layer with R = 0 lies outside [A, B]; negative if all are inside."""
    found: dict[int, float] = {}
    for result in study.results:
        for row in result.rows:
            for name in _layers(result):
                if row.get(f"R {name}", ZERO) < ZERO:
                    outside = max(A - row[f"min {name}"], row[f"max {name}"] - B)
                    found[result.seed] = max(outside, found.get(result.seed, outside))
    return found
