"""The seeds' networks."""

from thalweg.nn.autoencoder import Autoencoder
from thalweg.nn.cifar_resnet import CifarResNet
from thalweg.nn.convnet import ConvNet
from thalweg.nn.default_init import draw_default_
from thalweg.nn.last_layer import freeze_last_layer_
from thalweg.nn.matricized import MatricizedNet
from thalweg.nn.mlp import MLP
from thalweg.nn.resnet import PreActResNet

__all__ = [
    "MLP",
    "Autoencoder",
    "CifarResNet",
    "ConvNet",
    "MatricizedNet",
    "PreActResNet",
    "draw_default_",
    "freeze_last_layer_",
]
