"""What a hidden neuron gets while the layers below it learn: its internal covariate shift."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.lab.training.lecture_networks import ACTIVATIONS
from thalweg.lab.training.loop import device
from thalweg.lecture import gaussian_mean

__all__ = ["LayerInputs", "linear_share"]


class LayerInputs:
    """Mean and standard deviation, over fixed images, of what one neuron of the second nonlinearity gets.

    In training mode, in which the batch's own statistics normalize. Calling it gives ``mean`` and ``spread`` of the
    first neuron, and ``quantiles`` as "5%", "50%" and "95%".

    Args:
        model: a `perceptron` with two hidden layers or more.
        images: what is sent through it.
    """

    def __init__(self, model: nn.Sequential, images: Tensor) -> None:
        kinds = tuple(type(make()) for make in ACTIVATIONS.values())
        second = [place for place, part in enumerate(model) if isinstance(part, kinds)][1]
        self.below, self.images = model[:second], images

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
        seen = self.below(self.images.to(device()))[:, 0]
        for buffer, before in kept:
            buffer.copy_(before)
        low, middle, high = torch.quantile(seen, torch.tensor([0.05, 0.5, 0.95]).to(seen)).tolist()
        return {
            "mean": float(seen.mean()), "spread": float(seen.std(correction=0)),
            "5%": low, "50%": middle, "95%": high,
        }  # fmt: skip


def linear_share(activation: str) -> float:
    """R² of the best line through f(z) for z ~ N(0, 1): how linear f is where normalization puts its inputs.

    By Stein's lemma the slope is E z f(z); R² = (E z f)²/(E f² - (E f)²).

    >>> round(linear_share("sigmoid"), 3), round(linear_share("ReLU"), 3)
    (0.984, 0.733)
    """
    f: nn.Module = ACTIVATIONS[activation]()
    slope, mean, power = (gaussian_mean(g) for g in (lambda z: z * f(z), f, lambda z: f(z).square()))
    return slope**2 / (power - mean**2)
