"""The Hessian of a network in training: both parts, both ends, trace and density; and a layer's Toeplitz matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.curvature import CurvatureOperator, decompose, eigsh, layer_curvature, per_sample_ggn, spectral_density
from thalweg.curvature.blocks import spectral_norm
from thalweg.invariance.twin import detached_copy
from thalweg.lab.experiment import Ending
from thalweg.lab.training.landscape_task import LandscapeTask, landscape_task
from thalweg.lab.training.snapshots import log_spaced
from thalweg.lab.trial import Log, Trial
from thalweg.operators import LayerOperator

__all__ = ["train_and_dissect"]

MOMENTS = 6  # besides the start, evenly spaced in the logarithm of the epoch
TOL = 1e-3  # of norms and eigenvalues
WIDTH = 0.01  # of the Gaussians that draw a density, in units of its largest |λ|
POINTS = 160
SIDE = 8  # of the map whose Toeplitz matrix is drawn
LARGEST = 1500  # parameters of a Hessian that is written out


class Dissection:
    """What is measured of the Hessian at the present weights, over the first ``samples`` training images.

    Args:
        task: the network and its images.
        samples: over which the mean Hessian is taken.
        single: how many of them are also looked at alone.
        top: eigenvalues.
    """

    def __init__(self, task: LandscapeTask, samples: int, single: int, top: int) -> None:
        self.task, self.top, self.single = task, top, single
        self.data = task.images[:samples].double(), task.labels[:samples]

    def operator(self) -> CurvatureOperator:
        """The Hessian in double precision."""
        return CurvatureOperator(self._model(), cross_entropy, self.data)

    def measure(self, whole: bool) -> dict[str, float]:
        """Norms, eigenvalues and trace of the mean Hessian, a median over single samples.

        ``blocks`` is the largest ||H_F,pp||/||H_O,pp|| of a layer p. If ``whole``, networks of up to 1500 parameters
        have ``trace gap``, |tr H - tr H_O|/tr H_O with tr H from all products with unit vectors.
        """
        H = self.operator()
        parts = decompose(H, TOL)
        ends = eigsh(H, self.top, "LA", TOL).values.tolist()
        low = float(eigsh(H, 1, "SA", TOL).values)
        gauss_newton = per_sample_ggn(H.model, cross_entropy, self.data).trace
        row = {
            "loss": float(H.loss()),
            "H": parts.hessian,
            "H_O": parts.gauss_newton,
            "H_F": parts.remainder,
            "ratio": parts.ratio,
            "ggn trace": gauss_newton,
            "lowest": low,
            "single ratio": self._single_ratio(),
            "blocks": max(_ratio(layer.remainder, layer.gauss_newton) for layer in layer_curvature(H, TOL)),
        }
        row |= {f"top {i}": value for i, value in enumerate(ends, 1)}
        if whole and H.shape[0] <= LARGEST:
            row["trace gap"] = abs(float(H.dense().trace()) - gauss_newton) / gauss_newton
        return row

    def density(self, log: Log, epoch: int, generator: torch.Generator) -> None:
        """Write the spectral density down as rows with ``t`` and ``density``, for this epoch as ``of epoch``."""
        found = spectral_density(self.operator(), deflate=self.top, vectors=4, steps=30, generator=generator)
        points = torch.cat([found.outliers, found.nodes.flatten()])
        low, high = float(points.min()), float(points.max())
        width = WIDTH * max(abs(low), abs(high))
        t = torch.linspace(low - 4 * width, high + 4 * width, POINTS, dtype=torch.float64)
        for place, value in zip(t.tolist(), found(t, width).tolist(), strict=True):
            log.row(**{"of epoch": epoch, "t": place, "density": value})

    def toeplitz(self, log: Log) -> None:
        """Write down the first filter's rows of T⁽¹⁾ on a small map: rows with ``i``, ``j``, ``T``, zeros left out."""
        layer = self.task.model[0]
        channels, *sides = self.data[0].shape[1:]
        small = [min(side, SIDE if len(sides) == 2 else SIDE**2) for side in sides]
        T = LayerOperator.of(layer, (channels, *small)).dense()[: math.prod(small)].detach()
        for i, j in T.nonzero().tolist():
            log.row(i=i, j=j, T=float(T[i, j]))

    def _model(self) -> nn.Module:
        return detached_copy(self.task.model).double()

    def _single_ratio(self) -> float:
        """Median of ||H_F,i||/||H_O,i|| over the single samples that move the loss at all; 0 if none does."""
        ratios = []
        for x, y in zip(self.data[0][: self.single], self.data[1][: self.single], strict=True):
            H = CurvatureOperator(self._model(), cross_entropy, (x.unsqueeze(0), y.unsqueeze(0)))
            remainder, ggn = (spectral_norm(H.with_kind(kind), 1e-2) for kind in ("remainder", "ggn"))
            if remainder or ggn:  # not a sample at which every unit is dead
                ratios.append(_ratio(remainder, ggn))
        return median(ratios) if ratios else 0.0


def _ratio(part: float, whole: float) -> float:
    """part/whole; 0 of nothing."""
    return part / whole if whole else math.inf if part else 0.0


def train_and_dissect(trial: Trial, log: Log, *, samples: int, single: int, top: int) -> Ending:
    """Train, measure at the start and at log-spaced epochs, draw the density at the start, early and at the end.

    The final values are those of the first and the last measurement, as "init: name" and "end: name".
    """
    config: Any = trial.config
    work = landscape_task(trial)
    dissection = Dissection(work, samples, single, top)
    moments = [0, *log_spaced(config.epochs, MOMENTS)]
    drawn = {0: "init", moments[len(moments) // 2]: "early", moments[-1]: "end"}

    def measure(epoch: int) -> Mapping[str, float]:
        if epoch not in moments:
            return {}
        if epoch in drawn:
            dissection.density(log, epoch, trial.generator("density"))
        return dissection.measure(epoch in (0, config.epochs))

    fitted = work.train(trial, log, measure=measure)
    rows = [row for row in log.rows() if "H" in row]
    if fitted.outcome == "diverged" or any(value is None for row in rows for value in row.values()):
        return Ending({}, "diverged", fitted.seconds, data=work.data)
    if config.network != "mlp":
        dissection.toeplitz(log)
    kept = ("seconds", "epoch", "lr", "train_loss")
    values = {
        f"{when}: {key}": value
        for when, row in {"init": rows[0], "end": rows[-1]}.items()
        for key, value in row.items()
        if key not in kept
    }
    return Ending(values, fitted.outcome, fitted.seconds, data=work.data)
