"""Training the autoencoder of seed 000, section 4, with any optimizer, and testing what it reconstructs.

Test MSE is the squared error summed over the pixels of an image and averaged over the test images (the seed's unit);
SSIM is scikit-image's default (uniform 7x7 window, data_range 1), averaged over the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer

from thalweg.lab.data.batches import Batches
from thalweg.lab.data.catalogue import load
from thalweg.lab.experiment import Ending
from thalweg.lab.training.loop import device, fit
from thalweg.lab.training.stopping import StoppingRule
from thalweg.lab.trial import Log, Trial
from thalweg.nn import Autoencoder
from thalweg.operators import largest_singular_value
from thalweg.optim import CSGD, step_stability

__all__ = ["LAYERS", "train_autoencoder"]

LAYERS = ("encoder 1", "encoder 2", "decoder 1", "decoder 2")
PROBE = 128  # training images on which the step's stability is measured
GROWTH = 10.0  # a largest singular value that grew this much counts as exploded


def train_autoencoder(
    trial: Trial,
    log: Log,
    make_optimizers: Callable[[nn.Module], Sequence[Optimizer]],
    make_rules: Callable[[Sequence[Optimizer]], Sequence[StoppingRule]] = lambda optimizers: (),
) -> Ending:
    """Train on the mean squared error over pixels; outcome "dead" for a silent death (see `_dead`).

    Every epoch's row has ``test_mse``, ``s_max LAYER`` and, for SGD and CSGD, ``sharpness`` and ``bound`` of
    `step_stability`. The final values are the last row's and ``ssim``.

    Args:
        trial: its config has ``data``, ``batch``, ``epochs``, ``hidden`` and ``latent``.
        log: the run's log.
        make_optimizers: model -> the optimizers that together hold its parameters.
        make_rules: optimizers -> stopping rules.
    """
    config: Any = trial.config
    data = load(config.data, data_dir=trial.data_dir)
    images, tests = data.train.images.to(device()), data.test.images.to(device())
    sizes = {"hidden": config.hidden, "latent": config.latent}
    channels, height, width = images.shape[1:]
    model = Autoencoder((channels, height, width), **sizes, generator=trial.generator("weights")).to(device())
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    optimizers = make_optimizers(model)

    def measure(epoch: int) -> Mapping[str, float]:
        with torch.no_grad():
            row = {"test_mse": _mse(tests, model(tests))}
        row |= {f"s_max {name}": largest_singular_value(weight) for name, weight in zip(LAYERS, weights, strict=True)}
        if isinstance(optimizers[0], (CSGD, torch.optim.SGD)):
            loss = mse_loss(model(images[:PROBE]), images[:PROBE])
            found = step_stability(loss, optimizers[0], generator=trial.generator("probe"))
            row |= {"sharpness": found.sharpness, "bound": found.bound}
        return row

    fitted = fit(
        model,
        optimizers,
        mse_loss,
        Batches(images, images, batch_size=config.batch, generator=trial.generator("order")),
        epochs=config.epochs,
        log=log,
        rules=make_rules(optimizers),
        measure=measure,
    )
    rows = [row for row in log.rows() if "epoch" in row]
    with torch.no_grad():
        final = {key: value for key, value in rows[-1].items() if key != "seconds"}
        values = final | {"ssim": _mean_ssim(tests, model(tests))}
    outcome = (
        "dead" if fitted.outcome == "finished" and _dead(rows, _mse(tests, images.mean(dim=0))) else fitted.outcome
    )
    for warning in _warnings(rows, outcome):
        log.warn(warning)
    return Ending(values, outcome, fitted.seconds, data={config.data: data.fingerprint})


def _mse(images: Tensor, reconstructions: Tensor) -> float:
    """Squared error of (N, C, H, W) images, summed over the pixels of one and averaged over all."""
    return float((reconstructions - images).square().sum(dim=(1, 2, 3)).mean())


def _mean_ssim(images: Tensor, reconstructions: Tensor) -> float:
    """Mean structural similarity of (N, C, H, W) images in [0, 1]; the mean over channels for colour."""
    pairs = zip(images.cpu().numpy(), reconstructions.cpu().numpy(), strict=True)
    return fmean(float(structural_similarity(a, b, data_range=1.0, channel_axis=0)) for a, b in pairs)


def _dead(rows: Sequence[Mapping[str, Any]], ignorance: float) -> bool:
    """A silent death: every number finite, a singular value exploded, nothing learnt.

    ``ignorance`` is the test MSE of answering every image with the mean of the training images. The untrained network
    would be too low a bar: its grey is further from most images than a saturated black.
    """
    growth = max(rows[-1][f"s_max {name}"] / rows[0][f"s_max {name}"] for name in LAYERS)
    return bool(growth > GROWTH and rows[-1]["test_mse"] >= ignorance)


def _warnings(rows: Sequence[Mapping[str, Any]], outcome: str) -> list[str]:
    """What a reader of the run's numbers must know; made from the finished rows, so a resumed run says the same."""
    found = []
    beyond = [row for row in rows if (row.get("bound") or 0) > 2]
    if beyond:
        factor, peak = max(row["bound"] for row in beyond) / 2, max(row.get("sharpness") or 0.0 for row in beyond)
        found.append(
            f"lr times the step's gain (1 + s² for CSGD) passed the stable limit 2/h at epoch {beyond[0]['epoch']}, "
            f"at most {factor:.2g}-fold; the step's own sharpness peaked at {peak:.2g} (unstable from 2 on)"
        )
    if outcome == "dead":
        found.append("silent death: every number is finite, but singular values exploded and nothing was learnt")
    return found
