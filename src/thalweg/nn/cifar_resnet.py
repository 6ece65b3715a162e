r"""Residual networks for 32 x 32 images: ResNet-34 and ResNet-50 of seed 002, and a small sibling.

    x -> conv 3x3 - BN - ReLU -> stages of blocks, each halving the map and doubling the width but the first
      -> global average -> linear
    basic block:       ReLU(BN(conv 3x3(ReLU(BN(conv 3x3(x))))) + shortcut(x))
    bottleneck block:  the same with conv 1x1, conv 3x3, conv 1x1, the last four times as wide
    shortcut:          x itself, or BN(conv 1x1(x)) where shape or width change

=====  ==========  ============  =====  ==========================================================================
depth  block       blocks        width  parameters for 10 classes
=====  ==========  ============  =====  ==========================================================================
8      basic       1, 1, 1       16     78 thousand; the smallest of the family 6 n + 2 of section 4.2
34     basic       3, 4, 6, 3    64     21.28 million
50     bottleneck  3, 4, 6, 3    64     23.52 million
=====  ==========  ============  =====  ==========================================================================

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016. The slides of seed
002 name ResNet-34 and ResNet-50 and no more. Both are the paper's ImageNet networks; as in the public CIFAR recipes the
stem is 3 x 3 with stride 1 and there is no max-pooling, so that a 32 x 32 image reaches the last stage as a 4 x 4 map.
The stride of a bottleneck is in its 3 x 3 convolution (torchvision's choice). Deviations for depth 8: projections in
place of the paper's zero-padded shortcuts. ``shortcuts=False`` is the paper's plain network.

Convolutions start with He's initialization N(0, 2 / fan_in), the linear layer with torch's default.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from thalweg.nn.default_init import draw_default_

__all__ = ["CifarResNet"]

SHAPES: dict[int, tuple[bool, tuple[int, ...], int]] = {  # depth -> bottleneck, blocks of each stage, width
    8: (False, (1, 1, 1), 16),
    34: (False, (3, 4, 6, 3), 64),
    50: (True, (3, 4, 6, 3), 64),
}
EXPANSION = 4


class ResidualBlock(nn.Module):
    """ReLU(branch(x) + shortcut(x)): (N, c_in, H, W) to (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int, *, bottleneck: bool, shortcuts: bool) -> None:
        super().__init__()
        inner = c_out // EXPANSION if bottleneck else c_out
        steps = (
            [(inner, 1, 1), (inner, 3, stride), (c_out, 1, 1)] if bottleneck else [(inner, 3, stride), (c_out, 3, 1)]
        )
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = c_in
        for width, kernel, step in steps:
            self.convolutions.append(nn.Conv2d(channels, width, kernel, step, kernel // 2, bias=False))
            self.norms.append(nn.BatchNorm2d(width))
            channels = width
        self.shortcut: nn.Module | None = None
        if shortcuts:
            same = stride == 1 and c_in == c_out
            projection = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.shortcut = nn.Identity() if same else nn.Sequential(projection, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        branch = x
        for place, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            branch = norm(convolution(torch.relu(branch) if place else branch))
        return torch.relu(branch if self.shortcut is None else branch + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-8, ResNet-34 or ResNet-50 with a 3 x 3 stem.

    Args:
        depth: 8, 34 or 50.
        in_channels: channels of the images.
        classes: number of outputs.
        width: channels of the stem; None is the depth's own, 16 or 64.
        shortcuts: False leaves them out: the plain network, 7 convolutions one after the other for depth 8.
        generator: draws the initial weights; None leaves them to the global random state.

    Raises:
        ValueError: another depth.

    >>> model = CifarResNet(8, width=4, generator=torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: Literal[8, 34, 50] = 34,
        in_channels: int = 3,
        classes: int = 10,
        *,
        width: int | None = None,
        shortcuts: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if depth not in SHAPES:
            raise ValueError(f"depth={depth!r}: expected one of {', '.join(map(str, SHAPES))}")
        bottleneck, counts, own = SHAPES[depth]
        channels = own if width is None else width
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        blocks: list[nn.Module] = []
        for stage, count in enumerate(counts):
            c_out = (self.stem.out_channels << stage) * (EXPANSION if bottleneck else 1)
            for block in range(count):
                stride = 2 if stage and not block else 1
                blocks.append(ResidualBlock(channels, c_out, stride, bottleneck=bottleneck, shortcuts=shortcuts))
                channels = c_out
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if generator is not None:
            draw_default_(self.last, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images``: (N, C, H, W)."""
        features = self.blocks(torch.relu(self.norm(self.stem(images))))
        logits: Tensor = self.last(features.mean((2, 3)))
        return logits
