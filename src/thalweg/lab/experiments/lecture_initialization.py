r"""The signal and the gradient through a deep chain of layers, by activation and initialization.

    x' = f(W x),  W of the printed "LeCun", LeCun's own, Glorot's, Kaiming's, and of variance gain²/m

The lecture recommends Glorot for sigmoid and tanh, Kaiming for ReLU, LeakyReLU, ELU and SELU alike. What each
activation needs is known in closed form (`thalweg.lecture.forward_gain`); the lines of theory are `signal_power`.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Settings, Study, Table
from thalweg.lab.figures import panels
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 004, initialization of weights"
TITLE = "Signal and gradient through 20 layers, by activation and initialization"
VERSION = 1
NAMES = ("printed LeCun", "LeCun", "Glorot", "Kaiming", "own gain")
SWEEP: dict[str, tuple[Any, ...]] = {"initialization": NAMES}
ADVICE = {
    "sigmoid": "Glorot", "tanh": "Glorot", "ReLU": "Kaiming", "LeakyReLU": "Kaiming", "ELU": "Kaiming",
    "SELU": "Kaiming",
}  # fmt: skip
KEPT = 3.0  # the signal is kept if it leaves the chain within this factor of where it came in


class Config(Settings):
    """A chain of square layers without biases, as wide as the theory of wide layers asks and a laptop bears."""

    initialization: Literal["printed LeCun", "LeCun", "Glorot", "Kaiming", "own gain"] = Field(
        "Glorot", description="the lecture's, as printed and as meant; own gain: variance 1/(m E f(z)²)"
    )
    width: int = Field(512, ge=2, description="ours: m = n")
    layers: int = Field(20, ge=1, description="ours")
    samples: int = Field(32, ge=1, description="ours: inputs, normal with variance 1")


PRESETS = {
    "quick": Preset("10 s", 5),
    "laptop": Preset("3 min, estimated", 10, {"width": 1024, "layers": 50, "samples": 64}),
}


def run(trial: Trial, log: Log) -> Ending:
    """Send one batch through every chain and a random gradient back."""
    from thalweg.lab.training.lecture_depth import chain

    config: Any = trial.config
    values: dict[str, float] = {}
    for name in ADVICE:
        found = chain(
            name, config.initialization, width=config.width, layers=config.layers, samples=config.samples,
            generator=trial.generator(name),
        )  # fmt: skip
        for depth, row in enumerate(found):
            log.row(epoch=depth, **{f"{name} {key}": value for key, value in row.items()})
        values |= {f"{name} {key}": found[-1][key] for key in ("signal", "spread", "theory")}
        values[f"{name} gradient"] = found[0]["gradient"]
    return Ending(values)


def analyse(study: Study) -> Findings:
    """The mean square by depth, its value behind the last layer, and the lecture's advice."""
    import pandas as pd

    present = [name for name in NAMES if study.where(initialization=name)]
    views = {
        f"{name}: {key}": {
            rule: [run.series(f"{name} {key}") for run in study.where(initialization=rule)] for rule in present
        }
        for key in ("signal", "gradient")
        for name in ADVICE
    }
    signal, gradient = dict(list(views.items())[: len(ADVICE)]), dict(list(views.items())[len(ADVICE) :])
    grid: dict[str, Any] = {"columns": 3, "logy": True, "width": 6.4, "sharex": True, "marks": False}
    rows = []
    for name in ADVICE:
        for rule in present:
            runs = study.where(initialization=rule)
            columns = {"E x²": "signal", "theory": "theory", "Var x": "spread", "E (∂L/∂x)², first layer": "gradient"}
            means = {
                heading: statistics.geometric_mean([max(run.values[f"{name} {key}"], 1e-300) for run in runs])
                for heading, key in columns.items()
            }
            rows.append(
                {"activation": name, "initialization": rule, "advice": "x" if ADVICE[name] == rule else ""}
                | {heading: f"{value:.2g}" for heading, value in means.items()}
            )
    layers = study.settings["layers"]
    return Findings(
        claims=_claims(study),
        tables=[
            Table(
                f"Behind {layers} layers",
                pd.DataFrame(rows),
                "Geometric means over seeds. Var x: about the mean of each neuron over the inputs, which is what tells "
                "inputs apart. The gradient came in with mean square 1 at the last layer. x: the lecture's advice.",
            )
        ],
        pictures=[
            Picture(
                "signal",
                "Mean square of the signal by layer",
                panels(signal, xlabel="layer", ylabel="E x²", **grid),
                "Mean over seeds; the band is their range. Flat is good.",
            ),
            Picture(
                "gradient",
                "Mean square of the gradient by layer, from the last to the first",
                panels(gradient, xlabel="layer", ylabel="E (∂L/∂x)²", **grid),
                "Mean over seeds; the band is their range. The gradient comes in at the right.",
            ),
        ],
    )


def _claims(study: Study) -> list[Claim]:
    found = []
    for name, rule in ADVICE.items():
        # most of a sigmoid's E x² is the square of its mean, which tells nothing of the input
        key, what = ("spread", "Var x") if name == "sigmoid" else ("signal", "E x²")
        off = {seed: abs(math.log10(v)) for seed, v in study.by_seed(f"{name} {key}", initialization=rule).items()}
        if off:
            limit = dict.fromkeys(off, math.log10(KEPT))
            text = f"{rule}'s initialization keeps the signal of {name}: {what} stays within a factor of {KEPT:g}."
            unit = f"|log₁₀ {what}| behind the last layer, minus log₁₀ {KEPT:g}"
            found.append(paired("less", off, limit, text=text, source="seed 004, recommendations", unit=unit))
    for name, rule, rival in (
        ("SELU", "Kaiming", "LeCun"),
        ("tanh", "printed LeCun", "LeCun"),
        ("tanh", "Glorot", "own gain"),
    ):
        a, b = (
            {seed: abs(math.log10(v)) for seed, v in study.by_seed(f"{name} signal", initialization=which).items()}
            for which in (rule, rival)
        )
        if a and b:
            text = f"For {name}, {rule} keeps the signal better than {rival}."
            unit = f"|log₁₀ E x²|, {rule} minus {rival}"
            found.append(paired("less", a, b, text=text, source="seed 004, initialization", unit=unit))
    return found
