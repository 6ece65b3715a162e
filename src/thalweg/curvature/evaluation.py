"""In which mode a model is evaluated: curvature belongs to a function of the weights, and dropout is none.

Batch normalization in training mode couples the samples of a batch and moves its running statistics; dropout draws at
random. A model that has either in training mode is refused until the caller says what is meant.
"""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from thalweg.invariance.twin import detached_copy

__all__ = ["Mode", "evaluation_copy"]

Mode = Literal["refuse", "eval", "batch"]


def evaluation_copy(model: nn.Module, mode: Mode) -> nn.Module:
    """A copy of ``model`` that is a function of its weights.

    Args:
        model: left as it is.
        mode: "refuse" batch normalization and dropout in training mode; "eval": running statistics and no dropout;
            "batch": the statistics of each batch as given, and no dropout.

    Raises:
        ValueError: an unknown mode, or layers that "refuse" refuses.

    >>> evaluation_copy(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "refuse")
    Traceback (most recent call last):
    ...
    ValueError: '1' (Dropout) is in training mode, where the loss is no function of the weights: call model.eval(), \
or give mode="eval" (running statistics, no dropout) or mode="batch" (statistics of each batch, no dropout)
    """
    if mode not in ("refuse", "eval", "batch"):
        raise ValueError(f'mode must be "refuse", "eval" or "batch", got {mode!r}')
    if mode == "refuse":
        for name, module in model.named_modules():
            if module.training and _depends_on_mode(module):
                raise ValueError(
                    f"{name!r} ({type(module).__name__}) is in training mode, where the loss is no function of the "
                    'weights: call model.eval(), or give mode="eval" (running statistics, no dropout) or mode="batch" '
                    "(statistics of each batch, no dropout)"
                )
        return detached_copy(model)
    twin = detached_copy(model).eval()
    if mode == "batch":
        for module in twin.modules():
            if isinstance(module, _BatchNorm):
                module.train()
    return twin


def _depends_on_mode(module: nn.Module) -> bool:
    rate = getattr(module, "dropout", 0.0)  # attention and recurrent layers keep their rate as a number
    random = isinstance(module, (_DropoutNd, nn.RReLU)) or (isinstance(rate, float) and rate > 0)
    return random or isinstance(module, _BatchNorm)
