r"""Normalization: internal covariate shift, before or after the nonlinearity, layer normalization, batch size.

    x̂ = (x - μ_B)/√(σ_B² + ε),  y = γ x̂ + β        over the mini-batch (batch) or over the neurons (layer)

A perceptron of tanh layers, as in the lecture's example, learns without normalization, with batch normalization on
either side of the nonlinearity and with layer normalization, in large and small mini-batches. The shift of a hidden
layer's inputs is watched on fixed images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import PALETTE, curves, figure, styled
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "seed 004, normalization over mini-batches, layer normalization"
TITLE = "Batch and layer normalization: covariate shift, place, batch size"
VERSION = 1
NAMES = ("none", "batch before", "batch after", "layer")
SWEEP: dict[str, tuple[Any, ...]] = {"normalization": NAMES, "batch": (4, 16, 64)}


class Config(Settings):
    """A perceptron of tanh layers, learning by plain SGD."""

    normalization: Literal["none", "batch before", "batch after", "layer"] = Field(
        "none", description="of what, and before or after tanh; layer: before"
    )
    batch: int = Field(64, ge=2, description="swept; ours")
    data: str = Field("digits", description="ours: the lecture names no data")
    samples: int = Field(512, ge=2, description="ours: training images; a multiple of every batch")
    width: int = Field(64, ge=1, description="ours: neurons of each hidden layer")
    depth: int = Field(3, ge=2, description="ours: hidden layers")
    lr: float = Field(0.1, gt=0, description="ours: one rate for all, for SGD without momentum")
    epochs: int = Field(10, ge=1, description="ours: short, so that speed counts")


PRESETS = {
    "quick": Preset("20 s", 5),
    "laptop": Preset("20 min, estimated", 5, {"data": "fashion-mnist", "samples": 12800, "width": 128}),
}


def run(trial: Trial, log: Log) -> Ending:
    """Train one network and watch what its second layer gets."""
    from torch.optim import SGD

    from thalweg.lab.training.lecture_networks import perceptron, sets, train_classifier
    from thalweg.lab.training.lecture_shift import LayerInputs, linear_share

    config: Any = trial.config
    data = sets(trial, config.data, samples=config.samples)
    sizes = (data.inputs, *(config.width,) * config.depth, 10)
    model = perceptron(
        sizes, weights=trial.generator("weights"), activation="tanh", initialization="Glorot",
        normalization=config.normalization,
    )  # fmt: skip
    watch = LayerInputs(model, data.train[0][:256])
    ended = train_classifier(
        trial, log, model, SGD(model.parameters(), lr=config.lr), data,
        epochs=config.epochs, batch=config.batch, watch=watch,
    )  # fmt: skip
    rows = [row for row in log.rows() if "epoch" in row]
    steps = [abs(b["mean"] - a["mean"]) / a["spread"] for a, b in itertools.pairwise(rows)]
    final = {key: ended.values[key] for key in ("train_loss", "test_loss", "test_error")}
    final |= {"shift": sum(steps) / len(steps), "early_loss": rows[1]["train_loss"]}
    final |= {"linear sigmoid": linear_share("sigmoid"), "linear tanh": linear_share("tanh")}
    return Ending(final, ended.outcome, ended.seconds, ended.data)


def analyse(study: Study) -> Findings:
    """Speed and error by normalization and batch size, the shift, and the lecture's reasons for normalization."""
    largest = max(result.config.batch for result in study.results)  # type: ignore[attr-defined]
    present = [name for name in NAMES if study.where(normalization=name, batch=largest)]
    columns = {
        "train_loss": "training loss", "test_error": "test error", "shift": "shift of the mean per epoch, in σ",
    }  # fmt: skip
    by = {"normalization": "normalization", "batch": "batch"}
    frame = mean_std(study.results, by, columns, formats={"train_loss": ".2g", "test_error": ".3f", "shift": ".2f"})
    losses = {
        name: [r.series("train_loss") for r in study.where(normalization=name, batch=largest)] for name in present
    }
    by_batch = {name: _by_batch(study, name) for name in present}
    watched = {name: study.where(normalization=name, batch=largest)[0] for name in present}
    shares = {name: study.results[0].values[f"linear {name}"] for name in ("sigmoid", "tanh")}
    note = "Shift: how far the mean of one neuron's input moves in an epoch, by its standard deviation. " + " ".join(
        f"Without γ and β, {share:.1%} of the variance of {name} is linear in its normalized input."
        for name, share in shares.items()
    )
    return Findings(
        claims=_claims(study, largest),
        tables=[Table("After the last epoch", frame, note)],
        pictures=[
            Picture(
                "shift",
                f"What one neuron of the second layer gets, batch {largest}",
                _shift(watched),
                "Median and middle 90% over fixed images, one seed. Batch normalization puts the mean at its β.",
            ),
            Picture(
                "loss",
                f"Training loss, batch {largest}",
                curves(losses, xlabel="epoch", ylabel="cross-entropy, nats", logy=True),
                "Mean over seeds; the band is their range.",
            ),
            Picture(
                "batch",
                "Test error by size of the mini-batch",
                curves(by_batch, xlabel="images in a mini-batch", ylabel="test error", logx=True),
                "Mean over seeds; the band is their range. Equal epochs: small batches make more steps.",
            ),
        ],
    )


def _by_batch(study: Study, name: str) -> list[tuple[list[float], list[float]]]:
    rows: dict[int, list[tuple[float, float]]] = {}
    for result in study.where(normalization=name):
        rows.setdefault(result.seed, []).append((result.config.batch, result.values["test_error"]))  # type: ignore[attr-defined]
    return [([x for x, _ in sorted(row)], [y for _, y in sorted(row)]) for row in rows.values()]


def _shift(runs: Mapping[str, Result]) -> Figure:
    """A panel for each normalization: median and middle 90% of a neuron's input by epoch."""
    drawn = figure(1, len(runs), width=6.2, height=2.3, sharey=True)
    with styled():
        for number, (axes, (name, run)) in enumerate(zip(drawn.axes, runs.items(), strict=True)):
            epochs, middle = run.series("50%")
            axes.fill_between(epochs, run.series("5%")[1], run.series("95%")[1], color=PALETTE[number], alpha=0.25)
            axes.plot(epochs, middle, color=PALETTE[number])
            axes.set_title(name, loc="left", fontsize=9)
            axes.set_xlabel("epoch")
        drawn.axes[0].set_ylabel("input of tanh")
    return drawn


def _claims(study: Study, batch: int) -> list[Claim]:
    def judge(text: str, side: str, a: dict[int, float], b: dict[int, float], unit: str) -> list[Claim]:
        return [paired(side, a, b, text=text, source="seed 004, normalization", unit=unit)] if a and b else []  # type: ignore[arg-type]

    def of(key: str, name: str, size: int = batch) -> dict[int, float]:
        return study.by_seed(key, normalization=name, batch=size)

    least = min(result.config.batch for result in study.results)  # type: ignore[attr-defined]

    def cost(name: str) -> dict[int, float]:
        """What small batches cost in test error."""
        small, large = of("test_error", name, least), of("test_error", name)
        return {seed: small[seed] - large[seed] for seed in small.keys() & large.keys()}

    share = {result.seed: result.values["linear sigmoid"] for result in study.results}
    return [
        *judge(
            "Batch normalization reduces internal covariate shift.", "less",
            of("shift", "batch before"), of("shift", "none"), "shift per epoch in σ, batch before minus none",
        ),
        *judge(
            "Batch normalization speeds training up: lower training loss after the first epoch.", "less",
            of("early_loss", "batch before"), of("early_loss", "none"), "training loss, batch before minus none",
        ),
        *judge(
            "Normalization before the nonlinearity gives a lower test error than after it.", "less",
            of("test_error", "batch before"), of("test_error", "batch after"), "test error, before minus after",
        ),
        *judge(
            "Without γ and β the nonlinearity of the sigmoid is lost: more than 95% of its variance is linear.",
            "greater", share, dict.fromkeys(share, 0.95), "R² of a line, minus 0.95",
        ),
        *judge(
            f"A mini-batch of {least} instead of {batch} costs batch normalization more than layer normalization.",
            "greater", cost("batch before"), cost("layer"), f"test error, {least} minus {batch}, batch minus layer",
        ),
    ]  # fmt: skip
