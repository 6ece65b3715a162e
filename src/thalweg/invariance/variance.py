r"""The variance before normalization layers, as a multiple of their eps.

A layer that divides by √(σ² + eps) makes the weights before it scale-invariant only while σ² is far above eps: the
identities (2a) and (2b) of seed 001 are off by about eps/σ², and where σ² falls to eps the invariance is gone. On a
sphere at a very high effective learning rate one layer takes nearly all of the norm and the others collapse like that.

The variance of a batch normalization costs nothing: its own update of the running variance gives it back,
r' = (1 - m) r + m σ² n/(n - 1). Other layers need two passes over their input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

__all__ = ["VarianceWatch", "pre_normalization_variance"]

SPATIAL = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def pre_normalization_variance(layer: nn.Module, x: Tensor) -> Tensor | None:
    """σ² of everything that ``layer`` normalizes together: the variances its training forward pass divides by.

    Args:
        layer: batch, layer, group or instance normalization.
        x: the layer's input.

    Returns:
        A tensor of variances, or None for a module that does not normalize.

    >>> pre_normalization_variance(torch.nn.LayerNorm(2), torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    tensor([1., 0.])
    """
    x = x.detach()
    if isinstance(layer, _BatchNorm):
        return _variance(x, tuple(k for k in range(x.ndim) if k != 1))
    if isinstance(layer, _InstanceNorm):
        spatial = next(count for kind, count in SPATIAL.items() if isinstance(layer, kind))
        return _variance(x, tuple(range(-spatial, 0)))
    if isinstance(layer, nn.LayerNorm):
        return _variance(x, tuple(range(-len(layer.normalized_shape), 0)))
    if isinstance(layer, nn.GroupNorm):
        return _variance(x.reshape(len(x), layer.num_groups, -1), (-1,))
    return None


def _variance(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Population variance in two passes: five times faster on a CPU than torch.var, and no cancellation."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x - x.mean(dim, keepdim=True)).square_().mean(dim)


class VarianceWatch:
    """Hooks that keep the median of σ²/eps of every normalization layer, the least over the forward passes it sees.

    Counts training passes with gradients, and only those for which ``active()`` is true. The median of a layer's
    channels (of samples and groups, where it has those) tells a collapsed layer from a single dead channel.

    Args:
        model: its normalization layers are watched; functional calls are not seen.
        active: asked once per layer and forward pass.
    """

    def __init__(self, model: nn.Module, active: Callable[[], bool]) -> None:
        self._active = active
        self._running: dict[str, Tensor] = {}
        self.ratios: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for name, layer in model.named_modules():
            if isinstance(layer, (_BatchNorm, *SPATIAL, nn.LayerNorm, nn.GroupNorm)):
                self._handles += self._watch(name, layer)

    def remove(self) -> None:
        """Take all hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def _watch(self, name: str, layer: Any) -> list[RemovableHandle]:
        tracks = getattr(layer, "running_var", None) is not None  # if so, evaluation does not use the batch's variance

        def seen() -> bool:
            return self._active() and torch.is_grad_enabled() and (layer.training or not tracks)

        def before(layer: Any, args: tuple[Any, ...]) -> None:
            if seen():
                self._running[name] = layer.running_var.clone()

        def after(layer: Any, args: tuple[Any, ...], output: Any) -> None:
            if not seen():
                return
            x, old = args[0].detach(), self._running.pop(name, None)
            found = pre_normalization_variance(layer, x) if old is None else _batch_variance(layer, x, old)
            if found is not None and found.numel():
                ratio = found.median() / layer.eps
                self.ratios[name] = torch.minimum(ratio, self.ratios[name]) if name in self.ratios else ratio

        hooks = [layer.register_forward_pre_hook(before)] if tracks and isinstance(layer, _BatchNorm) else []
        return [*hooks, layer.register_forward_hook(after)]


def _batch_variance(layer: Any, x: Tensor, old: Tensor) -> Tensor:
    """σ² from the running variance before and after the batch; m is None for a cumulative average."""
    momentum = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    count = x.numel() // x.shape[1]
    if not momentum:
        return _variance(x, tuple(k for k in range(x.ndim) if k != 1))
    unbiased = torch.lerp(old, layer.running_var.detach(), 1.0 / momentum)
    return unbiased.clamp(min=0.0) * ((count - 1) / count)
