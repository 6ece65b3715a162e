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
    """An augmentation: (images, generator) -> images, (N, C, H, W) both, drawn anew for every image.

    Crop, flip and rotation in this order, as in the public CIFAR recipes (which rotate by 15 degrees or not at all).
    Draws are made on the generator's device and pixels moved on that of the images: with a CPU generator they are the
    same everywhere.

    Args:
        crop: images are padded with so many zeros on each side, and cut back to their size at a random place.
        flip: mirror every other image, on average.
        rotation: largest angle in degrees, at most 180; bilinear, zeros outside. Needs images of floating point.

    Raises:
        ValueError: a negative crop, or an angle out of range; on use, images of another shape or type.

    >>> images = torch.arange(4.0).view(1, 1, 2, 2)
    >>> augment(crop=0)(images, torch.Generator().manual_seed(1)).tolist()
    [[[[1.0, 0.0], [3.0, 2.0]]]]
    """
    if crop < 0 or not 0 <= rotation <= 180:
        raise ValueError(f"crop={crop}, rotation={rotation}: crop >= 0 and 0 <= rotation <= 180 expected")

    def change(images: Tensor, generator: torch.Generator) -> Tensor:
        if images.ndim != 4 or (rotation and not images.is_floating_point()):
            kind = "floating-point images" if rotation else "images"
            raise ValueError(f"{kind} (N, C, H, W) expected, got {images.dtype} of shape {tuple(images.shape)}")
        count, _, height, width = images.shape
        device = generator.device
        rows = torch.arange(height, device=device).expand(count, -1)
        columns = torch.arange(width, device=device).expand(count, -1)
        if flip:
            coins = torch.rand(count, 1, generator=generator, device=device)
            columns = columns.where(coins < 0.5, width - 1 - columns)
        if crop:
            shift = torch.randint(-crop, crop + 1, (2, count, 1), generator=generator, device=device)
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
    angle = math.radians(degrees) * (2 * torch.rand(count, generator=generator, device=generator.device) - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    ratio = height / width  # coordinates run from -1 to 1 on both axes
    matrix = torch.stack([cos, -sin * ratio, zero, sin / ratio, cos, zero], 1).view(count, 2, 3)
    grid = affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)
