"""The frozen last layer of a fully scale-invariant network (seed 001, section 3.1)."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["freeze_last_layer_"]


@torch.no_grad()
def freeze_last_layer_(layer: nn.Linear, norm: float) -> None:
    """Rescale the weight of ``layer`` to the Frobenius norm given and exclude weight and bias from training, in place.

    The logits of a scale-invariant network have no other scale than this one, so ``norm`` sets how confident it can be.

    Args:
        layer: changed in place.
        norm: > 0.

    Raises:
        ValueError: another norm.

    >>> layer = nn.Linear(4, 2)
    >>> freeze_last_layer_(layer, 10.0)
    >>> round(layer.weight.norm().item(), 4), layer.weight.requires_grad
    (10.0, False)
    """
    if not norm > 0:
        raise ValueError(f"the last layer's norm must be positive, got {norm}")
    layer.weight.mul_(norm / layer.weight.norm())
    layer.requires_grad_(False)
