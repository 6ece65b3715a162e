"""Is the third regime a random walk? Training on the sphere against a walk and gradient ascent: seed 001, section 3.

The walk turns the weights at every step by the angle of the descent's step, in an isotropic direction; the ascent takes
the descent's steps with the opposite sign. All three share initial weights and batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.sphere_runs import CIFAR, LABELS, label, labels, setting
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from thalweg.lab.training.scale_invariant import Task

SOURCE = "seed 001, section 3: third regime"
TITLE = "The third regime against a random walk and gradient ascent"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"elr": (0.1, 0.2, 0.4), "method": ("descent", "walk", "ascent")}
CLOSE = 0.05  # of the loss
UNCORRELATED = 0.1  # |cos|


class Config(ScaleSettings):
    """The network and data of sphere-regimes."""

    elr: float = Field(0.1, gt=0, description="ours: third regime of sphere-regimes; figure 5 has 5e-2 and 1e-1")
    method: Literal["descent", "walk", "ascent"] = Field("descent", description="section 3.4: all three")
    samples: int = Field(1280, ge=0, description="ours: whole batches only")
    label_noise: float = Field(0.2, ge=0, le=1, description="ours, as in sphere-regimes")
    epochs: int = Field(100, ge=20, description="ours: levels are reached within ten; the authors' code has 1000")


PRESETS = {
    "quick": Preset("35 s", 5),
    "laptop": Preset(
        "5 min, estimated", 2, {**CIFAR, "width": 8, "samples": 2048, "epochs": 40}, {"elr": (5e-2, 1e-1)}
    ),
    "paper": Preset(
        "3 weeks, estimated", 3, {**CIFAR, "width": 32, "samples": 0, "epochs": 1000}, {"elr": (5e-2, 1e-1)}
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Every method at every ELR; a walk when the descent that gives its angles has ended."""
    base = settings.model_dump(exclude={"elr", "method"})
    done = {(setting(r).elr, r.seed) for r in results if setting(r).method == "descent" and r.outcome == "finished"}
    return [
        Config(**base, elr=elr, method=method)
        for elr in sweep["elr"]
        for method in dict.fromkeys(["descent", *sweep["method"]])
        if method != "walk" or {(elr, seed) for seed in seeds} <= done
    ]


def run(trial: Trial, log: Log) -> Ending:
    """Descend, walk or ascend."""
    from thalweg.lab.training.on_sphere import train_on_sphere
    from thalweg.lab.training.scale_invariant import task

    work = task(trial)
    return train_on_sphere(trial, log, work=work, optimizer=_optimizer(trial, work), keep=("cosine_distance",))


def _optimizer(trial: Trial, work: Task) -> Optimizer:
    from thalweg.lab.training.baselines import RandomWalk
    from thalweg.lab.training.checkpoint import load_checkpoint
    from thalweg.optim import SphereSGD

    config: Any = trial.config
    if config.method != "walk":
        return SphereSGD(work.invariant, config.elr, maximize=config.method == "ascent")
    descent = load_checkpoint(trial.sibling(method="descent"))["parts"]["rule 0"]["series"]
    seed = trial.generator("walk").initial_seed()
    return RandomWalk(work.invariant, descent["cosine_distance"].tolist(), elr=config.elr, seed=seed)


def analyse(study: Study) -> Findings:
    """Levels of the three methods, and the seed's sentence on them."""
    columns = {
        "train_loss": "loss",
        "test_error": "test error",
        "effective_grad_norm": "eff. grad norm",
        "cosine_distance": "1 - cos of a step",
    }
    frame = mean_std(study.results, {"elr": "ELR", "method": "method"}, columns, formats=dict.fromkeys(columns, ".3g"))
    rates = sorted({setting(result).elr for result in study.results})
    highest = {
        method: [r.series("train_loss") for r in study.where(elr=rates[-1], method=method)]
        for method in SWEEP["method"]
    }
    told = ", ".join(f"{rate:g}: {labels(study.where(elr=rate, method='descent'))}" for rate in rates)
    return Findings(
        claims=[claim for rate in rates for claim in _claims(study, rate)],
        tables=[Table("Levels", frame, f"Means over the last tenth of the epochs. Regimes of the descent: {told}.")],
        pictures=[
            Picture(
                "losses",
                f"Training loss at ELR {rates[-1]:g}",
                curves({name: runs for name, runs in highest.items() if runs}, xlabel="epoch", ylabel="training loss"),
                "Mean over seeds; the band is their range.",
            )
        ],
    )


def _claims(study: Study, rate: float) -> list[Claim]:
    if any(not study.where(elr=rate, method=method) for method in SWEEP["method"]):
        return []
    if any(label(result) != LABELS[2] for result in study.where(elr=rate, method="descent")):
        return []

    def level(key: str, method: str) -> dict[int, float]:
        return study.by_seed(key, elr=rate, method=method)

    def judge(
        claimed: Literal["less", "greater"], a: Mapping[int, float], b: Mapping[int, float], says: str, unit: str
    ) -> Claim:
        text = f"Third regime, ELR {rate:g}: {says}."
        return paired(claimed, a, b, text=text, source="seed 001, section 3, third regime", unit=unit)

    loss, walk, ascent = (level("train_loss", method) for method in ("descent", "walk", "ascent"))
    turns = [level("cosine_distance", method) for method in ("descent", "ascent")]
    cosine = {seed: max(abs(distance[seed] - 1) for distance in turns) for seed in loss}
    near = {seed: abs(loss[seed] / walk[seed] - 1) for seed in loss}
    return [
        judge(
            "less", cosine, dict.fromkeys(cosine, UNCORRELATED),
            f"consecutive iterates of descent and ascent are uncorrelated, |mean cos| below {UNCORRELATED:g}",
            f"larger |mean cos|, minus {UNCORRELATED:g}",
        ),
        judge(
            "less", walk, loss,
            "the loss of a random walk with the same angles is a lower bound", "loss, walk minus descent",
        ),
        judge("greater", ascent, loss, "that of gradient ascent is an upper bound", "loss, ascent minus descent"),
        judge(
            "less", near, dict.fromkeys(near, CLOSE),
            f"training cannot be told from a random walk by its loss, within {CLOSE:.0%}",
            f"|loss over the walk's - 1|, minus {CLOSE:g}",
        ),
    ]  # fmt: skip
