"""The pre-activation ResNet-18 of seed 001.

    x -> conv 3x3 -> four stages of blocks, widths c, 2c, 4c, 8c -> BN - ReLU - global average - linear without bias
    block:  h = ReLU(BN(x));  x' = conv(ReLU(BN(conv(h)))) + x       the first block of stages 2, 3, 4 halves the image
                                                  and has conv 1x1(BN(h)) in place of x

As in the published code (tipt0p/periodic_behavior_bn_wd, tipt0p/three_regimes_on_the_sphere, c = 32) the shortcut has
its own BN before the 1x1 convolution. The seed (section 3.1) makes the network fully scale-invariant by normalization
without affine parameters and a last layer frozen at Frobenius norm 10. All convolutions that add to one residual stream
scale together: the stem with the second convolutions of stage 1, each shortcut with those of its stage; the first
convolution of a block scales alone. Deviation: the last pooling is global, which is the published 4x4 for 32x32 images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.nn.default_init import draw_default_
from thalweg.nn.last_layer import freeze_last_layer_

__all__ = ["PreActResNet"]


class PreActBlock(nn.Module):
    """conv(ReLU(BN(conv(h)))) + shortcut with h = ReLU(BN(x)): (N, c_in, H, W) to (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int, *, affine: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in, affine=affine)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out, affine=affine)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.BatchNorm2d(c_in, affine=affine), nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(x))
        branch: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(h))))
        return branch + (x if self.shortcut is None else self.shortcut(h))


class PreActResNet(nn.Module):
    """Pre-activation ResNet; by default ResNet-18, scale-invariant in every trainable parameter.

    Args:
        in_channels: channels of the images.
        width: c, channels of the first stage; the published scripts use 32.
        classes: number of outputs.
        blocks: blocks in each stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34.
        affine: the ordinary network: normalization with affine parameters, last layer trained.
        last_layer_norm: Frobenius norm of the frozen last layer; 10 for cross-entropy.
        generator: draws the initial weights (torch's defaults); None leaves them to the global random state.

    >>> model = PreActResNet(width=4, generator=torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 32,
        classes: int = 10,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        affine: bool = False,
        last_layer_norm: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not blocks or min(blocks) < 1:
            raise ValueError(f"every stage needs at least one block, got blocks={tuple(blocks)}")
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        channels = width
        layers: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage and not block else 1
                layers.append(PreActBlock(channels, width << stage, stride, affine=affine))
                channels = width << stage
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels, affine=affine)
        self.last = nn.Linear(channels, classes, bias=False)
        if generator is not None:
            draw_default_(self, generator)
        if not affine:
            freeze_last_layer_(self.last, last_layer_norm)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images``: (N, C, H, W)."""
        features = torch.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.last(features.mean((2, 3)))
        return logits
