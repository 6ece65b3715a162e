"""What the experiments of seed 003 have in common: which bias-free network learns which images, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from thalweg.lab.experiment import Settings

__all__ = ["NETWORKS", "Head", "LandscapeSettings", "Pooling"]

Head = Literal["average", "whole", "linear"]
Pooling = Literal["none", "max", "average"]

NETWORKS = {"conv2d": "2-D convolutions", "conv1d": "1-D convolutions", "mlp": "perceptron"}


class LandscapeSettings(Settings):
    """A product of matrices on standardised images; channel counts, kernels and depths of the seed are unpublished."""

    data: str = Field("digits", description="the seed has MNIST, Fashion-MNIST, CIFAR-10; digits are ours")
    samples: int = Field(0, ge=0, description="the first so many training images; the predecessor has 10000; 0: all")
    network: Literal["conv2d", "conv1d", "mlp"] = Field(
        "conv2d",
        description="the seed has both kinds of convolution (on the image row by row in 1-D); its predecessor: mlp",
    )
    layers: int = Field(
        2, ge=1, description="ours: L, convolutions before the last layer; mlp: the predecessor's depth d"
    )
    kernel: int = Field(3, ge=1, description="ours: side of the kernels, odd")
    filters: int = Field(8, ge=1, description="ours: channels; mlp: the predecessor's hidden width")
    pooling: Pooling = Field("none", description="ours: behind the first ReLU")
    window: int = Field(2, ge=2, description="ours: side of the pooling windows, or their length in 1-D")
    head: Head = Field(
        "linear", description="ours: the last convolution averaged or as large as the map, or linear layers"
    )
    linear: int = Field(1, ge=1, description="ours: linear layers of the linear head, the seed's P")
    width: int = Field(16, ge=1, description="ours: of the hidden ones among them")
    lr: float = Field(1e-3, gt=0, description="of Adam; the predecessor's code")
    batch: int = Field(64, ge=1, description="the predecessor's code")
    epochs: int = Field(10, ge=0, description="the predecessor's code")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("an odd number expected, so that maps keep their size")
        return kernel
