"""The seeds' networks."""

from thalweg.nn.autoencoder import Autoencoder
from thalweg.nn.default_init import draw_default_

__all__ = ["Autoencoder", "draw_default_"]
