"""The toy function on the sphere: three regimes of the effective learning rate, figure 6 (left) of seed 001.

    F(x, y) = Σ α_i x_i²/(x_i² + y_i²)    (10), trained by (6) on the unit sphere with a total ELR of A/S, S = Σ α_i

By (11) training converges for A < 1. Above, the seed says that the groups' own ELRs must converge to (12), at which all
steps have one length and group i has the share ω_i = α_i/S of the squared norm, and that chaos wins when A is very
large. No data, no network: closed forms beside every number.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Settings, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3, equations (9)-(12): figure 6, left"
TITLE = "Three regimes of the effective learning rate on a toy function"
VERSION = 1
HEADLINE = True
SWEEP = {"relative": (0.5, 0.9, 1.2, 1.5, 4.0, 16.0, 64.0)}
SHOWN = (0.5, 1.5, 64.0)  # one of each regime
RECORDS = 200


class Config(Settings):
    """Settings of the toy; the seed names none of them."""

    relative: float = Field(1.5, gt=0, description="A = ELR·S; the seed shows one value in each regime")
    groups: int = Field(4, ge=2, description="ours; α_i = 1, 2, 4, …")
    steps: int = Field(4000, ge=100, description="ours: time means settle in the second half")


PRESETS = {
    "quick": Preset("5 s", 5),
    "laptop": Preset("1 min, estimated", 20, {"steps": 20000}),
}


def run(trial: Trial, log: Log) -> Ending:
    """Simulate one start, and compare the second half with the closed forms."""
    import torch

    from thalweg.invariance import SphereToy

    config: Any = trial.config
    toy = SphereToy([2.0**i for i in range(config.groups)])
    elr = config.relative / toy.total
    theta = toy.simulate(toy.start(trial.generator("start")), elr, config.steps)
    losses = toy.loss(theta)
    for step in range(0, config.steps + 1, max(1, config.steps // RECORDS)):
        log.row(epoch=step, loss=float(losses[step]))
    half = theta[config.steps // 2 :]
    level = toy.loss(half).mean()
    shares = half.square().sum(-1).mean(0)  # ω_i, which (12) puts at α_i/S
    unequal = (toy.group_elrs(half, elr) / toy.equilibrium_elrs(elr)).log().abs().mean()
    return Ending(
        {
            "final": float(losses[-1]),
            "level": float(level) / toy.total,
            "predicted": toy.level(elr) / toy.total,
            "miss": float((level - toy.level(elr)).abs() / max(toy.level(elr), 1e-12)),
            "unequal": float(unequal),
            "shares": float((shares * toy.total / toy.alphas - 1).abs().max()),
            "from random": float((level / toy.random_level - 1).abs()),
            "spread": float(torch.std(toy.loss(half)) / toy.total),
        }
    )


def analyse(study: Study) -> Findings:
    """Levels against theory for every A, figure 6 (left), and the seed's sentences."""
    columns = {
        "level": "mean loss / S",
        "predicted": "(1 - 1/A)/2",
        "unequal": "mean |ln ELRᵢ/ELRᵢ*|",
        "shares": "max |ωᵢ S/αᵢ - 1|",
    }
    frame = mean_std(
        study.results,
        {"relative": "A = ELR·S"},
        columns,
        formats={"level": ".3g", "predicted": ".3g", "unequal": ".2g", "shares": ".2g"},
    )
    shown = {
        f"A = {a:g}": [r.series("loss") for r in study.where(relative=a)] for a in SHOWN if study.where(relative=a)
    }
    note = "Second half of each run. ELRᵢ*: equation (12). Below A = 1 there is no equilibrium to compare with."
    return Findings(
        claims=_claims(study),
        tables=[Table("Where training settles", frame, note)],
        pictures=[
            Picture(
                "losses",
                "Figure 6, left: the toy function by step",
                curves(shown, xlabel="step", ylabel="F"),
                "Mean over seeds; the band is their range. Convergence, equilibrium, the level of random directions.",
            )
        ],
    )


def _claims(study: Study) -> list[Claim]:
    def judge(text: str, where: str, key: str, a: float, tolerance: float, what: str) -> list[Claim]:
        found = study.by_seed(key, relative=a)
        limit = dict.fromkeys(found, tolerance)
        unit = f"{what} at A = {a:g}, minus {tolerance:g}"
        return [paired("less", found, limit, text=text, source=f"seed 001, {where}", unit=unit)] if found else []

    return [
        *judge("Below the threshold (11) training converges.", "equation (11)", "final", 0.9, 1e-6, "final loss"),
        *judge(
            "Above it the loss settles at (S - 1/ELR)/2, as proposition 3 and (12) imply, within 3%.",
            "proposition 3, equation (12)", "miss", 1.5, 0.03, "relative miss of the time mean",
        ),
        *judge(
            "Half above the threshold the groups' mean shares of the squared norm are those of (12), within 5%.",
            "equation (12)", "shares", 1.5, 0.05, "max |ωS/α - 1|",
        ),
        *judge(
            "Four times above the threshold the groups' mean shares are those of (12), within 5%.",
            "equation (12)", "shares", 4.0, 0.05, "max |ωS/α - 1|",
        ),
        *judge(
            "At a very large ELR chaos wins: the loss is that of random directions, within 5%.",
            "section 3, third regime", "from random", 64.0, 0.05, "relative distance from S/2",
        ),
    ]  # fmt: skip
