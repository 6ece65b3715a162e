r"""Pretraining, fine-tuning and transfer, to a task that is near and to one that is not.

    transfer learning = pretraining + fine-tuning

*Parity*: pretrained on all ten classes, the network learns from few other images whether the class is odd. *Other
classes*: pretrained on the classes 0 to 4, it learns 5 to 9 from few images. The body is frozen (only a new head
learns), fine-tuned at one rate, fine-tuned at a tenth of the head's rate, or, for comparison, random.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Settings, Study, Table
from thalweg.lab.figures import panels
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

SOURCE = "seed 004, initialization of weights: pretraining"
TITLE = "Pretraining, fine-tuning and transfer to a near and to a far task"
VERSION = 1
MODES = ("scratch", "frozen", "fine-tuned", "slow body")
TASKS = ("parity", "other classes")
SWEEP: dict[str, tuple[Any, ...]] = {"task": TASKS, "mode": MODES}
EARLY = 5  # epochs after which speed is judged


class Config(Settings):
    """A perceptron with two hidden layers, the body, and a linear head."""

    task: Literal["parity", "other classes"] = Field("parity", description="ours: the lecture names none")
    mode: Literal["scratch", "frozen", "fine-tuned", "slow body"] = Field("fine-tuned", description="what is compared")
    data: str = Field("digits", description="ours: the lecture names no data")
    before: int = Field(600, ge=1, description="ours: images to pretrain on")
    after: int = Field(30, ge=5, description="ours: images of the desired task")
    width: int = Field(128, ge=1, description="ours: neurons of each hidden layer")
    lr: float = Field(0.02, gt=0, description="ours: SGD with momentum 0.9; a tenth of it for a slow body")
    batch: int = Field(10, ge=1, description="ours")
    epochs: int = Field(30, ge=1, description="ours: on either task")


PRESETS = {
    "quick": Preset("10 s", 10),
    "laptop": Preset("2 min, estimated", 10, {"data": "fashion-mnist", "before": 6000, "after": 100, "width": 256}),
}


def run(trial: Trial, log: Log) -> Ending:
    """Pretrain, unless from scratch, then learn the desired task."""
    from thalweg.lab.training.lecture_transfer import transfer

    return transfer(trial, log)


def analyse(study: Study) -> Findings:
    """Test error by epoch and at the end, and the lecture's reasons for pretraining."""
    columns = {
        "early_error": f"test error, epoch {EARLY}",
        "test_error": "test error, end",
        "train_loss": "training loss",
    }
    formats = dict.fromkeys(columns, ".3f") | {"train_loss": ".2g"}
    frame = mean_std(study.results, {"task": "task", "mode": "body"}, columns, formats=formats)
    views = {
        task.capitalize(): {
            mode: [run.series("test_error") for run in study.where(task=task, mode=mode)]
            for mode in MODES
            if study.where(task=task, mode=mode)
        }
        for task in TASKS
    }
    drawn = panels(views, columns=2, xlabel="epoch on the desired task", ylabel="test error", width=6.0, height=3.0)
    caption = "Mean over seeds; the band is their range. Epoch 0 is before the first step: the head is always new."
    return Findings(
        claims=[claim for task in TASKS for claim in _claims(study, task)],
        tables=[
            Table("After pretraining, and without", frame, "Guessing errs in 0.5 (parity) and 0.8 (other classes).")
        ],
        pictures=[Picture("errors", "Test error by epoch", drawn, caption)],
    )


def _claims(study: Study, task: str) -> list[Claim]:
    def judge(text: str, a: str, b: str, key: str = "test_error") -> list[Claim]:
        one, other = (study.by_seed(key, task=task, mode=mode) for mode in (a, b))
        unit = f"test error, {f'epoch {EARLY}' if key == 'early_error' else 'end'}, {a} minus {b}"
        text = f"{task.capitalize()}: {text}"
        return (
            [paired("less", one, other, text=text, source="seed 004, pretraining", unit=unit)] if one and other else []
        )

    return [
        *judge("fine-tuning a pretrained network gives a lower error than random weights.", "fine-tuned", "scratch"),
        *judge("it gets there sooner.", "fine-tuned", "scratch", "early_error"),
        *judge("a new head on a frozen body is better than random weights.", "frozen", "scratch"),
        *judge("fine-tuning the body is better than freezing it.", "fine-tuned", "frozen"),
        *judge("a tenth of the rate for the body is better than one rate for all.", "slow body", "fine-tuned"),
    ]
