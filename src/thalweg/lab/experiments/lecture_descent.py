r"""Gradient descent on y = x² and on the lecture's surface, and the noise of stochastic gradients.

    w⁽ᵏ⁾ = w⁽ᵏ⁻¹⁾ - η ∇Q(w⁽ᵏ⁻¹⁾);  y = x²;  y = -(cos² x₁ + cos² x₂)²;  Q = 1/l Σ (xᵢᵀ w - yᵢ)² for SGD

On x² every step multiplies x by 1 - 2η, so all that can happen is known beforehand. The surface has minima -4 at
multiples of π, saddles between them, and maxima 0 at odd multiples of π/2 where even the Hessian vanishes.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves, panels
from thalweg.lab.tables import mean_std
from thalweg.lab.terrain import Terrain, contours, relief
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 004, gradient descent and stochastic gradient descent"
TITLE = "Gradient descent on a parabola and a surface, SGD and mini-batch noise"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {}
RATES = (0.01, 0.1, 0.5, 0.9, 1.0, 1.01)  # on x²
STEEP = (0.02, 0.1, 0.24, 0.3)  # on the surface, where 1/4 is the limit at the minima
STARTS = {
    "near the top": (1.45, 1.35),
    "on a slope": (0.9, -0.7),
    "on the ridge": (1.2, math.pi / 2),
    "left": (-1.1, 0.5),
}
BATCHES = (1, 4, 16, 64, 200)


class Config(Settings):
    """The lecture shows the two functions without a start, a rate or a number of steps."""

    steps: int = Field(100, ge=20, description="ours: on the surface")
    starts: int = Field(200, ge=1, description="ours: random starts on the surface, uniform on (-π/2, π/2)²")
    summands: int = Field(200, ge=2, description="ours: l, samples of the linear regression")
    trials: int = Field(2000, ge=2, description="ours: gradients drawn to measure the variance of their estimates")


PRESETS = {"quick": Preset("10 s", 10)}


def run(trial: Trial, log: Log) -> Ending:
    """Descend from every start at every rate; rows hold paths by step, the surface's grid by x₁, variances by n."""
    import torch

    from thalweg.lab.training.lecture_paths import grid, noise, record
    from thalweg.lecture import cosine_gradient, cosine_surface, descend, gradient_descent

    config: Any = trial.config
    double = torch.float64
    for eta in RATES:
        x = descend(gradient_descent, lambda x: 2 * x, torch.ones(1, dtype=double), eta=eta, steps=20).w
        record(log, {f"x² {eta:g}": x})
    grid(log, cosine_surface, "surface", x=(-2.0, 2.0), y=(-2.0, 2.0))
    paths = {}
    for name, start in STARTS.items():
        for eta in STEEP:
            w = torch.tensor(start, dtype=double)
            paths[f"{name} {eta:g}"] = descend(gradient_descent, cosine_gradient, w, eta=eta, steps=config.steps).w
    record(log, paths)
    begun = (torch.rand(config.starts, 2, generator=trial.generator("starts"), dtype=double) - 0.5) * math.pi
    values = {"x² at 0.01": 0.98**20, "x² at 0.1": 0.8**20, "x² at 1.01": 1.02**20}
    for eta in STEEP:
        ends = descend(gradient_descent, cosine_gradient, begun, eta=eta, steps=config.steps).w[-1]
        values[f"arrived {eta:g}"] = float((cosine_surface(ends) < -3.99).double().mean())
    g = cosine_gradient(begun)
    turn = torch.rand(config.starts, 64, generator=trial.generator("directions"), dtype=double) * 2 * math.pi
    ways = torch.stack([turn.cos(), turn.sin()], -1)
    step = 1e-4
    best = cosine_surface(begun.unsqueeze(1) + step * ways).min(1).values
    steepest = cosine_surface(begun - step * g / g.norm(dim=-1, keepdim=True))
    values["steepest"] = float((steepest <= best + 1e-12).double().mean())
    return Ending(values | noise(log, config.summands, BATCHES, config.trials, trial.generator("regression")))


def analyse(study: Study) -> Findings:
    """Paths, the surface from above and aside, the noise of mini-batches, and the lecture's sentences."""
    first = study.results[0]
    parabola = {f"η = {eta:g}": {"x": [first.series(f"x² {eta:g} 1")]} for eta in RATES}
    paths = {f"η = {eta:g}": {name: [_path(first, f"{name} {eta:g}")] for name in STARTS} for eta in STEEP}
    views = {title: Terrain.recorded(first, "surface", found) for title, found in paths.items()}
    valley = {
        f"n = {n}": Terrain.recorded(first, "regression", {"descent": [_path(first, f"n = {n}")]}) for n in (1, 16, 200)
    }
    variances = {
        "measured": [result.series("variance") for result in study.results],
        "σ²/n (l - n)/(l - 1)": [result.series("theory") for result in study.results],
    }
    columns = {f"arrived {eta:g}": f"η = {eta:g}" for eta in STEEP}
    arrived = mean_std(study.results, [], columns, formats=dict.fromkeys(columns, ".3f"))
    title = f"Share of random starts that are within 0.01 of a minimum after {first.config.steps} steps"  # type: ignore[attr-defined]
    square: dict[str, Any] = {"columns": 3, "width": 6.4, "sharex": True}
    return Findings(
        claims=_claims(study),
        tables=[Table(title, arrived, "The limit of stability at the minima is 2/8 = 0.25.")],
        pictures=[
            Picture(
                "parabola", "x² from x = 1, by learning rate",
                panels(parabola, xlabel="step", ylabel="x", **square),
                "Each step multiplies x by 1 - 2η: too slow, right, there at once, past it, swinging, away.",
            ),
            Picture(
                "surface", "The surface -(cos² x₁ + cos² x₂)²",
                relief(Terrain.recorded(first, "surface", {})), "Minima -4 at multiples of π.",
            ),
            Picture(
                "contours", "Descent on the surface from four starts, by learning rate",
                contours(views, columns=2, width=5.6, height=5.6, sharex=True, sharey=True),
                "From a ring to a marker. The start on the ridge x₂ = π/2 ends in a saddle.",
            ),
            Picture(
                "noise", "One descent by mini-batches of n of 200 summands",
                contours(valley, columns=3, width=6.4, height=2.5, xlabel="w₁", ylabel="w₂", sharex=True, sharey=True),
                "Linear regression from one start at one rate; n = 200 is the whole gradient.",
            ),
            Picture(
                "variance", "Variance of the mini-batch gradient",
                curves(variances, xlabel="n, summands in a mini-batch", ylabel="variance", logx=True, logy=True),
                "Mean over seeds; the band is their range. Without replacement the whole sum has none.",
            ),
        ],
    )  # fmt: skip


def _path(result: Result, name: str) -> tuple[list[float], list[float]]:
    return result.series(f"{name} 1")[1], result.series(f"{name} 2")[1]


def _claims(study: Study) -> list[Claim]:
    def judge(text: str, side: str, a: dict[int, float], b: dict[int, float], unit: str, where: str) -> Claim:
        return paired(side, a, b, text=text, source=f"seed 004, {where}", unit=unit)  # type: ignore[arg-type]

    one = dict.fromkeys(study.by_seed("steepest"), 1.0)
    nearly = dict.fromkeys(one, 0.999)
    slow, right, far = (study.by_seed(f"x² at {eta}") for eta in ("0.01", "0.1", "1.01"))
    return [
        judge(
            "The antigradient is the direction of the steepest descent: none of 64 others falls more.", "greater",
            study.by_seed("steepest"), nearly, "share of points, minus 0.999", "gradient descent",
        ),
        judge(
            "Too low a rate converges slowly: 0.01 against 0.1 on x².", "greater",
            slow, right, "|x| after 20 steps", "rate",
        ),
        judge(
            "Too high a rate passes over the minimum and leaves: 1.01 on x².", "greater",
            far, one, "|x| after 20 steps, minus 1", "rate",
        ),
        judge(
            "Repeated until convergence, descent finds a minimum: 99.9% of random starts, at rate 0.1, in 100 steps.",
            "greater", study.by_seed("arrived 0.1"), nearly, "share that arrived, minus 0.999", "algorithm",
        ),
        judge(
            "The gradient of one random summand estimates the whole one without bias (within 4 standard errors).",
            "less", study.by_seed("bias"), dict.fromkeys(one, 4.0), "bias in standard errors, minus 4", "SGD",
        ),
        judge(
            "A mini-batch of 16 makes the estimate less noisy than one summand: by 16 or more.", "greater",
            study.by_seed("gain"), dict.fromkeys(one, 15.2), "variance of 1 over that of 16, minus 15.2 (5% margin)",
            "mini-batch",
        ),
    ]  # fmt: skip
