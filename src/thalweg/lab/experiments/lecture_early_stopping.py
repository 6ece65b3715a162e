r"""Early stopping: training and validation curves of one network, and what stopping would have saved.

    stop when the validation loss has not fallen below its best for ``patience`` epochs; take the best epoch's weights

Nothing is stopped here: the whole course is recorded, and `thalweg.lecture.EarlyStopping` is asked afterwards.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import PALETTE, curves, styled
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 004, regularization: early stopping"
TITLE = "Early stopping on training and validation curves"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"label_noise": (0.0, 0.2)}


class Config(Settings):
    """A perceptron large enough to learn its training images by heart."""

    label_noise: float = Field(0.2, ge=0, le=1, description="ours: share of random training labels, to be overfitted")
    data: str = Field("digits", description="ours: the lecture names no data")
    samples: int = Field(600, ge=1, description="ours: training images")
    validation: int = Field(400, ge=1, description="ours: images held out of the training split")
    width: int = Field(128, ge=1, description="ours: neurons of the hidden layer")
    lr: float = Field(0.1, gt=0, description="ours: SGD with momentum 0.9")
    batch: int = Field(64, ge=1, description="ours")
    epochs: int = Field(40, ge=1, description="ours: far beyond the best epoch")
    patience: int = Field(5, ge=1, description="ours: the lecture gives no rule")


PRESETS = {
    "quick": Preset("5 s", 10),
    "laptop": Preset(
        "5 min, estimated", 5, {"data": "fashion-mnist", "samples": 6000, "validation": 4000, "width": 512}
    ),
}


def run(trial: Trial, log: Log) -> Ending:
    """Train to the end, then ask where the rule would have stopped."""
    from torch.optim import SGD

    from thalweg.lab.training.lecture_networks import perceptron, sets, train_classifier
    from thalweg.lecture import EarlyStopping

    config: Any = trial.config
    data = sets(
        trial,
        config.data,
        samples=config.samples,
        validation=config.validation,
        label_noise=config.label_noise,
    )
    model = perceptron((data.inputs, config.width, 10), weights=trial.generator("weights"))
    optimizer = SGD(model.parameters(), lr=config.lr, momentum=0.9)
    ended = train_classifier(trial, log, model, optimizer, data, epochs=config.epochs, batch=config.batch)
    rows = [row for row in log.rows() if "train_loss" in row]
    stopping = EarlyStopping(patience=config.patience)
    stop = next((row for row in rows if stopping.update(row["validation_loss"])), rows[-1])
    best = next(row for row in rows if row["validation_loss"] == stopping.best)
    values = {f"{key} at best": best[key] for key in ("train_loss", "test_loss", "test_error")}
    values |= {f"{key} at end": rows[-1][key] for key in ("train_loss", "test_loss", "test_error")}
    values |= {"best": best["epoch"], "stopped": stop["epoch"], "train_loss at stop": stop["train_loss"]}
    return Ending(values, ended.outcome, ended.seconds, ended.data)


def analyse(study: Study) -> Findings:
    """The curves, what stopping costs and gains, and the lecture's reasons for it."""
    noise = max(result.config.label_noise for result in study.results)  # type: ignore[attr-defined]
    runs = study.where(label_noise=noise)
    series = {
        name: [_after_training(run, key) for run in runs]
        for name, key in (("training", "train_loss"), ("validation", "validation_loss"), ("test", "test_loss"))
    }
    drawn = curves(series, xlabel="epoch", ylabel="cross-entropy, nats")
    with styled():
        best = sum(run.values["best"] for run in runs) / len(runs)
        drawn.axes[0].axvline(best, color=PALETTE[3], linewidth=1.2)
        drawn.axes[0].annotate(" mean best epoch", (best, drawn.axes[0].get_ylim()[1]), va="top", fontsize=9)
    columns = {
        "best": "best epoch",
        "stopped": "stopped after",
        "test_error at best": "test error, best epoch",
        "test_error at end": "test error, last epoch",
        "test_loss at best": "test loss, best epoch",
        "test_loss at end": "test loss, last epoch",
    }
    formats = dict.fromkeys(("best", "stopped"), ".1f") | dict.fromkeys([*columns][2:], ".3f")
    frame = mean_std(study.results, {"label_noise": "random labels"}, columns, formats=formats)
    return Findings(
        claims=_claims(study, noise),
        tables=[Table("The best epoch by validation loss, and the last one", frame)],
        pictures=[
            Picture(
                "curves",
                f"Training and validation loss, {noise:.0%} of the training labels random",
                drawn,
                "Mean over seeds; the band is their range. The validation loss turns while the training loss falls on.",
            )
        ],
    )


def _after_training(run: Result, key: str) -> tuple[list[float], list[float]]:
    """The metric by epoch without epoch 0, whose loss of random weights would set the scale."""
    epochs, values = run.series(key)
    first = epochs.index(1)
    return epochs[first:], values[first:]


def _claims(study: Study, noise: float) -> list[Claim]:
    found = []
    for share in sorted({result.config.label_noise for result in study.results}):  # type: ignore[attr-defined]
        for key, what in (("test_loss", "test loss"), ("test_error", "test error")):
            a, b = (study.by_seed(f"{key} at {where}", label_noise=share) for where in ("best", "end"))
            text = f"Early stopping lowers the {what}, with {share:.0%} of the training labels random."
            unit = f"{what}, best epoch by validation minus last epoch"
            found.append(paired("less", a, b, text=text, source="seed 004, early stopping", unit=unit))
    a, b = (study.by_seed(f"train_loss at {where}", label_noise=noise) for where in ("end", "stop"))
    text = "After the stop the training loss would have gone on falling."
    return [
        *found,
        paired("less", a, b, text=text, source="seed 004, early stopping", unit="training loss, end - stop"),
    ]
