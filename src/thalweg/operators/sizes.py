"""The sizes of the maps that every layer of a model takes, by one dry forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thalweg.operators.weights import uncompiled

__all__ = ["InputShapes", "input_shapes"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class InputShapes(dict[str, tuple[int, ...]]):
    """Input shape without batch axes by name of the layer.

    Attributes:
        several: layers used at more than one size, with all of them; the dictionary holds the first.
        unused: convolutions that the forward pass did not reach; the dictionary does not hold them.
    """

    several: Mapping[str, tuple[tuple[int, ...], ...]]
    unused: tuple[str, ...]


@torch.no_grad()
def input_shapes(model: nn.Module, sample: Tensor | tuple[Any, ...]) -> InputShapes:
    """What every Linear and convolution of a model takes: `LayerOperator.of` needs it.

    One forward pass in evaluation mode on copies of the buffers. Buffers, the random state and the training mode of
    every module are afterwards what they were. A Linear acts on the last axis, so its shape is (in_features,) wherever
    it stands.

    Args:
        model: any model; of a compiled one, the model inside, by whose names the shapes go.
        sample: one batch, as small as the model allows; a tuple is several arguments.

    Returns:
        The shapes, in the order of ``model.named_modules()``, where a shared module has one name. A module used at
        several sizes is named in a warning and in ``several``.

    Raises:
        ValueError: parameters that are not initialized yet (lazy modules).
        TypeError: a shape in place of a sample, or something that is not a model.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    >>> input_shapes(model, torch.zeros(2, 1, 8, 8))
    {'0': (1, 8, 8), '3': (36,)}
    """
    model = uncompiled(model)
    if isinstance(sample, tuple) and all(isinstance(size, int) for size in sample):
        raise TypeError(f"sample is a batch, or a tuple of arguments, got the shape {sample}: give torch.zeros(1, ...)")
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("the model has uninitialized parameters: call it once on real data, then ask for its sizes")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, CONVOLUTIONS)}
    seen: dict[str, dict[tuple[int, ...], None]] = {name: {} for name in layers}

    def look(name: str, axes: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            seen[name][tuple(x.shape[-axes:])] = None

        return hook

    modes = [(module, module.training) for module in model.modules()]
    hooks = [
        layer.register_forward_pre_hook(look(name, 1 + len(layer.kernel_size)), with_kwargs=True)
        for name, layer in layers.items()
    ]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    try:
        with torch.random.fork_rng([device.index for device in devices], device_type=kind):
            model.eval()
            copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
            functional_call(model, copies, sample)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    shapes = InputShapes()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            shapes[name] = (layer.in_features,)
        elif seen.get(name):
            shapes[name] = next(iter(seen[name]))
    shapes.several = {name: tuple(sizes) for name, sizes in seen.items() if len(sizes) > 1}
    shapes.unused = tuple(name for name, sizes in seen.items() if not sizes)
    if shapes.several:
        listed = "; ".join(f"{name or 'the model'}: {', '.join(map(str, s))}" for name, s in shapes.several.items())
        warnings.warn(f"used at several sizes, of which the first is taken: {listed}", stacklevel=3)  # past no_grad
    return shapes
