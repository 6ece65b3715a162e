"""The ConvNet of seed 001: four 3x3 convolutions of widths c, 2c, 4c, 8c, batch normalization, one linear layer.

    [conv - BN - ReLU] x 4, with 2x2 max-pooling after the 2nd, 3rd and 4th -> 4x4 max-pooling -> linear

The seed (section 3.1) makes it fully scale-invariant by normalization without affine parameters and a frozen last
layer; the details are those of the published code (tipt0p/periodic_behavior_bn_wd, tipt0p/three_regimes_on_the_sphere:
c = 32, last layer with a bias, its weight's Frobenius norm 10). Deviation: the last pooling is adaptive, so that images
need not be 32x32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.nn.default_init import draw_default_
from thalweg.nn.last_layer import freeze_last_layer_

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Four convolutions and a linear layer; scale-invariant in every trainable parameter unless asked otherwise.

    ====================  ==========================================  ===========================
    variant               normalization                               last layer
    ====================  ==========================================  ===========================
    default               batch normalization, no affine parameters   frozen at a norm, bias too
    ``affine=True``       batch normalization with them               trained
    ``normalize=False``   none                                        trained
    ====================  ==========================================  ===========================

    Args:
        in_channels: channels of the images.
        width: c, channels of the first convolution; the published scripts use 32.
        classes: number of outputs.
        affine: the ordinary network.
        normalize: whether convolutions are normalized at all.
        last_layer_norm: Frobenius norm of the frozen last layer; 10 for cross-entropy.
        generator: draws the initial weights (torch's defaults); None leaves them to the global random state.

    >>> model = ConvNet(width=8, generator=torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 32,
        classes: int = 10,
        *,
        affine: bool = False,
        normalize: bool = True,
        last_layer_norm: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for k in range(4):
            layers.append(nn.Conv2d(channels, width << k, 3, padding=1, bias=False))
            channels = width << k
            if normalize:
                layers.append(nn.BatchNorm2d(channels, affine=affine))
            layers.append(nn.ReLU())
            if k > 0:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.last = nn.Linear(channels, classes)
        if generator is not None:
            draw_default_(self, generator)
        if normalize and not affine:
            freeze_last_layer_(self.last, last_layer_norm)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images``: (N, C, H, W), with H and W at least 8."""
        logits: Tensor = self.last(self.features(images))
        return logits
