"""A batch through a chain of layers x' = f(W x), and a random gradient back through it."""

from __future__ import annotations

import torch
from torch import nn

from thalweg.lab.training.lecture_networks import ACTIVATIONS, RULES
from thalweg.lecture import forward_gain, kaiming, signal_power

__all__ = ["chain"]

SCALES = {"printed LeCun": 1 / 3, "LeCun": 1.0, "Glorot": 1.0, "Kaiming": 2.0}  # variance of a weight times m = n


def chain(
    activation: str, initialization: str, *, width: int, layers: int, samples: int, generator: torch.Generator
) -> list[dict[str, float]]:
    """Mean squares behind each layer, the inputs first.

    Args:
        activation: one of `ACTIVATIONS`.
        initialization: one of `RULES`, or "own gain".
        width: inputs and outputs of every layer.
        layers: how many.
        samples: normal inputs of variance 1.
        generator: draws inputs, weights and the gradient at the end.

    Returns:
        layers + 1 rows: "signal" E x², "theory" its value in the limit of wide layers, "spread" the variance over the
        inputs, "gradient" E (∂L/∂x)² for a normal gradient of variance 1 at the end.

    >>> rows = chain("ReLU", "Kaiming", width=64, layers=2, samples=8, generator=torch.Generator().manual_seed(0))
    >>> len(rows), rows[2]["theory"], 0.3 < rows[2]["signal"] < 3
    (3, 1.0, True)
    """
    f: nn.Module = ACTIVATIONS[activation]()
    gain = forward_gain(f) if initialization == "own gain" else 1.0
    x = torch.randn(samples, width, generator=generator).requires_grad_()
    signals = [x]
    for _ in range(layers):
        if initialization == "own gain":
            W = kaiming(width, width, gain=gain, generator=generator)
        else:
            W = RULES[initialization](width, width, generator=generator)
        signals.append(f(signals[-1] @ W.T))
    end = torch.randn(samples, width, generator=generator)
    gradients = torch.autograd.grad((signals[-1] * end).sum(), signals)
    theory = signal_power(f, SCALES.get(initialization, gain**2), layers=layers)
    return [
        {
            "signal": float(x.detach().square().mean()),
            "theory": float(q),
            "spread": float(x.detach().var(0, correction=0).mean()),
            "gradient": float(g.square().mean()),
        }
        for x, q, g in zip(signals, theory, gradients, strict=True)
    ]
