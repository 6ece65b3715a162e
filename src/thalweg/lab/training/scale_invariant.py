"""The training task of seed 001: a scale-invariant network, standardised images on the training device, a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from thalweg.invariance import find_scale_groups
from thalweg.invariance.groups import ScaleGroups
from thalweg.lab.data.augmentation import augment
from thalweg.lab.data.batches import Batches
from thalweg.lab.data.catalogue import load
from thalweg.lab.scale_settings import ScaleSettings
from thalweg.lab.training.loop import device
from thalweg.lab.trial import Trial
from thalweg.nn import MLP, ConvNet, PreActResNet

__all__ = ["Task", "squared_error", "task", "train_mode_loss"]

LossFn = Callable[[Tensor, Tensor], Tensor]

EVALUATED = 1000  # images at once


@dataclass(frozen=True, eq=False)
class Task:
    """A network in its initial state, and what it learns; everything lies on the training device.

    Attributes:
        model: the network.
        loss_fn: (logits, labels) -> mean loss.
        batches: the training images, in the order that the seed draws.
        tests: test images.
        answers: their labels.
        groups: scale groups of the trainable parameters.
        random_loss: training loss of the initial random weights.
        data: data set -> fingerprint.
    """

    model: nn.Module
    loss_fn: LossFn
    batches: Batches
    tests: Tensor
    answers: Tensor
    groups: ScaleGroups
    random_loss: float
    data: Mapping[str, str]

    @property
    def invariant(self) -> list[nn.Parameter]:
        """The scale-invariant parameters, in the order of the groups."""
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for group in self.groups for name in group.names]

    @torch.no_grad()
    def test(self) -> dict[str, float]:
        """``test_error`` and ``test_loss`` with running statistics; the model is left in training mode."""
        self.model.eval()
        wrong = loss = 0.0
        for images, labels in zip(
            torch.split(self.tests, EVALUATED), torch.split(self.answers, EVALUATED), strict=True
        ):
            logits = self.model(images)
            wrong += (logits.argmax(1) != labels).sum().item()
            loss += self.loss_fn(logits, labels).item() * len(labels)
        self.model.train()
        return {"test_error": wrong / len(self.answers), "test_loss": loss / len(self.answers)}


@torch.no_grad()
def train_mode_loss(model: nn.Module, loss_fn: LossFn, batches: Batches) -> float:
    """Loss over the training images with the batches' own statistics, in a fixed order; buffers are kept."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    total, seen = 0.0, 0
    for images, labels in zip(
        *(torch.split(part, batches.batch_size) for part in (batches.inputs, batches.targets)), strict=True
    ):
        if len(labels) > 1:  # one image has no variance
            total += loss_fn(model(images), labels).item() * len(labels)
            seen += len(labels)
    for buffer, kept in buffers:
        buffer.copy_(kept)
    return total / seen


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over classes and samples of (logit - one-hot)^2, as in the authors' code."""
    return mse_loss(logits, one_hot(labels, logits.shape[1]).to(logits))


def task(trial: Trial) -> Task:
    """The task that the trial's settings describe; of one seed, all have the same weights, batches and noise."""
    config = cast(ScaleSettings, trial.config)
    data = load(config.data, data_dir=trial.data_dir)
    take, first = slice(config.samples or None), slice(config.tests or None)
    images, tests = data.train.images[take], data.test.images[first]
    draw = trial.generator("noise")
    wrong = torch.rand(len(images), generator=draw) < config.label_noise
    labels = data.train.labels[take]
    labels = labels.where(~wrong, torch.randint(data.classes, (len(images),), generator=draw))
    if config.network == "mlp":  # by pixel; many are always zero
        mean, scale = images.mean(0), images.std(0) + 0.1
    else:  # by channel; the authors have the same means, and deviations averaged over images
        mean, scale = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    parts = ((images - mean) / scale, labels, (tests - mean) / scale, data.test.labels[first])
    images, labels, tests, answers = (part.to(device()) for part in parts)
    model = _network(config, images, data.classes, trial.generator("weights")).to(device())
    loss_fn = cross_entropy if config.loss == "cross-entropy" else squared_error
    groups = find_scale_groups(model, loss_fn, [(images[:64], labels[:64])], generator=trial.generator("probe"))
    batches = Batches(
        images,
        labels,
        batch_size=config.batch,
        generator=trial.generator("order"),
        augment=augment(crop=images.shape[-1] // 8, flip=images.shape[1] == 3) if config.augment else None,
    )
    random_loss = train_mode_loss(model, loss_fn, batches)
    return Task(model, loss_fn, batches, tests, answers, groups, random_loss, {config.data: data.fingerprint})


def _network(config: ScaleSettings, images: Tensor, classes: int, draw: torch.Generator) -> nn.Module:
    norm, affine = config.last_layer_norm, config.affine
    if config.network == "mlp":
        hidden = (config.width,) * config.depth
        return MLP(images[0].numel(), hidden, classes, affine=affine, last_layer_norm=norm, generator=draw)
    build = ConvNet if config.network == "convnet" else PreActResNet
    return build(images.shape[1], config.width, classes, affine=affine, last_layer_norm=norm, generator=draw)
