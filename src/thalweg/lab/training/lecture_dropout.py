"""Dropout without training: how near the average over masks comes to the prediction with all neurons."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thalweg.lecture import all_masks, geometric_average, inverted_dropout, mask_average, mask_probabilities

__all__ = ["averages", "expectation"]

HIDDEN, OUTPUTS = 64, 5


def averages(N: int, p: float, generator: torch.Generator) -> dict[str, float]:
    """Relative difference between the average of the 2ᴺ thinned networks and the one with scaled weights.

    Args:
        N: neurons of the layer that is thinned.
        p: the probability to drop one.
        generator: draws the layer and the weights behind it.

    Returns:
        "linear", "softmax", "geometric" (of the softmax) and "behind ReLU": largest difference over largest output.

    >>> found = averages(4, 0.5, torch.Generator().manual_seed(0))
    >>> found["linear"] < 1e-15 < found["softmax"]
    True
    """

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, W, V = draw(N).relu(), draw(N, OUTPUTS), draw(OUTPUTS, OUTPUTS)
    masks = all_masks(N, dtype=x.dtype)
    weights = mask_probabilities(masks, p)
    outputs, scaled = (masks * x) @ W, (1 - p) * x @ W

    def gap(average: torch.Tensor, single: torch.Tensor) -> float:
        return float((average - single).abs().max() / torch.stack([average, single]).abs().max())

    return {
        "linear": gap(mask_average(outputs, weights), scaled),
        "softmax": gap(mask_average(outputs.softmax(-1), weights), scaled.softmax(-1)),
        "geometric": gap(geometric_average(outputs.softmax(-1), weights), scaled.softmax(-1)),
        "behind ReLU": gap(mask_average(outputs.relu() @ V, weights), scaled.relu() @ V),
    }


def expectation(p: float, counts: Sequence[int], generator: torch.Generator) -> list[float]:
    """‖mean of inverted dropout over n masks - x‖/‖x‖ for every n of ``counts``, which rise.

    >>> near, nearer = expectation(0.5, [1, 10000], torch.Generator().manual_seed(0))
    >>> nearer < 0.03 < near
    True
    """
    x = torch.randn(HIDDEN, generator=generator, dtype=torch.float64).abs()
    total, drawn, found = torch.zeros_like(x), 0, []
    for count in counts:
        total += inverted_dropout(x.expand(count - drawn, -1), p, generator=generator).sum(0)
        drawn = count
        found.append(float((total / count - x).norm() / x.norm()))
    return found
