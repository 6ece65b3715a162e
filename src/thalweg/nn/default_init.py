"""torch's own default initialization, drawn from a generator instead of the global random state."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["draw_default_"]


def draw_default_(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every linear and convolution layer of ``model`` anew, in place, as ``reset_parameters`` would.

    Weights and biases are uniform on ±1/√fan_in (variance 1/(3·fan_in)), in the order of ``model.modules()``. Other
    layers keep what they have.

    Args:
        model: changed in place.
        generator: draws all of them; of the device of the weights.

    >>> layer = nn.Linear(4, 2)
    >>> draw_default_(layer, torch.Generator().manual_seed(0))
    >>> bool(layer.weight.abs().max() <= 0.5)
    True
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                fan_in = nn.init._calculate_fan_in_and_fan_out(module.weight)[0]
                bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
