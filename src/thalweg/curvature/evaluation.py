"""In which mode a model is evaluated: curvature belongs to a function of the weights, and dropout is none.

Batch normalization in training mode couples the samples of a batch and moves its running statistics; dropout draws at
random. A model that has either in training mode is refused until the caller says what is meant. What cannot be seen in
the layers, such as a dropout called as a function, shows when the model is called twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm

from thalweg.invariance.twin import detached_copy

__all__ = [
    "Mode",
    "agree",
    "evaluation_copy",
    "is_random",
    "require_autograd",
    "require_fixed_function",
    "require_independent_samples",
    "require_repeatable",
    "twice_differentiable",
]

Mode = Literal["refuse", "eval", "batch"]


def evaluation_copy(model: nn.Module, mode: Mode) -> nn.Module:
    """A copy of ``model`` that is a function of its weights.

    Args:
        model: left as it is.
        mode: "refuse" batch normalization and dropout in training mode; "eval": running statistics and no dropout;
            "batch": the statistics of each batch as given, and no dropout.

    A lookup's gradient is dense and that of the loss here: ``sparse`` changes its layout, ``scale_grad_by_freq`` it.

    Raises:
        ValueError: an unknown mode, or layers that "refuse" refuses.

    >>> evaluation_copy(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "refuse")
    Traceback (most recent call last):
    ...
    ValueError: layer '1' (Dropout) is in training mode, where the loss is no function of the weights: call \
model.eval(), or give mode="eval" (running statistics, no dropout) or mode="batch" \
(statistics of each batch, no dropout)
    """
    if mode not in ("refuse", "eval", "batch"):
        raise ValueError(f'mode must be "refuse", "eval" or "batch", got {mode!r}')
    if mode == "refuse":
        for name, module in model.named_modules():
            # in training mode spectral normalization improves its vectors at every call
            if is_random(module) or (module.training and isinstance(module, (_BatchNorm, _SpectralNorm))):
                raise ValueError(
                    f"{_place(name, module)} is in training mode, where the loss is no function of the weights: call "
                    'model.eval(), or give mode="eval" (running statistics, no dropout) or mode="batch" '
                    "(statistics of each batch, no dropout)"
                )
    twin = detached_copy(model) if mode == "refuse" else detached_copy(model).eval()
    for module in twin.modules():
        if mode == "batch" and isinstance(module, _BatchNorm):
            module.train()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = module.scale_grad_by_freq = False
    return twin


def require_autograd() -> None:
    """Refuse to work where no derivative can be taken; `torch.no_grad` is no obstacle.

    Raises:
        ValueError: inside `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("inside torch.inference_mode() no derivative can be taken: leave it, or use torch.no_grad()")


def is_random(module: nn.Module) -> bool:
    """Whether a layer draws at random in the mode it is in.

    >>> is_random(nn.Dropout(0.5)), is_random(nn.Dropout(0.5).eval()), is_random(nn.LSTM(2, 2, 2, dropout=0.1))
    (True, False, True)
    """
    rate = getattr(module, "dropout", 0.0)  # attention and recurrent layers keep their rate as a number
    drops = (isinstance(module, _DropoutNd) and module.p > 0) or (isinstance(rate, float) and rate > 0)
    return module.training and (drops or isinstance(module, nn.RReLU))


def require_fixed_function(model: nn.Module) -> None:
    """Refuse a model that draws at random.

    Raises:
        ValueError: dropout or another random layer in training mode.
    """
    for name, module in model.named_modules():
        if is_random(module):
            raise ValueError(
                f"{_place(name, module)} is random in training mode, so that the loss is no function "
                "of the weights: call its eval(), or model.eval()"
            )


def require_independent_samples(model: nn.Module) -> None:
    """Refuse a model whose loss on one sample depends on the batch around it.

    Raises:
        ValueError: a normalization by batch statistics.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{_place(name, module)} normalizes by the statistics of the batch, so that no "
                "sample has a loss of its own: use model.eval(), with running statistics"
            )


@torch.no_grad()
def require_repeatable(outputs: Callable[[], Any]) -> Any:
    """What two calls agree on; compared where it is one tensor.

    Raises:
        ValueError: they differ, or one fails.
    """
    try:
        z, again = outputs(), outputs()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise ValueError(f"the model, called as model(input), fails on the data: {error}") from error
    if isinstance(z, Tensor) and z.is_floating_point() and not agree(again, z):
        raise ValueError(
            "the model's output is random, and so are its loss and its curvature: give a deterministic model, by "
            "model.eval() if it has dropout"
        )
    return z


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of the same thing have half of the digits in common, beside the largest entry.

    >>> one = torch.ones(2, dtype=torch.float64)
    >>> agree(one + 1e-9, one), agree(one + 1e-6, one), agree(one, one[:1])
    (True, False, False)
    """
    tolerance = torch.finfo(b.dtype).eps ** 0.5
    scale = float(b.abs().nan_to_num(posinf=0.0).max())
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def twice_differentiable() -> AbstractContextManager[None]:
    """Attention by plain operations: torch's fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def _place(name: str, module: nn.Module) -> str:
    return f"layer {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
