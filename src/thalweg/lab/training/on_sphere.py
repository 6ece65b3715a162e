"""Training a scale-invariant network on the sphere at a fixed ELR, measured at every step (seed 001, equation (6)).

A bias-free perceptron with batch normalization on standardised images, some of whose labels are random; the regime is
told from the losses and from the angles between consecutive iterates.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from thalweg.invariance import History, ScaleMonitor, classify_regime, find_scale_groups
from thalweg.invariance.regimes import Label
from thalweg.lab.data.batches import Batches
from thalweg.lab.data.catalogue import load
from thalweg.lab.experiment import Ending
from thalweg.lab.training.loop import device, fit
from thalweg.lab.training.monitored import EpochMeans
from thalweg.lab.trial import Log, Trial
from thalweg.nn import MLP
from thalweg.optim import SphereSGD

__all__ = ["train_on_sphere"]

LATE = 10  # final values are means over the last tenth of the epochs
AVERAGED = ("train_loss", "cosine_distance", "effective_grad_norm", "test_error")


def train_on_sphere(trial: Trial, log: Log) -> Ending:
    """Train one network at ``config.elr``.

    Every epoch's row has ``test_error`` and the means of `ScaleMonitor`'s quantities. The final values are `AVERAGED`,
    ``ESS i`` of the i-th scale group, ``regime`` (the label's place in ``thalweg.invariance.regimes.Label``) and
    ``random_loss``, the loss of the initial random weights.

    Args:
        trial: its config has ``data``, ``elr``, ``epochs``, ``batch``, ``width``, ``label_noise``, ``last_layer_norm``.
        log: the run's log.
    """
    config: Any = trial.config
    inputs, labels, tests, answers, fingerprint = _images(trial)
    shape = {"hidden": (config.width, config.width), "last_layer_norm": config.last_layer_norm}
    classes = int(answers.max()) + 1
    model = MLP(inputs.shape[1], classes=classes, **shape, generator=trial.generator("weights")).to(device())
    random_loss = cross_entropy(model(inputs), labels).item()
    groups = find_scale_groups(model, cross_entropy, [(inputs, labels)], generator=trial.generator("probe"))
    params = dict(model.named_parameters())
    optimizer = SphereSGD([params[name] for group in groups for name in group.names], config.elr)
    batches = Batches(inputs, labels, batch_size=config.batch, generator=trial.generator("order"))
    with warnings.catch_warnings(), ScaleMonitor(model, optimizer, groups) as monitor:
        warnings.simplefilter("ignore", RuntimeWarning)  # the variance's alarm is judged with the regime
        means = EpochMeans(monitor)

        def measure(epoch: int) -> Mapping[str, float]:
            model.eval()
            with torch.no_grad():
                error = (model(tests).argmax(1) != answers).double().mean().item()
            model.train()
            return {"test_error": error, **means.means()}

        epochs = config.epochs
        fitted = fit(model, [optimizer], cross_entropy, batches, epochs=epochs, log=log, rules=[means], measure=measure)
    rows = [row for row in log.rows() if row.get("epoch")]
    history = History(
        losses=[row["train_loss"] for row in rows],
        cosine_distances=[row["cosine_distance"] for row in rows],
        steps=len(rows) * len(batches),
        random_loss=random_loss,
        variances=[row["variance_over_eps"] for row in rows],
        eps=1.0,
    )
    late = rows[-max(1, len(rows) // LATE) :]
    values = {key: fmean(row[key] for row in late) for key in AVERAGED}
    for i, name in enumerate(monitor.labels, 1):
        values[f"ESS {i}"] = fmean(row[f"{name}/effective_step_size"] for row in late)
    regime = get_args(Label).index(classify_regime(history).label)
    values |= {"regime": float(regime), "random_loss": random_loss}
    return Ending(values, fitted.outcome, fitted.seconds, {config.data: fingerprint})


def _images(trial: Trial) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """Training and test images, flat and standardised by the training images; a share of training labels is random."""
    config: Any = trial.config
    data = load(config.data, data_dir=trial.data_dir)
    inputs, tests = data.train.images.flatten(1), data.test.images.flatten(1)
    mean, scale = inputs.mean(0), inputs.std(0) + 0.1  # many pixels are always zero
    draw = trial.generator("noise")
    wrong = torch.rand(len(inputs), generator=draw) < config.label_noise
    labels = data.train.labels.where(~wrong, torch.randint(data.classes, (len(inputs),), generator=draw))
    parts = ((inputs - mean) / scale, labels, (tests - mean) / scale, data.test.labels)
    inputs, labels, tests, answers = (part.to(device()) for part in parts)
    return inputs, labels, tests, answers, data.fingerprint
