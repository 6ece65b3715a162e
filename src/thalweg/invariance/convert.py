r"""Make an ordinary network fully scale-invariant: f(α x) = f(x) for all its trainable parameters x (seed 001, eq. 1).

The seed's recipe (section 3.1): normalization without affine parameters after every layer, and a fixed last layer. For
the network given that means

    normalization   γ, β removed; of a weight-normalized layer w = g v/|v| the norm g is frozen
    other layers    biases removed: a normalization takes most of them away anyway
    last layer      weight rescaled to a chosen Frobenius norm and frozen, together with its bias

No normalization is added: where a layer has none behind it the result is not fully invariant; `find_scale_groups`
tells which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from thalweg.invariance.twin import detached_copy

__all__ = ["Conversion", "make_scale_invariant"]

NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Conversion:
    """A converted copy of a model, and what was done to it.

    Attributes:
        model: the copy.
        changes: what happened to which parameter of the original.
        trainable: names of the parameters that can still be trained, all scale-invariant if the conversion is complete.
    """

    model: nn.Module
    changes: Mapping[str, str]
    trainable: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.changes)} parameters changed, {len(self.trainable)} left to train"]
        lines += [f"  {name}: {change}" for name, change in self.changes.items()]
        return "\n".join([*lines, "to train", *(f"  {name}" for name in self.trainable)])


def make_scale_invariant(
    model: nn.Module,
    *,
    last_layer_norm: float = 10.0,
    last_layer: str | None = None,
    generator: torch.Generator | None = None,
) -> Conversion:
    """Convert a copy of ``model``; the model itself stays as it is.

    Args:
        model: a network with normalization layers or normalized weights.
        last_layer_norm: Frobenius norm of the frozen last layer; the published experiments use 10 for cross-entropy.
        last_layer: name of the last linear or convolution layer; None takes the one that was defined last.
        generator: draws the last layer's weight anew (torch's default), so that runs can share it; None keeps it.

    Returns:
        The converted copy and a report of every change.

    Raises:
        ValueError: the model has no normalization, no such last layer, or nothing left to train; the norm asked for is
            not positive, or the last layer's weight is zero.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    >>> print(make_scale_invariant(model))
    4 parameters changed, 1 left to train
      0.bias: removed
      1.weight: removed
      1.bias: removed
      3.weight: rescaled to norm 10 and frozen
    to train
      0.weight
    """
    if not (last_layer_norm > 0 and math.isfinite(last_layer_norm)):
        raise ValueError(f"last_layer_norm must be positive and finite, got {last_layer_norm}")
    changed = detached_copy(model)
    changes: dict[str, str] = {}
    last_name, last = _find_last(changed, last_layer)
    normalized = _freeze_norms_of_weights(changed, last, changes)
    for name, module in changed.named_modules():
        if isinstance(module, NORMALIZATIONS):
            normalized = True
            _remove(module, name, ("weight", "bias"), changes)
            for flag in {"affine", "elementwise_affine"} & vars(module).keys():
                setattr(module, flag, False)
        elif isinstance(module, WEIGHTED) and module is not last:
            _remove(module, name, ("bias",), changes)
        elif isinstance(module, nn.MultiheadAttention):
            _remove(module, name, ("in_proj_bias", "bias_k", "bias_v"), changes)
    if not normalized:
        raise ValueError(
            "the model has no normalization, so none of its weights can become scale-invariant: add batch, layer or "
            "group normalization, or weight normalization, behind its layers"
        )
    _freeze_last(last, last_name, last_layer_norm, generator, changes)
    trainable = tuple(name for name, param in changed.named_parameters() if param.requires_grad)
    if not trainable:
        raise ValueError("nothing is left to train once the last layer is frozen: the model needs a normalized layer")
    return Conversion(changed, changes, trainable)


def _find_last(model: nn.Module, wanted: str | None) -> tuple[str, nn.Module]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    if not layers or (wanted is not None and wanted not in layers):
        asked = "" if wanted is None else f" called {wanted!r}"
        raise ValueError(f"the model has no linear or convolution layer{asked}; it has {', '.join(layers) or 'none'}")
    name = list(layers)[-1] if wanted is None else wanted
    return name, layers[name]


def _freeze_norms_of_weights(model: nn.Module, last: nn.Module, changes: dict[str, str]) -> bool:
    """Freeze g of every w = g v/|v| but the last layer's, which becomes plain; whether any weight is normalized."""
    normalized = False
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if parametrize.is_parametrized(module, "weight"):
            chain = module.parametrizations["weight"]
            if module is last:
                for part, _ in chain.named_parameters(recurse=False):
                    changes[f"{prefix}parametrizations.weight.{part}"] = f"replaced by {prefix}weight"
                parametrize.remove_parametrizations(module, "weight")
            elif any(isinstance(step, _WeightNorm) for step in chain):
                normalized = True
                chain.original0.requires_grad_(False)
                changes[f"{prefix}parametrizations.weight.original0"] = "frozen, the norm of a normalized weight"
        elif any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):
            if module is last:
                changes |= dict.fromkeys((f"{prefix}weight_g", f"{prefix}weight_v"), f"replaced by {prefix}weight")
                remove_weight_norm(module)
            else:
                normalized = True
                module.get_parameter("weight_g").requires_grad_(False)
                changes[f"{prefix}weight_g"] = "frozen, the norm of a normalized weight"
    return normalized


def _remove(module: nn.Module, name: str, kinds: tuple[str, ...], changes: dict[str, str]) -> None:
    for kind in kinds:
        if module._parameters.get(kind) is not None:
            module._parameters[kind] = None
            changes[f"{name}.{kind}" if name else kind] = "removed"


@torch.no_grad()
def _freeze_last(
    last: nn.Module, name: str, norm: float, generator: torch.Generator | None, changes: dict[str, str]
) -> None:
    prefix = f"{name}." if name else ""
    weight = last.get_parameter("weight")
    if generator is not None:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    if not weight.any():
        raise ValueError(f"{prefix}weight is zero and cannot be rescaled: give a generator to draw it anew")
    weight.mul_(norm / weight.norm())
    weight.requires_grad_(False)
    drawn = "" if generator is None else "drawn anew, "
    changes[f"{prefix}weight"] = f"{drawn}rescaled to norm {norm:g} and frozen"
    bias = last._parameters.get("bias")
    if bias is not None:
        bias.requires_grad_(False)
        changes[f"{prefix}bias"] = "frozen"
