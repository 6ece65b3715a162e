"""Random crops, flips and rotations of a whole batch at once, on the device where it lies."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

__all__ = ["Augment", "augment"]

Augment = Callable[[Tensor, torch.Generator], Tensor]


def augment(*, crop: int = 4, flip: bool = True, rotation: float = 0.0) -> Augment:
    """An augmentation: (images, generator) -> images, drawn anew for every image.

    Args:
        crop: images are padded with so many zeros on each side, and cut back to their size at a random place.
        flip: mirror every other image, on average.
        rotation: largest angle in degrees; bilinear, zeros outside.

    >>> images = torch.arange(4.0).view(1, 1, 2, 2)
    >>> augment(crop=0)(images, torch.Generator().manual_seed(1)).tolist()
    [[[[1.0, 0.0], [3.0, 2.0]]]]
    """

    def change(images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        rows = torch.arange(height).expand(count, -1)
        columns = torch.arange(width).expand(count, -1)
        if flip:
            columns = columns.where(torch.rand(count, 1, generator=generator) < 0.5, width - 1 - columns)
        if crop:
            shift = torch.randint(-crop, crop + 1, (2, count, 1), generator=generator)
            rows, columns = rows + shift[0], columns + shift[1]
        kept = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        place = (rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]).flatten(1)
        place, kept = place.to(images.device), kept.to(images.device)
        moved = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1)).view_as(images)
        moved = moved * kept[:, None]
        return _rotate(moved, rotation, generator) if rotation else moved

    return change


def _rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    angle = math.radians(degrees) * (2 * torch.rand(count, generator=generator) - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(count)
    ratio = height / width
    matrix = torch.stack([cos, -sin * ratio, zero, sin / ratio, cos, zero], 1).view(count, 2, 3)
    grid = affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)
