"""Paths of descent and the surfaces below them as rows of a log, and descent by noisy gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from thalweg.lab.trial import Log
from thalweg.lecture import descend, gradient_descent, minibatch_gradient

__all__ = ["grid", "noise", "record"]

POINTS = 49  # of a grid along each axis


def record(log: Log, paths: Mapping[str, Tensor]) -> None:
    """A row for each step, with "NAME 1", "NAME 2", ... for the coordinates; shorter paths end earlier."""
    for step in range(max(len(path) for path in paths.values())):
        row = {
            f"{name} {place}": value
            for name, path in paths.items()
            if step < len(path)
            for place, value in enumerate(path[step].flatten().tolist(), 1)
        }
        log.row(epoch=step, **row)


def grid(log: Log, f: Callable[[Tensor], Tensor], name: str, *, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Heights of f on a grid: a row for each x₁ (as ``epoch``), with "NAME @ X2" for every x₂."""
    x1, x2 = (torch.linspace(*ends, POINTS, dtype=torch.float64) for ends in (x, y))
    heights = f(torch.stack(torch.meshgrid(x1, x2, indexing="ij"), -1))
    for at, row in zip(x1.tolist(), heights.tolist(), strict=True):
        log.row(epoch=at, **{f"{name} @ {place:.6g}": value for place, value in zip(x2.tolist(), row, strict=True)})


def noise(log: Log, summands: int, batches: Sequence[int], trials: int, generator: torch.Generator) -> dict[str, float]:
    """Descent on Q = 1/l Σ (xᵢᵀ w - yᵢ)² by mini-batches of n, and the variance of their gradients.

    Rows: the paths "n = N" by step, Q on a grid, "variance" and "theory" σ²/n (l - n)/(l - 1) by n.

    Args:
        log: the run's log.
        summands: l.
        batches: every n.
        trials: gradients drawn for each n.
        generator: draws the regression and the batches.

    Returns:
        "bias" of the single summand's gradient in standard errors, and "gain", how many times less a batch of 16
        varies than one summand.
    """
    double = torch.float64
    X = torch.randn(summands, 2, generator=generator, dtype=double) * torch.tensor([1.0, 0.5], dtype=double)
    y = X @ torch.tensor([1.0, 1.0], dtype=double) + 0.5 * torch.randn(summands, generator=generator, dtype=double)

    def gradients(w: Tensor, i: Tensor) -> Tensor:
        return 2 * (X[i] @ w - y[i]).unsqueeze(-1) * X[i]

    start = torch.tensor([-0.7, -0.5], dtype=double)
    estimates = {n: minibatch_gradient(gradients, summands, n, generator=generator) for n in batches}
    record(log, {f"n = {n}": descend(gradient_descent, g, start, eta=0.08, steps=80).w for n, g in estimates.items()})
    grid(log, lambda w: (w @ X.T - y).square().mean(-1), "regression", x=(-1.2, 2.4), y=(-1.2, 2.4))
    each = gradients(start, torch.arange(summands))
    whole, spread = each.mean(0), each.var(0, correction=0).sum()
    found: dict[int, Tensor] = {n: torch.stack([g(start) for _ in range(trials)]) for n, g in estimates.items()}
    variance = {n: float((drawn - whole).square().sum(1).mean()) for n, drawn in found.items()}
    for n in batches:
        if n < summands:
            theory = float(spread) / n * (summands - n) / (summands - 1)
            log.row(epoch=n, variance=variance[n], theory=theory)
    bias = (found[1].mean(0) - whole).norm() / (spread / trials).sqrt()
    return {"bias": float(bias), "gain": variance[1] / variance[16]}
