r"""The bias-free networks of seed 003: at every input a product of matrices.

    z = Λ⁽ᴸ⁺¹⁾ T⁽ᴸ⁺¹⁾ Λ⁽ᴸ⁾ T⁽ᴸ⁾ … Λ⁽¹⁾ T⁽¹⁾ x          seed 003, "networks as a product of matrices"

T⁽ᵖ⁾ is a convolution in one or two dimensions or a linear layer, Λ⁽ᵖ⁾ ReLU, pooling or both. The seed counts L + 1
linear layers; three heads make its three settings:

    ===========  ========================================  =====================  ========================
    head         the last layers                           Λ⁽ᴸ⁺¹⁾                 statements of the seed
    ===========  ========================================  =====================  ========================
    "average"    a convolution to K maps of the same size  the mean of each map   theorems 1-2
    "whole"      a convolution as large as the map         the identity           theorems 1-2, lemma 3
    "linear"     flattening, linear layers                 the identity           lemma 4
    ===========  ========================================  =====================  ========================

Without convolutions the last is the perceptron of the predecessor (kisnikser/landscape-hessian), whose ``depth`` d
means d + 2 linear layers: ``hidden=(h,) * (d + 1)``. The seed's own channel counts, kernels and depths are not
published; convolutions here keep the size of the map (odd kernels, zero padding), so that kernel and depth can vary
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from thalweg.nn.default_init import draw_default_

__all__ = ["Head", "MatricizedNet", "Pooling"]

Head = Literal["average", "whole", "linear"]
Pooling = Literal["none", "max", "average"]

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
POOLS: dict[tuple[str, int], type[nn.Module]] = {
    ("max", 1): nn.MaxPool1d,
    ("max", 2): nn.MaxPool2d,
    ("average", 1): nn.AvgPool1d,
    ("average", 2): nn.AvgPool2d,
}


class MatricizedNet(nn.Sequential):
    """Convolutions and linear layers without biases, ReLU between them, one pooling at most.

    Args:
        shape: of one input: (C, H, W), or (C, d) for convolutions in one dimension; any for none.
        classes: K, number of outputs.
        convolutions: how many; a head that is one counts.
        filters: channels of every convolution but the last of a convolutional head.
        kernel: side of the kernels, odd.
        pooling: what follows the first ReLU besides, over windows of ``window``.
        window: side of the windows, kernel = stride.
        head: see the module's table.
        hidden: widths of hidden linear layers of the "linear" head.
        generator: draws the initial weights (torch's defaults); None leaves them to the global random state.

    Raises:
        ValueError: sizes that do not fit.

    >>> net = MatricizedNet((1, 8, 8), convolutions=3, filters=4, generator=torch.Generator().manual_seed(0))
    >>> [tuple(weight.shape) for weight in net.parameters()]
    [(4, 1, 3, 3), (4, 4, 3, 3), (4, 4, 3, 3), (10, 256)]
    >>> mlp = MatricizedNet((1, 8, 8), convolutions=0, hidden=(16, 16))  # the predecessor's depth 1
    >>> mlp(torch.ones(2, 1, 8, 8)).shape, any(module.bias is not None for module in mlp if hasattr(module, "bias"))
    (torch.Size([2, 10]), False)
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 10,
        *,
        convolutions: int = 2,
        filters: int = 8,
        kernel: int = 3,
        pooling: Pooling = "none",
        window: int = 2,
        head: Head = "linear",
        hidden: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        axes = len(shape) - 1
        if convolutions and axes not in CONVOLUTIONS:
            raise ValueError(f"shape={tuple(shape)}: (C, H, W) or (C, d) expected for convolutions")
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}: an odd number expected, so that maps keep their size")
        if head != "linear" and (not convolutions or hidden):
            raise ValueError(f"head={head!r} is a convolution: give convolutions >= 1 and no hidden linear layers")
        last = head != "linear"  # whether the last convolution belongs to the head
        if pooling != "none" and convolutions - last < 1:
            raise ValueError("pooling follows the first convolution that a ReLU follows: there is none")
        if pooling != "none" and not 1 <= window <= min(shape[1:]):
            raise ValueError(f"window={window}: from 1 to the map's smallest side, {min(shape[1:])}, expected")
        conv = CONVOLUTIONS.get(axes, nn.Conv2d)
        channels, sides = shape[0], list(shape[1:])
        layers: list[nn.Module] = []
        for place in range(convolutions - last):
            layers += [conv(channels, filters, kernel, padding=kernel // 2, bias=False), nn.ReLU()]
            channels = filters
            if place == 0 and pooling != "none":
                layers.append(POOLS[pooling, axes](window))
                sides = [side // window for side in sides]
        if head == "average":
            mean = nn.AdaptiveAvgPool2d(1) if axes == 2 else nn.AdaptiveAvgPool1d(1)
            layers += [conv(channels, classes, kernel, padding=kernel // 2, bias=False), mean, nn.Flatten()]
        elif head == "whole":
            # torch annotates the kernel as a tuple of the right length only
            layers += [conv(channels, classes, tuple(sides), bias=False), nn.Flatten()]  # type: ignore[arg-type]
        else:
            layers.append(nn.Flatten())
            features = channels * math.prod(sides)
            for width in hidden:
                layers += [nn.Linear(features, width, bias=False), nn.ReLU()]
                features = width
            layers.append(nn.Linear(features, classes, bias=False))
        super().__init__(*layers)
        if generator is not None:
            draw_default_(self, generator)
