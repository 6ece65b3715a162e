r"""Polynomials through noisy points: overfitting, the lecture's coefficient tables, ridge and lasso.

    y = x³ - 4x² + 3x - 2 + N(0, σ²),  fits of degree 1, 3, 5, 7, 9;  ridge and lasso of degree 7

The printed rows of coefficients stand beside the measured ones. In the row of degree 9 the minus before 186.1 is lost.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Settings, Study, Table
from thalweg.lab.figures import curves, panels
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 004, regularization: the polynomial, its coefficient tables, ridge and lasso"
TITLE = "Polynomial fits of degree 1 to 9, ridge and lasso"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {}
DEGREES = (1, 3, 5, 7, 9)
ALPHAS = (0.0, 0.01, 0.1, 1.0)
STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # where ridge and lasso are compared
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Config(Settings):
    """The lecture gives neither the range of x nor the number of points; these reproduce its tables."""

    points: int = Field(30, ge=11, description="inferred from the printed tables: 20 to 30")
    sigma: float = Field(0.25, ge=0, description="N(0, 0.25) of the lecture; the tables need a standard deviation")
    low: float = Field(-0.5, description="inferred from the printed tables")
    high: float = Field(1.0, description="inferred from the printed tables")


PRESETS = {"quick": Preset("5 s", 20)}


def run(trial: Trial, log: Log) -> Ending:
    """Fit one sample in every way; rows hold the sample and the curves by x, and the distances to f by α."""
    import torch

    from thalweg.lecture import (
        PRINTED_FITS,
        PRINTED_RIDGE,
        corrected_fits,
        evaluate,
        fit_polynomial,
        lasso,
        noisy_sample,
        polynomial_features,
        ridge,
    )
    from thalweg.lecture.polynomials import F

    config: Any = trial.config
    span = {"low": config.low, "high": config.high}
    draw = trial.generator("sample")
    x, y = noisy_sample(config.points, sigma=config.sigma, generator=draw, dtype=torch.float64, **span)
    grid = torch.linspace(config.low, config.high, 76, dtype=x.dtype)
    features = polynomial_features(x, 7)[:, 1:]

    def whole(fit: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.cat([fit[1].reshape(1), fit[0]])

    fits = {f"degree {degree}": fit_polynomial(x, y, degree) for degree in DEGREES}
    fits |= {f"α = {alpha:g}": whole(ridge(features, y, alpha)) for alpha in ALPHAS}
    for name, table in (("printed", PRINTED_FITS), ("corrected", corrected_fits())):
        fits |= {f"{name} degree {degree}": x.new_tensor(row) for degree, row in table.items()}
    fits |= {f"printed α = {alpha:g}": x.new_tensor(row) for alpha, row in PRINTED_RIDGE.items()}
    drawn = {"f": evaluate(x.new_tensor(F), grid)} | {name: evaluate(w, grid) for name, w in fits.items()}
    for place, at in enumerate(grid.tolist()):
        log.row(epoch=at, **{name: float(curve[place]) for name, curve in drawn.items()})
    for at, seen in zip(x.tolist(), y.tolist(), strict=True):
        log.row(epoch=at, sample=seen)

    dense = torch.linspace(config.low, config.high, 3001, dtype=x.dtype)
    truth = evaluate(x.new_tensor(F), dense)

    def distance(w: torch.Tensor) -> float:
        return float((evaluate(w, dense) - truth).square().mean().sqrt())

    values = {f"{name} distance": distance(w) for name, w in fits.items()}
    values |= {f"{name} misfit": float((evaluate(w, x) - y).square().mean().sqrt()) for name, w in fits.items()}
    values |= {f"{name} largest": float(w[1:].abs().max()) for name, w in fits.items()}
    values |= {f"{name} w{j}": float(v) for name, w in fits.items() for j, v in enumerate(w)}
    for alpha in STRENGTHS:
        found = {"ridge": whole(ridge(features, y, alpha)), "lasso": whole(lasso(features, y, alpha, tolerance=1e-6))}
        log.row(epoch=alpha, **{name: distance(w) for name, w in found.items()})
        values |= {f"{name} {alpha:g} zeros": float((w == 0).sum()) for name, w in found.items()}
    return Ending(values)


def analyse(study: Study) -> Findings:
    """Coefficients beside the printed ones, the fits, and the lecture's sentences."""
    first = study.results[0]

    def seen(*names: str) -> Mapping[str, Sequence[tuple[list[float], list[float]]]]:
        labels = {"sample": "sample", "f": "f"}
        return {labels.get(name, "fit"): [first.series(name)] for name in ("f", *names, "sample")}

    degrees = {name.capitalize(): seen(name) for name in (f"degree {d}" for d in DEGREES)}
    printed = {"as printed": [first.series("printed degree 9")], "with -186.1": [first.series("corrected degree 9")]}
    degrees["The printed row of degree 9"] = {"f": [first.series("f")], **printed}
    look: dict[str, Any] = {"xlabel": "x", "ylabel": "y", "dots": ("sample",), "marks": False}
    fitted = panels(degrees, columns=3, width=6.4, sharex=True, sharey=True, **look)
    fitted.axes[0].set_ylim(-5.5, 0.5)
    shrunk = panels({f"α = {a:g}": seen(f"α = {a:g}") for a in ALPHAS}, columns=2, sharex=True, sharey=True, **look)
    nearness = {name: [r.series(name) for r in study.results] for name in ("ridge", "lasso")}
    columns = {f"{name} {a:g} zeros": f"{name}, α = {a:g}" for a in (0.001, 0.01, 0.1) for name in ("ridge", "lasso")}
    return Findings(
        claims=_claims(study),
        tables=[
            _coefficients("Coefficients by degree", study, [f"degree {d}" for d in DEGREES]),
            _coefficients("Coefficients of ridge, degree 7", study, [f"α = {a:g}" for a in ALPHAS]),
            Table("Coefficients that are exactly zero, of 7", mean_std(study.results, [], columns, formats={})),
        ],
        pictures=[
            Picture("degrees", "Fits of degree 1 to 9", fitted, f"Seed {first.seed}; {first.config.points} points."),  # type: ignore[attr-defined]
            Picture("ridge", "Ridge of degree 7", shrunk, "The same sample; α multiplies the sum of squares."),
            Picture(
                "distance",
                "Distance to f against the strength of the penalty, degree 7",
                curves(nearness, xlabel="α", ylabel="root mean square distance", logx=True, logy=True),
                "Mean over seeds; the band is their range. The two α multiply different penalties.",
            ),
        ],
    )


def _coefficients(title: str, study: Study, names: Sequence[str]) -> Table:
    """The printed row above the measured one: the median over seeds."""
    import pandas as pd

    rows = []
    for name in names:
        keys = [key for key in study.results[0].values if key.startswith(f"{name} w")]
        medians = [statistics.median(r.values[key] for r in study.results) for key in keys]
        sources = {"printed": [study.results[0].values[f"printed {key}"] for key in keys], "measured": medians}
        if name == "degree 9":
            sources = {"printed": sources["printed"], "corrected": list(sources["printed"]), "measured": medians}
            sources["corrected"][6] *= -1
        for source, row in sources.items():
            shown = {f"w{j}".translate(SUBSCRIPTS): f"{value:.1f}" for j, value in enumerate(row)}
            rows.append({"": name, "source": source, **shown})
    return Table(title, pd.DataFrame(rows).fillna(""), "Measured: the median over the seeds' samples.")


def _claims(study: Study) -> list[Claim]:
    def judge(text: str, side: str, a: str, b: str, unit: str) -> Claim:
        one, other = study.by_seed(a), study.by_seed(b)
        return paired(side, one, other, text=text, source="seed 004, regularization", unit=unit)  # type: ignore[arg-type]

    rms = "root mean square distance to f"
    return [
        judge(
            "A polynomial of degree 9 follows the sample more closely than one of degree 3.",
            "less", "degree 9 misfit", "degree 3 misfit", "root mean square residual, degree 9 minus degree 3",
        ),
        judge(
            "It overfits: it is further from f than one of degree 3.",
            "greater", "degree 9 distance", "degree 3 distance", f"{rms}, degree 9 minus degree 3",
        ),
        judge(
            "Overfitting shows in large coefficients: the largest of degree 9 exceeds that of degree 3.",
            "greater", "degree 9 largest", "degree 3 largest", "largest |w|, degree 9 minus degree 3",
        ),
        judge(
            "Ridge brings degree 7 nearer f: α = 0.01 against none.",
            "less", "α = 0.01 distance", "α = 0 distance", f"{rms}, α = 0.01 minus α = 0",
        ),
        judge(
            "Too much of it takes the fit away again: α = 1 is further from f than α = 0.01.",
            "greater", "α = 1 distance", "α = 0.01 distance", f"{rms}, α = 1 minus α = 0.01",
        ),
        judge(
            "Lasso selects: at α = 0.01 it has more zeros than ridge.",
            "greater", "lasso 0.01 zeros", "ridge 0.01 zeros", "coefficients equal to 0, lasso minus ridge",
        ),
        judge(
            "The printed coefficients of degree 9 are nearer f than with a minus before 186.1.",
            "less", "printed degree 9 distance", "corrected degree 9 distance", f"{rms}, printed minus corrected",
        ),
    ]  # fmt: skip
