"""The perceptrons of the lecture's experiments: initialization, normalization and dropout are settings.

    flatten - [dropout] - { linear - [normalize] - activation - [normalize] - [dropout] } - linear

Everything is drawn from generators, dropout's masks too, whose state travels with the weights into the checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from thalweg.lab.data.batches import Batches
from thalweg.lab.data.catalogue import load
from thalweg.lab.experiment import Ending
from thalweg.lab.training.loop import device, fit
from thalweg.lab.trial import Log, Trial
from thalweg.lecture import glorot, inverted_dropout, kaiming, lecun
from thalweg.optim.schedules import Schedule

__all__ = ["ACTIVATIONS", "RULES", "Dropout", "EveryStep", "Sets", "perceptron", "sets", "train_classifier"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "LeakyReLU": nn.LeakyReLU,
    "ELU": nn.ELU,
    "SELU": nn.SELU,
}
RULES: Mapping[str, Callable[..., Tensor]] = {
    "printed LeCun": partial(lecun, form="printed"),
    "LeCun": lecun,
    "Glorot": glorot,
    "Kaiming": kaiming,
}
"""The lecture's initializations: (inputs, outputs, generator=) -> weight."""


class Dropout(nn.Module):
    """Inverted dropout from a generator of its own; `torch.nn.Dropout` draws from the global one.

    >>> dropped = Dropout(0.5, torch.Generator().manual_seed(0))(torch.ones(99))
    >>> set(dropped.tolist()) == {0.0, 2.0}
    True
    """

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * inverted_dropout(torch.ones(x.shape), self.p, generator=self.generator).to(x)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


def perceptron(
    sizes: Sequence[int],
    *,
    weights: torch.Generator,
    masks: torch.Generator | None = None,
    activation: str = "ReLU",
    initialization: str = "Kaiming",
    normalization: str = "none",
    dropout: tuple[float, float] = (0.0, 0.0),
) -> nn.Sequential:
    """A perceptron of these sizes, input first; biases begin at 0.

    Args:
        sizes: numbers of inputs, of each hidden layer's neurons and of outputs.
        weights: draws the weights.
        masks: draws dropout's masks; needed if something is dropped.
        activation: one of `ACTIVATIONS`.
        initialization: one of `RULES`.
        normalization: "none", "batch before" or "batch after" the activation, or "layer" (before it).
        dropout: p of the inputs and of the hidden layers.

    >>> net = perceptron((4, 8, 3), weights=torch.Generator().manual_seed(0), normalization="batch before")
    >>> [type(part).__name__ for part in net]
    ['Flatten', 'Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """

    def dropped(p: float) -> list[nn.Module]:
        return [Dropout(p, masks)] if p and masks else []

    def linear(m: int, n: int) -> nn.Linear:
        layer = nn.Linear(m, n)
        with torch.no_grad():
            layer.weight.copy_(RULES[initialization](m, n, generator=weights))
            layer.bias.zero_()
        return layer

    parts: list[nn.Module] = [nn.Flatten(), *dropped(dropout[0])]
    for m, n in itertools.pairwise(sizes[:-1]):
        before = {"batch before": nn.BatchNorm1d, "layer": nn.LayerNorm}.get(normalization)
        parts += [linear(m, n), *([before(n)] if before else []), ACTIVATIONS[activation]()]
        parts += [nn.BatchNorm1d(n)] if normalization == "batch after" else []
        parts += dropped(dropout[1])
    return nn.Sequential(*parts, linear(sizes[-2], sizes[-1]))


@dataclass(frozen=True, eq=False)
class Sets:
    """Standardized images and labels on the training device; ``mark`` is data set -> fingerprint."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mark: Mapping[str, str]

    @property
    def inputs(self) -> int:
        """Numbers in one image."""
        return self.train[0][0].numel()


def sets(
    trial: Trial, name: str, *, samples: int, validation: int = 0, tests: int = 0, label_noise: float = 0.0
) -> Sets:
    """Training and validation images that the trial's seed draws from the training split, and the test split.

    Args:
        trial: its seed draws the images and the noise.
        name: the data set.
        samples: training images.
        validation: images that are held out.
        tests: the first so many of the test split; 0: all.
        label_noise: share of training labels drawn at random.
    """
    data = load(name, data_dir=trial.data_dir)
    chosen = torch.randperm(len(data.train.labels), generator=trial.generator("samples"))[: samples + validation]
    images, labels = data.train.images[chosen], data.train.labels[chosen]
    draw = trial.generator("noise")
    noisy = (torch.rand(len(labels), generator=draw) < label_noise) & (torch.arange(len(labels)) < samples)
    labels = labels.where(~noisy, torch.randint(data.classes, labels.shape, generator=draw))
    mean, scale = images[:samples].mean(), images[:samples].std()

    def placed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return ((images - mean) / scale).to(device()), labels.to(device())

    last = slice(tests or None)
    return Sets(
        placed(images[:samples], labels[:samples]),
        placed(images[samples:], labels[samples:]),
        placed(data.test.images[last], data.test.labels[last]),
        {name: data.fingerprint},
    )


class EveryStep:
    """A schedule that moves with every step of the optimizer; to the training loop, something to be checkpointed."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.scheduler = schedule.scheduler(optimizer)
        optimizer.register_step_post_hook(lambda *_: self.scheduler.step())

    def step(self) -> None:
        """At the end of an epoch: nothing."""

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


@torch.no_grad()
def _judged(model: nn.Module, images: Tensor, labels: Tensor, name: str) -> dict[str, float]:
    """``NAME_loss`` and ``NAME_error`` in prediction mode; nothing for an empty set."""
    if not len(labels):
        return {}
    model.eval()
    logits = model(images)
    model.train()
    wrong = (logits.argmax(1) != labels).double().mean()
    return {f"{name}_loss": float(cross_entropy(logits, labels)), f"{name}_error": float(wrong)}


def train_classifier(
    trial: Trial,
    log: Log,
    model: nn.Module,
    optimizer: Optimizer,
    data: Sets,
    *,
    epochs: int,
    batch: int,
    schedule: Schedule | None = None,
    watch: Callable[[nn.Module], Mapping[str, float]] = lambda model: {},
) -> Ending:
    """Train by cross-entropy; every row has loss and error of the validation and test images, and what is watched.

    Args:
        trial: its seed draws the order of the batches.
        log: the run's log.
        model: moved to the training device.
        optimizer: holds the parameters that are to be trained.
        data: the images.
        epochs: how many.
        batch: images in a mini-batch.
        schedule: the learning rate by step, with the optimizer's own as its first or highest.
        watch: model -> more numbers for every row.

    Returns:
        The last row's numbers.
    """
    model.to(device())

    def measure(epoch: int) -> Mapping[str, float]:
        found = _judged(model, *data.validation, "validation") | _judged(model, *data.test, "test")
        return found | dict(watch(model))

    fitted = fit(
        model,
        [optimizer],
        cross_entropy,
        Batches(*data.train, batch_size=batch, generator=trial.generator("order")),
        epochs=epochs,
        log=log,
        schedulers=[EveryStep(optimizer, schedule)] if schedule else [],
        measure=measure,
    )
    last = [row for row in log.rows() if "epoch" in row][-1]
    return Ending(
        {key: value for key, value in last.items() if key != "seconds"}, fitted.outcome, fitted.seconds, data.mark
    )
