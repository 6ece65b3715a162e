"""Training of seed 002: a classifier, a penalty of its weights with the recipe published for it, and layer spectra.

==========  ================================================  ==================================================
method      penalty                                           source of coefficient and schedule
==========  ================================================  ==================================================
mhe         1 hidden, 10 output layer, s = 0                  the authors' code
so          1e-2, SRIP's schedule                             SRIP's; the paper's own for SO is not verified
srip        1e-2; 1e-3, 1e-4, 1e-6, 0 times that after        the authors' code, for CIFAR and SVHN; its epochs
            10, 25, 35, 60 % of the training                  20, 50, 70, 120 of 200 are scaled to the run's
ocnn        0.1, squared norms, not the stem                  the default of the authors' code, for plain norms
frame       γ = 0.36 / width of the stem, exact borders,      ours: the slides give neither A, B nor γ; the
            all layers but the classifier, gradient           gradient grows with width and is cubic in the
            clipped to the norm of each weight                weights: without clipping some runs diverge
polyak      Polyak's step of its own after every step,        ours: the same penalty, whose strength no longer
            all layers                                        fades with the learning rate
spectral    a step of 0.2 of its own after every step         ours: the form is not in the seed
==========  ================================================  ==================================================

The frame penalty leaves the classifier to the loss unless ``classifier`` says otherwise: cross-entropy pulls at its
scale, which no normalization hides, and a hinge gives way. With γ = .01, .03 and .1 its λ_max ended at 3.2, 2.7 and 2.3
for B = 2, while all convolutions were inside from .03 on. Penalties with steps of their own act on it too: these stay
constant while the learning rate falls.

The optimizer is SGD with Nesterov's momentum and a cosine schedule by epoch. A penalty that is part of the loss adds
its gradient before the optimizer's step, so that the recorded training loss is the cross-entropy alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from thalweg.lab.data.augmentation import augment
from thalweg.lab.data.batches import Batches
from thalweg.lab.data.catalogue import load
from thalweg.lab.experiment import Ending
from thalweg.lab.frame_settings import Init, Method
from thalweg.lab.training.layer_spectra import coherence, layer_spectra
from thalweg.lab.training.loop import device, fit
from thalweg.lab.trial import Log, Trial
from thalweg.nn import CifarResNet
from thalweg.regularize import (
    SRIP,
    SRIP_CIFAR,
    ConvOrthogonality,
    FrameRegularizer,
    HypersphericalEnergy,
    Penalty,
    SoftOrthogonality,
    frame_init_,
    stair,
)

__all__ = ["network", "penalty", "train_regularized"]

EVALUATED = 1000  # images at once
SRIP_EPOCHS = 200  # of the training that SRIP's schedule is published for
MIRRORED = ("cifar10", "cifar100")  # sets whose images may be flipped: not digits
OWN_STEP = {"polyak": 1.0, "spectral": 0.2}  # of the methods that act past the optimizer
CLIP = 1.0  # of the frame penalty's gradient in each weight, as a share of the weight's norm


def train_regularized(
    trial: Trial, log: Log, *, method: Method, init: Init, decay: float, spectra_at: Collection[int] = ()
) -> Ending:
    """Train one network by cross-entropy and a penalty; the final values are those of the last epoch's row.

    Every row has ``accuracy`` (per cent of the test images), ``test_loss``, ``norm`` (of all weights with two or more
    dimensions) and ``coherence``; rows of the epochs ``spectra_at`` also the spectrum of every layer, see
    `thalweg.lab.training.layer_spectra`.

    Args:
        trial: its config is a `FrameSettings`.
        log: the run's log.
        method: the penalty.
        init: initial weights: He's, or tight frames.
        decay: weight decay of all parameters.
        spectra_at: epochs after which the layers' spectra are measured; 0 is before training.
    """
    config: Any = trial.config
    data = load(config.data, data_dir=trial.data_dir)
    train, test = data.train, data.test
    images = avg_pool2d(train.images[: config.samples or None], config.shrink)
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    parts = [(images - mean) / deviation, train.labels[: config.samples or None]]
    tests = avg_pool2d(test.images[: config.tests or None], config.shrink)
    parts += [(tests - mean) / deviation, test.labels[: config.tests or None]]
    images, labels, tests, answers = (part.to(device()) for part in parts)

    model = network(config, images.shape[1], data.classes, trial.generator("weights")).to(device())
    if init == "frame":
        frame_init_(model, config.lower, config.upper, sample=images[:1], generator=trial.generator("frame"))
    optimizer = SGD(
        model.parameters(),
        config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=decay,
    )
    side = images.shape[-1]
    batches = Batches(
        images,
        labels,
        batch_size=config.batch,
        generator=trial.generator("order"),
        augment=augment(crop=max(1, side // 8), flip=config.data in MIRRORED) if config.augment else None,
    )
    term = penalty(config, method, config.epochs * len(batches), trial.generator("penalty"))
    rules = []
    if term is not None:
        term.prepare(model, images[:1])
        clip = CLIP if method == "frame" else math.inf
        rules.append(_Attached(term, model, optimizer, own_step=OWN_STEP.get(method), clip=clip))

    def measure(epoch: int) -> Mapping[str, float]:
        row = {**_test(model, tests, answers), "norm": _norm(model), "coherence": coherence(model)}
        if epoch in spectra_at:
            row |= layer_spectra(model, images.shape[1:], lower=config.lower, upper=config.upper)
        return row

    with warnings.catch_warnings():  # the collapse that is warned of is what frame-anatomy shows
        warnings.filterwarnings("ignore", message="the Gershgorin form will shrink")
        fitted = fit(
            model,
            [optimizer],
            cross_entropy,
            batches,
            epochs=config.epochs,
            log=log,
            rules=rules,
            schedulers=[CosineAnnealingLR(optimizer, config.epochs)],
            measure=measure,
        )
    last = [row for row in log.rows() if "epoch" in row][-1]
    values = {key: value for key, value in last.items() if key not in ("seconds", "lr")}
    return Ending(values, fitted.outcome, fitted.seconds, data={config.data: data.fingerprint})


def network(config: Any, channels: int, classes: int, generator: torch.Generator) -> CifarResNet:
    """The network that the settings name."""
    depth: Any = int(config.network.removeprefix("resnet").removeprefix("plain"))
    shortcuts = not config.network.startswith("plain")
    return CifarResNet(depth, channels, classes, width=config.width, shortcuts=shortcuts, generator=generator)


def penalty(config: Any, method: Method, steps: int, generator: torch.Generator) -> Penalty | None:
    """The penalty of a method with its recipe's coefficient, or the config's; None for no penalty.

    Args:
        config: a `FrameSettings`.
        method: its name.
        steps: optimizer steps of the whole training.
        generator: draws of the penalties that are random.
    """

    def of(recipe: float) -> float:
        return float(config.coefficient or recipe)

    fading = stair({round(epoch / SRIP_EPOCHS * steps): factor for epoch, factor in SRIP_CIFAR.items()})
    if method == "mhe":
        return HypersphericalEnergy(of(1.0))
    if method == "so":
        return SoftOrthogonality(of(1e-2), schedule=fading)
    if method == "srip":
        return SRIP(of(1e-2), schedule=fading, generator=generator)
    if method == "ocnn":
        return ConvOrthogonality(of(0.1), exclude="stem")
    if method == "frame":
        exclude = () if config.classifier else "last"
        return FrameRegularizer(config.lower, config.upper, of(0.36 / config.width), exclude=exclude)
    if method == "polyak":
        return FrameRegularizer(config.lower, config.upper, of(1.0))
    if method == "spectral":
        return FrameRegularizer(config.lower, config.upper, of(1.0), form="spectral", generator=generator)
    return None


class _Attached:
    """A penalty that acts at every step of an optimizer; as a rule of `fit` it is part of the checkpoint."""

    def __init__(
        self, term: Penalty, model: nn.Module, optimizer: Optimizer, *, own_step: float | None, clip: float = math.inf
    ) -> None:
        self.term = term

        def before(*_: object) -> None:
            value = term(model)
            if not value.requires_grad:  # not at this step
                return
            params = [param for param in model.parameters() if param.requires_grad]
            gradients = torch.autograd.grad(value, params, allow_unused=True)
            for param, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    if clip < math.inf:
                        gradient = gradient * (clip * param.norm() / gradient.norm()).clamp(max=1.0)
                    param.grad = gradient if param.grad is None else param.grad.add_(gradient)

        def after(*_: object) -> None:
            if own_step is not None:
                term.step_(model, own_step)
            term.advance()

        if own_step is None:
            optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def update(self, row: Mapping[str, float]) -> bool:
        """Never stops the training."""
        return False

    def finish(self) -> None:
        """Nothing is left to do."""

    def state_dict(self) -> dict[str, Any]:
        """Step count, generator and power vectors."""
        return dict(self.term.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.term.load_state_dict(state)


@torch.no_grad()
def _norm(model: nn.Module) -> float:
    """Frobenius norm of all weights that are matrices or kernels."""
    return float(torch.stack([p.square().sum() for p in model.parameters() if p.ndim > 1]).sum().sqrt())


@torch.no_grad()
def _test(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """``accuracy`` in per cent and ``test_loss``, with running statistics."""
    training = model.training
    model.eval()
    right = loss = 0.0
    for x, y in zip(torch.split(images, EVALUATED), torch.split(labels, EVALUATED), strict=True):
        logits = model(x)
        right += (logits.argmax(1) == y).sum().item()
        loss += cross_entropy(logits, y, reduction="sum").item()
    model.train(training)
    return {"accuracy": 100 * right / len(labels), "test_loss": loss / len(labels)}
