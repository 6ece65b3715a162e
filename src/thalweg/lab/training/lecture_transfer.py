"""Pretraining on one task and training on another, with the body frozen, slow or free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from thalweg.lab.data.batches import Batches
from thalweg.lab.experiment import Ending
from thalweg.lab.training.lecture_networks import Sets, perceptron, sets, train_classifier
from thalweg.lab.training.loop import device
from thalweg.lab.trial import Log, Trial

__all__ = ["transfer"]

HALF = 5  # classes
EARLY = 5  # epochs after which the error is noted as ``early_error``
OUTPUTS = {"other classes": (HALF, HALF), "parity": (2 * HALF, 2)}


def transfer(trial: Trial, log: Log) -> Ending:
    """Learn the second task as the config's ``mode`` says; pretraining is silent and done anew if resumed.

    Args:
        trial: its config has ``task``, ``mode``, ``data``, ``before``, ``after``, ``width``, ``lr``, ``batch`` and
            ``epochs``.
        log: the run's log; its rows are those of the second task.
    """
    config: Any = trial.config
    first, second = _tasks(sets(trial, config.data, samples=10**9), config.task, config.before, config.after)
    known, wanted = OUTPUTS[config.task]
    body_sizes = (first.inputs, config.width, config.width)
    model = perceptron((*body_sizes, wanted), weights=trial.generator("weights"))
    if config.mode != "scratch":
        simple = perceptron((*body_sizes, known), weights=trial.generator("weights")).to(device())
        _pretrain(simple, first, trial, lr=config.lr, epochs=config.epochs)
        model = nn.Sequential(*list(simple)[:-1], model[-1])
    body = [param for part in list(model)[:-1] for param in part.parameters()]
    for param in body:
        param.requires_grad_(config.mode != "frozen")
    groups: list[dict[str, Any]] = [{"params": list(model[-1].parameters())}]
    if config.mode != "frozen":
        groups.append({"params": body, "lr": config.lr * (0.1 if config.mode == "slow body" else 1.0)})
    ended = train_classifier(
        trial, log, model, SGD(groups, lr=config.lr, momentum=0.9), second, epochs=config.epochs, batch=config.batch
    )
    early = next((row["test_error"] for row in log.rows() if row.get("epoch") == EARLY), ended.values["test_error"])
    return replace(ended, values={**ended.values, "early_error": early})


def _tasks(data: Sets, task: str, before: int, after: int) -> tuple[Sets, Sets]:
    """The simple task with ``before`` training images and the desired one with ``after``, on other images."""
    images, labels = data.train
    if task == "parity":
        second = images[before : before + after], labels[before : before + after] % 2
        return replace(data, train=(images[:before], labels[:before])), replace(
            data, train=second, test=(data.test[0], data.test[1] % 2)
        )
    low, high, tests = labels < HALF, labels >= HALF, data.test[1] >= HALF
    return replace(data, train=(images[low][:before], labels[low][:before])), replace(
        data,
        train=(images[high][:after], labels[high][:after] - HALF),
        test=(data.test[0][tests], data.test[1][tests] - HALF),
    )


def _pretrain(model: nn.Module, data: Sets, trial: Trial, *, lr: float, epochs: int) -> None:
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9)
    batches = Batches(*data.train, batch_size=50, generator=trial.generator("pretraining"))
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
