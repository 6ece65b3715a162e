r"""The shapes of the learning rate, and what they do to descent by noisy gradients.

    constant, exp, str, sig, rep, trap, str+, sig+  (`thalweg.optim.schedules.LECTURE_SHAPES`), ηₖ by k = 0 … K

The names are the lecture's; its figure is lost, and the formulas of the last six are ours. The test is a quadratic
of condition number κ whose gradients carry normal noise: a high rate is fast, a low one quiet, and both are needed.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Settings, Study, Table
from thalweg.lab.figures import panels
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 004, gradient descent: variants of the learning rate"
TITLE = "Shapes of the learning rate, and noisy descent with each"
VERSION = 1
SHAPES = ("constant", "exp", "str", "sig", "rep", "trap", "str+", "sig+")
SWEEP: dict[str, tuple[Any, ...]] = {"shape": SHAPES}


class Config(Settings):
    """A quadratic loss ½ Σ hᵢ wᵢ² with curvatures from 1/κ to 1."""

    shape: Literal["constant", "exp", "str", "sig", "rep", "trap", "str+", "sig+"] = Field(
        "str", description="by the lecture's name"
    )
    eta0: float = Field(0.5, gt=0, description="ours: the highest rate; descent is stable below 2")
    steps: int = Field(1000, ge=10, description="ours: K")
    noise: float = Field(1.0, ge=0, description="ours: standard deviation of each gradient's components")
    condition: float = Field(100.0, ge=1, description="ours: κ")
    weights: int = Field(32, ge=1, description="ours: dimensions")
    replicas: int = Field(32, ge=1, description="ours: descents whose losses are averaged")


PRESETS = {"quick": Preset("5 s", 10)}


def run(trial: Trial, log: Log) -> Ending:
    """Descend with one shape; rows hold the rate and the mean loss by step."""
    import torch

    from thalweg.optim.schedules import LECTURE_SHAPES, exponential

    config: Any = trial.config
    schedule = LECTURE_SHAPES[config.shape](config.eta0, config.steps)
    draw = trial.generator("noise")  # the same for every shape
    h = torch.logspace(-torch.tensor(config.condition).log10().item(), 0, config.weights, dtype=torch.float64)
    w = torch.ones(config.replicas, config.weights, dtype=h.dtype)
    for k in range(config.steps + 1):
        loss = float((h * w.square()).sum(1).mean() / 2)
        if k % max(1, config.steps // 200) == 0:
            log.row(epoch=k, rate=schedule(k), loss=loss)
        w = w - schedule(k) * (h * w + config.noise * torch.randn(w.shape, generator=draw, dtype=h.dtype))
    example = exponential(0.01, -1 / torch.tensor(0.9).log().item())
    return Ending({"loss": loss, "end": schedule(config.steps) / config.eta0, "example": example(20)})


def analyse(study: Study) -> Findings:
    """The eight shapes, the loss under each, and what decay, warmup and repetition bring."""
    present = [name for name in SHAPES if study.where(shape=name)]
    shapes = {name: {"rate": [study.where(shape=name)[0].series("rate")]} for name in present}
    losses = {name: [run.series("loss") for run in study.where(shape=name)] for name in present}
    halves: dict[str, dict[str, Any]] = {
        "Falling": {name: losses[name] for name in ("constant", "exp", "str", "sig") if name in losses},
        "Rising too": {name: losses[name] for name in ("rep", "trap", "str+", "sig+") if name in losses},
    }
    columns = {"end": "rate at the end / η₀", "loss": "loss at the end"}
    frame = mean_std(study.results, {"shape": "shape"}, columns, formats={"end": ".3g", "loss": ".3g"})
    note = "The lecture's example, ExponentialLR(gamma=0.9) from 0.01 in 20 epochs, ends at {:.4g}."
    grid: dict[str, Any] = {"sharex": True, "sharey": True}
    return Findings(
        claims=_claims(study),
        tables=[Table("Noisy descent on a quadratic", frame, note.format(study.results[0].values["example"]))],
        pictures=[
            Picture(
                "shapes",
                "The lecture's eight shapes",
                panels(
                    shapes, columns=4, xlabel="step", ylabel="learning rate", width=6.2, height=3.2, marks=False, **grid
                ),
                "str: straight. A plus makes the first tenth a warmup. exp ends at 0.37 η₀.",
            ),
            Picture(
                "losses",
                "Mean loss by step",
                panels(halves, columns=2, xlabel="step", ylabel="loss", logy=True, width=6.2, height=3.1, **grid),
                "Mean over seeds; the band is their range. A constant rate levels off at the noise it keeps.",
            ),
        ],
    )


def _claims(study: Study) -> list[Claim]:
    def judge(text: str, a: str, b: str, where: str) -> list[Claim]:
        one, other = study.by_seed("loss", shape=a), study.by_seed("loss", shape=b)
        unit = f"loss at the end, {a} minus {b}"
        return [paired("less", one, other, text=text, source=f"seed 004, {where}", unit=unit)] if one and other else []

    return [
        *judge("Linear decay ends lower than a constant rate.", "str", "constant", "learning rate decay"),
        *judge("Exponential decay ends lower than a constant rate.", "exp", "constant", "learning rate decay"),
        *judge("Exponential decay, whose K is a time constant, ends lower than linear decay.", "exp", "str", "decay"),
        *judge("A warmup before linear decay ends lower than linear decay alone.", "str+", "str", "warmup"),
        *judge("Repeated decay ends lower than one decay.", "rep", "str", "figure of shapes"),
        *judge("A sigmoid ends lower than linear decay.", "sig", "str", "figure of shapes"),
    ]
