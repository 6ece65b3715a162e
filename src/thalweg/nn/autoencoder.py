"""The autoencoder of seed 000, section 4.1: d - 128 - ReLU - 16 | 16 - 128 - ReLU - d - sigmoid, d = C·H·W pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thalweg.nn.default_init import draw_default_

__all__ = ["Autoencoder"]


class Autoencoder(nn.Module):
    """Encoder and decoder of two linear layers each; maps images in [0, 1] to images in (0, 1).

    Args:
        image_shape: (C, H, W); the seed's is (1, 28, 28).
        hidden: width of the two hidden layers.
        latent: width of the code; no activation follows it, as in the seed.
        generator: draws the initial weights (torch's defaults); None leaves them to the global random state.

    >>> model = Autoencoder((1, 28, 28), generator=torch.Generator().manual_seed(0))
    >>> model(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        hidden: int = 128,
        latent: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        pixels = math.prod(image_shape)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, pixels),
            nn.Sigmoid(),
            nn.Unflatten(1, image_shape),
        )
        if generator is not None:
            draw_default_(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct ``images``: (N, C, H, W)."""
        reconstruction: Tensor = self.decoder(self.encoder(images))
        return reconstruction
