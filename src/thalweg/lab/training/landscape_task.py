"""The training task of seed 003: a bias-free network, images as its predecessor standardises them, Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from thalweg.lab.data.batches import Batches
from thalweg.lab.data.catalogue import load
from thalweg.lab.landscape_settings import LandscapeSettings
from thalweg.lab.training.loop import Fit, device, fit
from thalweg.lab.training.stopping import StoppingRule
from thalweg.lab.trial import Log, Trial
from thalweg.nn import MatricizedNet

__all__ = ["LandscapeTask", "landscape_task"]


@dataclass(frozen=True, eq=False)
class LandscapeTask:
    """A network and the images that it learns; everything lies on the training device.

    Attributes:
        model: in its initial state.
        images: (x - 1/2)/(1/2), as torchvision's Normalize(.5, .5): (N, C, H, W), or (N, C, H·W) in one dimension.
        labels: (N,).
        data: data set -> fingerprint.
    """

    model: MatricizedNet
    images: Tensor
    labels: Tensor
    data: Mapping[str, str]

    def train(self, trial: Trial, log: Log, *, rules: Sequence[StoppingRule] = (), measure: Any = None) -> Fit:
        """Adam on the mean cross-entropy for the epochs of the trial's settings."""
        config = cast(LandscapeSettings, trial.config)
        return fit(
            self.model,
            [torch.optim.Adam(self.model.parameters(), lr=config.lr)],
            cross_entropy,
            Batches(self.images, self.labels, batch_size=config.batch, generator=trial.generator("order")),
            epochs=config.epochs,
            log=log,
            rules=rules,
            measure=measure,
        )


def landscape_task(trial: Trial) -> LandscapeTask:
    """The task that the trial's settings describe; of one seed, equal networks have equal weights and batches."""
    config = cast(LandscapeSettings, trial.config)
    data = load(config.data, data_dir=trial.data_dir)
    take = slice(config.samples or None)
    images = (data.train.images[take] - 0.5) / 0.5
    if config.network == "conv1d":
        images = images.flatten(2)
    model = _network(config, images.shape[1:], data.classes, trial.generator("weights"))
    labels = data.train.labels[take]
    marks = {config.data: data.fingerprint}
    return LandscapeTask(model.to(device()), images.to(device()), labels.to(device()), marks)


def _network(config: LandscapeSettings, shape: Sequence[int], classes: int, draw: torch.Generator) -> MatricizedNet:
    if config.network == "mlp":
        widths = (config.filters,) * (config.layers + 1)
        return MatricizedNet(shape, classes, convolutions=0, hidden=widths, generator=draw)
    return MatricizedNet(
        shape,
        classes,
        convolutions=config.layers + (config.head != "linear"),
        filters=config.filters,
        kernel=config.kernel,
        pooling=config.pooling,
        window=config.window,
        head=config.head,
        hidden=(config.width,) * (config.linear - 1) if config.head == "linear" else (),
        generator=draw,
    )
