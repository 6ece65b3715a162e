"""A weight of a model as a penalty sees it: where it is, what it is made of, and the matrix its layer applies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg.operators.weights import applied_weight, uncompiled
from thalweg.regularize.gram import grouped_kernel

__all__ = ["CONVOLUTIONS", "TRANSPOSED", "Layer", "check_matrices", "weights_of"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight of a model, by the module that applies it.

    Attributes:
        name: the module's name in the model, "" for the model itself.
        module: the module.
        tensor: the name of the weight in the module.
        input_shape: what the module takes, without the batch axis; known after `LayerPenalty.prepare`.
        final: whether the module is the last `torch.nn.Linear` of the model: by custom its output layer.
    """

    name: str
    module: nn.Module
    tensor: str = "weight"
    input_shape: tuple[int, ...] | None = None
    final: bool = False

    @property
    def path(self) -> str:
        """The weight's name in the model, as in ``named_parameters``."""
        return f"{self.name}.{self.tensor}" if self.name else self.tensor

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Whether the module's name or the weight's fits."""
        return bool(pattern.match(self.name) or pattern.match(self.path))

    @property
    def not_the_weight(self) -> str:
        """Why this tensor is no matrix that the layer applies; "" if it is one."""
        if self.tensor == "weight":
            return ""
        if self.tensor in ("weight_orig", "weight_g", "weight_v"):
            return "its layer's weight is computed by a hook, a deprecated form: use torch.nn.utils.parametrizations"
        return "not the weight of its layer"

    @property
    def weight(self) -> Tensor:
        """The weight as the module applies it, in float32 or wider."""
        weight = applied_weight(self.module, self.tensor)
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    @property
    def kernel(self) -> Tensor:
        """The weight as (groups, out, in, taps…): what every group of output channels does to its input channels."""
        kernel = grouped_kernel(self.weight, getattr(self.module, "groups", 1))
        return kernel.transpose(1, 2) if isinstance(self.module, TRANSPOSED) else kernel  # stored as (in, out / groups)

    @property
    def matrices(self) -> Tensor:
        """The weight as (groups, m, n) with n = in · taps: one row for each output channel."""
        return self.kernel.flatten(2)


def check_matrices(W: Tensor) -> None:
    """Refuse what is neither a matrix (m, n) nor blocks (b, m, n) with elements.

    Raises:
        ValueError: that.

    >>> check_matrices(torch.ones(3))
    Traceback (most recent call last):
    ValueError: a matrix (m, n) or blocks (b, m, n) expected, got shape (3,): a kernel as its rows is W.flatten(1)
    """
    if W.ndim not in (2, 3) or not W.numel():
        raise ValueError(
            f"a matrix (m, n) or blocks (b, m, n) expected, got shape {tuple(W.shape)}: a kernel as its rows is "
            "W.flatten(1)"
        )


def weights_of(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...] | None]
) -> Iterator[tuple[Layer, tuple[Tensor, ...]]]:
    """Every weight of the model with the parameters it is made of: itself, or the originals of its parametrization.

    >>> [layer.path for layer, _ in weights_of(torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager"), {})]
    ['0.weight', '0.bias']
    """
    model = uncompiled(model)
    inner = {m for p in model.modules() if isinstance(p, parametrize.ParametrizationList) for m in p.modules()}
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    for name, module in model.named_modules(remove_duplicate=False):
        if module in inner:
            continue
        shape, final = shapes.get(name), module in last
        if parametrize.is_parametrized(module):
            for tensor, originals in module.parametrizations.items():
                yield Layer(name, module, tensor, shape, final), tuple(originals.parameters())
        constant = module._buffers.get("weight")
        if constant is not None:
            yield Layer(name, module, "weight", shape, final), (constant,)
        for tensor, param in module._parameters.items():
            if param is not None:
                pruned = tensor.endswith("_orig") and hasattr(module, tensor.removesuffix("_orig") + "_mask")
                attribute = tensor.removesuffix("_orig") if pruned else tensor
                yield Layer(name, module, attribute, shape, final), (param,)
