"""What the experiments of seed 002 have in common: which network learns which images, and by which recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from thalweg.lab.experiment import Settings

__all__ = ["CIFAR", "FRAMES", "INITS", "METHODS", "TIGHT", "FrameSettings", "Init", "Method"]

Method = Literal["none", "mhe", "so", "srip", "ocnn", "frame", "polyak", "spectral"]
Init = Literal["he", "frame"]

METHODS = {
    "none": "none",
    "mhe": "MHE",
    "so": "SO",
    "srip": "SRIP",
    "ocnn": "OCNN",
    "frame": "frame",
    "polyak": "frame, own step",
    "spectral": "frame, spectral form",
}

FRAMES = ("frame", "polyak", "spectral")  # the penalties that are to replace weight decay
TIGHT = ("frame", "polyak")  # of them, the seed's form, which needs tight frames to start from

INITS = {"he": "He", "frame": "tight frames"}

# 5000 real images at half their size on a network of 43 thousand weights: a CPU's share of the published setting.
CIFAR = {"data": "cifar10", "samples": 5000, "tests": 2000, "shrink": 2}


class FrameSettings(Settings):
    """Network, data and optimizer; by default a small plain network on digits."""

    data: str = Field("digits", description="ours; seed 002, slide 11: cifar10, cifar100, svhn")
    samples: int = Field(0, ge=0, description="ours: train on the first so many images; 0: all")
    tests: int = Field(0, ge=0, description="ours: test on the first so many images; 0: all")
    shrink: int = Field(1, ge=1, description="ours: images are averaged over squares of this side")
    augment: bool = Field(
        False, description="random crops (padding an eighth of the side), flips on CIFAR; not in the slides"
    )
    network: Literal["plain8", "resnet8", "resnet34", "resnet50"] = Field(
        "plain8", description="slide 11: resnet34, resnet50; ours for CPUs: ResNet-8 and the same without shortcuts"
    )
    width: int = Field(12, ge=1, description="channels of the stem: 64 in ResNet-34 and -50; ours for the small ones")
    lower: float = Field(0.5, ge=0, description="A; not in the slides, ours")
    upper: float = Field(2.0, gt=0, description="B; not in the slides, ours")
    coefficient: float = Field(0.0, ge=0, description="of the penalty; 0: its recipe's (see docs/experiments)")
    classifier: bool = Field(
        False, description="ours: whether the frame penalty takes the last layer too, as the seed's sum does"
    )
    lr: float = Field(0.1, gt=0, description="not in the slides; the public CIFAR recipes'")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="not in the slides; the public CIFAR recipes', Nesterov's form"
    )
    batch: int = Field(128, ge=2, description="not in the slides; the public CIFAR recipes'")
    epochs: int = Field(8, ge=1, description="ours; not in the slides, 200 in the public CIFAR recipes")

    @field_validator("upper")
    @classmethod
    def _in_order(cls, upper: float, info: ValidationInfo) -> float:
        if upper < (lower := info.data.get("lower", upper)):
            raise ValueError(f"at least lower={lower:g} expected, as [lower, upper] is where spectra are to lie")
        return upper
