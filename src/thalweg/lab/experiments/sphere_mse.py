"""Training on the sphere with the quadratic loss: seed 001, figure 9. All images against a few of them.

The loss is the mean over classes of (logit - one-hot)². The seed finds two regimes on all images, as none of its runs
gets to a minimum within the iterations it has, and all three on a subset. Here both have the same number of iterations,
and a minimum is where at most a hundredth of the loss of the initial weights is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import tracks
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.sphere_runs import CIFAR, LABELS, PLANE, label, labels, setting, track
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 001, section 3: figure 9"
TITLE = "Regimes of training with the quadratic loss"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"samples": (256, 1280), "elr": (5e-3, 2e-2, 0.1, 0.3, 1.0), "epochs": ()}
MINIMUM = 0.01  # of the initial loss; as in `classify_regime`


class Config(ScaleSettings):
    """Clean digits; a last layer of norm 10 would make the initial loss ten times as large, and no run converge."""

    elr: float = Field(0.1, gt=0, description="ours: from slow convergence to divergence")
    samples: int = Field(1280, ge=1, description="ours: a fifth, and whole batches; the seed has 5000 and 50000")
    loss: Literal["cross-entropy", "mse"] = Field("mse", description="figure 9")
    last_layer_norm: float = Field(3.0, gt=0, description="ours: the quadratic loss has a scale of its own")
    epochs: int = Field(200, ge=20, description="ours, for all images; a subset has more: equal iterations")


PRESETS = {
    "quick": Preset("50 s", 3),
    "laptop": Preset("20 min, estimated", 2, {**CIFAR, "width": 8, "epochs": 60}, {"samples": (512, 4096)}),
    "paper": Preset(
        "12 weeks, estimated",
        2,
        {**CIFAR, "width": 32, "epochs": 1000},
        {"samples": (5000, 50000), "elr": (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 1.0)},
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Every ELR on every subset, for equally many iterations unless the epochs are given."""
    base: dict[str, Any] = settings.model_dump(exclude={"samples", "elr", "epochs"})
    own: Any = settings
    whole = max(sweep["samples"])
    return [
        Config(**base, samples=samples, elr=elr, epochs=epochs)
        for samples in sweep["samples"]
        for epochs in sweep["epochs"] or [own.epochs * whole // samples]
        for elr in sweep["elr"]
    ]


def run(trial: Trial, log: Log) -> Ending:
    """Train one network at one ELR and tell its regime."""
    from thalweg.lab.training.on_sphere import train_on_sphere

    return train_on_sphere(trial, log)


def analyse(study: Study) -> Findings:
    """The sweep on both sets, figure 9, and the seed's sentences."""
    columns = {
        "train_loss": "loss",
        "cosine_distance": "1 - cos of a step",
        "effective_grad_norm": "eff. grad norm",
        "test_error": "test error",
    }
    by = {"samples": "images", "elr": "ELR"}
    frame = mean_std(study.results, by, columns, formats=dict.fromkeys(columns, ".2g"))
    places = dict.fromkeys((setting(r).samples, setting(r).elr) for r in study.results)
    frame.insert(2, "regime", [labels(study.where(samples=samples, elr=elr)) for samples, elr in places])
    sizes = sorted({samples for samples, _ in places}, reverse=True)
    first = min(r.seed for r in study.results)
    return Findings(
        claims=_claims(study, sizes) if len(sizes) > 1 else [],
        tables=[Table("The sweep", frame, "Means over the last tenth of the epochs.")],
        pictures=[
            Picture(
                f"phases-{samples}",
                f"Figure 9: training loss against effective gradient norm by ELR, {samples} images",
                tracks(
                    {f"{setting(r).elr:g}": [track(r)] for r in study.where(samples=samples) if r.seed == first},
                    **PLANE,
                ),
                "One seed; means over stretches of epochs, the marker is the end.",
            )
            for samples in sizes
        ],
    )  # fmt: skip


def _claims(study: Study, sizes: Sequence[int]) -> list[Claim]:
    whole, part = sizes[0], sizes[-1]
    seeds = sorted({r.seed for r in study.results})

    def left(samples: int) -> dict[int, float]:
        """Share of the initial loss that the best run has left."""
        own = {seed: [r for r in study.where(samples=samples) if r.seed == seed] for seed in seeds}
        return {s: min(r.values["train_loss"] / r.values["random_loss"] for r in runs) for s, runs in own.items()}

    def seen(samples: int) -> dict[int, float]:
        """How many of the two regimes beyond the first are there."""
        told = {s: {label(r) for r in study.where(samples=samples) if r.seed == s} for s in seeds}
        return {s: float(sum(name in told[s] for name in LABELS[1:3])) for s in seeds}

    def judge(claimed: Literal["less", "greater"], a: Mapping[int, float], limit: float, text: str, unit: str) -> Claim:
        b = dict.fromkeys(a, limit)
        return paired(claimed, a, b, text=text, source="seed 001, figure 9", unit=f"{unit}, minus {limit:g}")

    share = "least final loss over the loss of the initial weights"
    both = "regimes seen among equilibrium and divergence"
    return [
        judge("greater", left(whole), MINIMUM, f"On {whole} images no run gets to a minimum.", share),
        judge("less", left(part), MINIMUM, f"On {part} images, in as many iterations, one does.", share),
        judge("greater", seen(whole), 1.5, f"On {whole} images there are the second and the third regime.", both),
        judge("greater", seen(part), 1.5, f"On {part} images there are the second and the third regime.", both),
    ]
