"""The weight of a module as its next forward pass would apply it, read without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["applied_weight", "at_rest", "uncompiled"]


def applied_weight(module: nn.Module, name: str = "weight") -> Tensor:
    """The tensor ``name`` of a module, with gradients to what it is made of.

    ``getattr`` alone is wrong after `torch.nn.utils.prune`, whose masked weight is as old as the last forward pass.

    Args:
        module: plain, parametrized or pruned. With the deprecated hook forms of weight_norm and spectral_norm the
            weight is as old as the last forward pass.
        name: of one of its weights.

    Raises:
        ValueError: a lazy module that has not seen data yet.

    >>> import torch
    >>> from torch.nn.utils import prune
    >>> layer = prune.custom_from_mask(nn.Linear(2, 1), "weight", torch.tensor([[1.0, 0.0]]))
    >>> with torch.no_grad():
    ...     _ = layer.weight_orig.fill_(3.0)
    >>> applied_weight(layer).tolist()
    [[3.0, 0.0]]
    """
    original, mask = module._parameters.get(f"{name}_orig"), module._buffers.get(f"{name}_mask")
    if original is not None and mask is not None:
        return original * mask.to(original.dtype)
    weight: Tensor = getattr(module, name)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"{type(module).__name__} has an uninitialized {name}: call the model once on real data first")
    return weight


def uncompiled(model: nn.Module) -> nn.Module:
    """The model itself behind ``torch.compile(model)``, with the names of its layers and hooks that are called.

    Raises:
        TypeError: something that is not a model.

    >>> import torch
    >>> model = nn.Linear(2, 2)
    >>> uncompiled(torch.compile(model, backend="eager")) is uncompiled(model) is model
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model is expected, a torch.nn.Module, got {type(model).__name__}")
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Parametrizations in evaluation mode: reading a weight does not move spectral_norm's power iteration on.

    >>> import torch
    >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
    >>> before = layer.parametrizations.weight[0]._u.clone()
    >>> with at_rest(layer):
    ...     _ = layer.weight
    >>> torch.equal(layer.parametrizations.weight[0]._u, before)
    True
    """
    lists = [module for module in uncompiled(model).modules() if isinstance(module, parametrize.ParametrizationList)]
    active = {inner for outer in lists for inner in outer.modules() if inner.training}
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True
