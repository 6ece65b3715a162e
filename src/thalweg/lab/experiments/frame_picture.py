"""What a frame is, in the plane: the tight frame with bound 3/2, and the layer configurations of the slides (seed 002).

    A |z|² <= Σ_k <z, w_k>² <= B |z|²          m vectors in R²; A and B are the extreme eigenvalues of V = WᵀW

No data and no chance: five layers with two inputs, and one convolution as the block-Toeplitz matrix that it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, Verdict
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import DASHES, PALETTE, Run, figure, panels, styled
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "seed 002, slides 4, 6, 8-10"
TITLE = "Frames in the plane: the Mercedes frame, and what a layer's weights may look like"
VERSION = 1
SYSTEMS: dict[str, tuple[float, ...]] = {  # directions of unit vectors, in degrees
    "incomplete": (35.0, 35.0, 215.0),
    "correlated": (20.0, 35.0, 50.0),
    "orthogonal": (0.0, 90.0),
    "redundant": (0.0, 40.0, 70.0, 140.0),
    "mercedes": (90.0, 210.0, 330.0),
}
SWEEP: dict[str, tuple[Any, ...]] = {"system": tuple(SYSTEMS)}
EXACT = 1e-12
KERNEL = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
MAP = 5


class Config(Settings):
    """Which system of vectors; there is nothing else to set."""

    system: Literal["incomplete", "correlated", "orthogonal", "redundant", "mercedes"] = Field(
        "mercedes", description="slide 8: mercedes; the others are ours, of the kinds that slide 4 names"
    )


PRESETS = {"quick": Preset("5 s", 1)}


def vectors(system: str) -> list[tuple[float, float]]:
    """The rows of W.

    >>> [tuple(round(x, 3) for x in row) for row in vectors("mercedes")]
    [(0.0, 1.0), (-0.866, -0.5), (0.866, -0.5)]
    """
    return [(math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in SYSTEMS[system]]


def run(trial: Trial, log: Log) -> Ending:
    """Frame bounds, Gershgorin's circles, and the input recovered from the output."""
    import torch

    from thalweg.operators import LayerOperator

    config: Any = trial.config
    operator = LayerOperator.of(torch.tensor(vectors(config.system), dtype=torch.float64))
    bounds = operator.frame_bounds()
    V = operator.gram()
    radii = V.abs().sum(1) - V.diagonal()
    z = torch.eye(2, dtype=torch.float64)
    lost = (operator.reconstruct(operator.matvec(z)) - z).abs().max()
    return Ending(
        {
            "vectors": float(operator.shape[0]),
            "A": bounds.lower,
            "B": bounds.upper,
            "condition": bounds.condition,
            "circle_min": float((V.diagonal() - radii).min()),
            "circle_max": float((V.diagonal() + radii).max()),
            "error": float(lost),
        }
    )


def analyse(study: Study) -> Findings:
    """The bounds of every system, what they look like, and the sentences of the slides that they test."""
    import pandas as pd

    rows = {result.config.model_dump()["system"]: result.values for result in study.results}
    frame = pd.DataFrame(
        [
            {
                "system": name,
                "vectors": f"{row['vectors']:.0f}",
                "A": _number(row["A"]),
                "B": _number(row["B"]),
                "B/A = κ(W)²": _number(row["condition"]),
                "circles": f"{_number(row['circle_min'])} … {_number(row['circle_max'])}",
                "input recovered to": f"{row['error']:.0e}",
            }
            for name, row in rows.items()
        ]
    )
    note = "Circles: Gershgorin's, of V; they contain [A, B], and may reach below 0 where A does not."
    return Findings(
        claims=_claims(study.results),
        tables=[Table("Systems of vectors in the plane", frame, note)],
        pictures=[
            Picture(
                "configurations",
                "Slides 4 and 8: what the weights of a layer with two inputs may look like",
                _configurations(list(rows)),
                "Arrows: the weights. Dashed: |Wz|² in the direction of z; solid: the unit circle. A frame's dashed "
                "curve stays away from the centre; a tight frame's is a circle, of radius 3/2 for the Mercedes.",
            ),
            Picture(
                "inequality",
                "The frame inequality: |Wz|² for unit vectors z",
                panels(
                    {name: {"|Wz|²": [_around(name)], **_levels(row)} for name, row in rows.items()},
                    columns=3,
                    xlabel="direction of z, degrees",
                    ylabel="Σ <z, w>²",
                    sharey=True,
                    width=6.4,
                ),
                "A and B are the lowest and the highest value.",
            ),
            Picture(
                "toeplitz",
                f"Slide 6: a 3 x 3 kernel on a {MAP} x {MAP} map, as a matrix",
                _toeplitz(),
                "One channel, zero padding, stride 1: 25 rows, one for each output pixel. Shades are the nine taps.",
            ),
        ],
    )


def _number(value: float) -> str:
    return "∞" if math.isinf(value) or math.isnan(value) else f"{0.0 if abs(value) < EXACT else value:.4g}"


def _claims(results: Sequence[Result]) -> list[Claim]:
    found = {result.config.model_dump()["system"]: result.values for result in results}

    def exact(text: str, where: str, miss: float, unit: str, printed: str = "") -> Claim:
        verdict: Verdict = "holds" if miss < EXACT else "fails"
        return Claim(text, f"seed 002, {where}", verdict, miss, None, 1, unit, printed, "exact: no chance is involved")

    claims = []
    if "mercedes" in found:
        A, B = found["mercedes"]["A"], found["mercedes"]["B"]
        miss = max(abs(A - 1.5), abs(B - 1.5))
        claims.append(
            exact("The three vectors of the figure are a tight frame.", "slide 8", miss, "|A - 3/2|, |B - 3/2|", "3/2")
        )
    frames = [row for row in found.values() if row["A"] > EXACT]
    if frames:
        worst = max(row["error"] for row in frames)
        text = "If the weights are a frame, the input is recovered from the output by the dual frame."
        claims.append(exact(text, "slides 7-9", worst, "largest error of a coordinate, over the frames"))
        excess = max(max(row["circle_min"] - row["A"], row["B"] - row["circle_max"]) for row in found.values())
        text = "Gershgorin's circles contain the spectrum: dominance is enough for the frame inequality."
        claims.append(exact(text, "slide 10", max(0.0, excess), "how far an eigenvalue lies outside"))
    return claims


def _around(system: str) -> tuple[list[float], list[float]]:
    degrees = [float(angle) for angle in range(0, 361, 2)]
    energy = [sum(math.cos(math.radians(angle - own)) ** 2 for own in SYSTEMS[system]) for angle in degrees]
    return degrees, energy


def _levels(row: Mapping[str, float]) -> dict[str, list[Run]]:
    return {bound: [([0.0, 360.0], [row[bound]] * 2)] for bound in ("A", "B")}


def _configurations(names: Sequence[str]) -> Figure:
    drawn = figure(-(-len(names) // 3), 3, width=6.4, height=2.3 * -(-len(names) // 3), squeeze=False)
    with styled():
        for axes, name in zip(drawn.axes, names, strict=False):
            degrees, energy = _around(name)
            turn = [math.radians(angle) for angle in degrees]
            axes.plot(
                *zip(*((math.cos(t), math.sin(t)) for t in turn), strict=True),
                color="black",
                linewidth=0.8,
                linestyle="-",
            )
            curve = [(e * math.cos(t), e * math.sin(t)) for t, e in zip(turn, energy, strict=True)]
            axes.plot(*zip(*curve, strict=True), color=PALETTE[1], linestyle=DASHES[1])
            for x, y in vectors(name):
                axes.annotate(
                    "",
                    (x, y),
                    (0, 0),
                    arrowprops={"arrowstyle": "-|>", "color": PALETTE[0], "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0},
                )
            axes.set(
                xlim=(-3.2, 3.2),
                ylim=(-3.2, 3.2),
                aspect="equal",
                xticks=[-3, -1.5, 0, 1.5, 3],
                yticks=[-3, -1.5, 0, 1.5, 3],
            )
            axes.set_title(name, loc="left", fontsize=9)
        for axes in drawn.axes[len(names) :]:
            axes.set_axis_off()
    return drawn


def _toeplitz() -> Figure:
    drawn = figure(width=3.6, height=3.4)
    axes = drawn.axes[0]
    matrix = [[math.nan] * MAP**2 for _ in range(MAP**2)]
    for row in range(MAP**2):
        for place, tap in enumerate(KERNEL):
            y, x = row // MAP + place // 3 - 1, row % MAP + place % 3 - 1
            if 0 <= y < MAP and 0 <= x < MAP:
                matrix[row][y * MAP + x] = tap
    with styled():
        axes.grid(visible=False)
        # Vector cells: an image would be a bitmap inside the SVG. The ends of the map are not used: dark paper swallows
        # the one, light paper the other.
        axes.pcolormesh(matrix, cmap="viridis", vmin=-2.0, vmax=10.0)
        axes.set(xlabel="input pixel", ylabel="output pixel", aspect="equal")
        axes.invert_yaxis()
    return drawn
