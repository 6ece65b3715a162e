"""What the experiments of seed 001 have in common: which network learns which images, and with which loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from thalweg.lab.experiment import Settings

__all__ = ["ScaleSettings"]


class ScaleSettings(Settings):
    """Network, data and loss; by default a perceptron on digits, on which every phenomenon shows in CPU minutes."""

    data: str = Field("digits", description="ours; the seed's are cifar10 and cifar100")
    samples: int = Field(
        0, ge=0, description="train on the first so many images (use_data_size of the authors); 0: all"
    )
    tests: int = Field(0, ge=0, description="ours: test on the first so many images; 0: all")
    label_noise: float = Field(0.0, ge=0, le=1, description="share of training labels drawn at random")
    augment: bool = Field(False, description="crops, padding an eighth of the side, and flips of colour images")
    network: Literal["mlp", "convnet", "resnet18"] = Field("mlp", description="ours: mlp; section 3.1: the other two")
    width: int = Field(96, ge=1, description="of hidden layers (mlp); c, the authors' 32 (convnet, resnet18)")
    depth: int = Field(2, ge=1, description="hidden layers of the mlp")
    affine: bool = Field(False, description="the ordinary network: affine normalization, trained last layer")
    last_layer_norm: float = Field(10.0, gt=0, description="Frobenius norm of the frozen last layer; the authors' code")
    loss: Literal["cross-entropy", "mse"] = Field("cross-entropy", description="figure 9 has mse")
    batch: int = Field(128, ge=2, description="the authors' code")
    epochs: int = Field(200, ge=1, description="ours; the authors' code has 1000")
