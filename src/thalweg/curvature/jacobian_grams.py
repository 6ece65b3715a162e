r"""J_i J_iᵀ of every sample: how its outputs move with the weights, as a K x K matrix for each tensor of weights.

K backward passes go down to the outputs of the layers, without any weight gradient, for all samples at once;
`layer_jacobians` contracts what arrives there with the layers' inputs. A tensor that is used several times has its
derivatives added before they are multiplied.

Whether the layers' contributions are all there is, is not left to the list of layers: for one sample each J_i J_iᵀ is
compared with autograd's own derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from thalweg.curvature.evaluation import require_fixed_function, require_independent_samples, require_repeatable
from thalweg.curvature.layer_jacobians import NORMS, is_supported, layer_gram, layer_jacobian, unfolded
from thalweg.curvature.premises import is_separable

__all__ = ["bytes_per_sample", "check_grams", "jacobian_grams"]


@dataclass
class _Call:
    """One use of one layer: its input, and where its output leaves it in autograd's graph."""

    name: str
    module: nn.Module
    h: Tensor
    version: int
    output: GradientEdge
    size: int


@torch.enable_grad()
def jacobian_grams(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The outputs z: (n, …), and for each trainable parameter tensor W its share of J_i J_iᵀ: (n, K, K).

    >>> z, grams = jacobian_grams(nn.Linear(2, 1), torch.tensor([[3.0, 4.0]]))
    >>> {name: gram.item() for name, gram in grams.items()}  # |x|² and 1
    {'weight': 25.0, 'bias': 1.0}
    """
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not trainable:
        raise ValueError("the model has no trainable parameters: at least one must have requires_grad=True")
    z, calls = _forward(model, x)
    flat = z.reshape(len(z), -1)
    n, K = flat.shape
    uses: dict[str, list[tuple[int, str]]] = {name: [] for name in trainable}
    names = {id(param): name for name, param in trainable.items()}
    for i, call in enumerate(calls):
        for local, param in call.module.named_parameters(recurse=False):
            if param.requires_grad:
                uses[names[id(param)]].append((i, local))
    rows = [
        torch.autograd.grad(
            flat[:, c].sum(), [call.output for call in calls], retain_graph=c < K - 1, allow_unused=True
        )
        if calls
        else []
        for c in range(K)
    ]
    grams = {}
    with torch.no_grad():
        D: list[Tensor | None] = []
        for i, call in enumerate(calls):
            if call.h._version != call.version:
                raise ValueError(f"the input of layer {call.name!r} is changed in place later: switch inplace off")
            parts = [row[i] for row in rows]
            D.append(None if any(part is None for part in parts) else torch.stack(parts, 1))
        for name, used in uses.items():
            at = [(calls[i].module, local, calls[i].h, d) for i, local in used if (d := D[i]) is not None]
            if len(at) == 1:
                grams[name] = layer_gram(*at[0])
            else:  # used nowhere, or several times: derivatives add before they are multiplied
                J = sum((layer_jacobian(*a) for a in at), flat.new_zeros(n, K, 1))
                grams[name] = J @ J.mT
    return z.detach(), grams


def _forward(model: nn.Module, x: Tensor) -> tuple[Tensor, list[_Call]]:
    """The outputs on a graph that no parameter is part of, and every use of a layer with trainable parameters."""
    calls: list[_Call] = []
    hooks = []

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            h = args[0].detach()
            calls.append(_Call(name, module, h, h._version, get_gradient_edge(output), output.numel()))

        return hook

    try:
        for name, module in model.named_modules():
            if not any(param.requires_grad for param in module.parameters(recurse=False)):
                continue
            if not is_supported(module):
                raise ValueError(
                    f"no per-sample rule for the parameters of layer {name!r} ({type(module).__name__}): freeze them, "
                    "or use linear layers, convolutions, batch, layer and group normalization"
                )
            hooks.append(module.register_forward_hook(record(name)))
        with torch.enable_grad():
            # in place on an input that is a leaf would fail; the product is none
            constants = {name: param.detach() for name, param in model.named_parameters()}
            z = functional_call(model, constants, (x.detach().requires_grad_() * 1,))
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(z, Tensor) or z.ndim == 0 or len(z) != len(x):
        raise ValueError("the model must return one tensor with the samples along its first axis")
    return z, calls


def check_grams(model: nn.Module, x: Tensor) -> None:
    """Compare rᵀ J Jᵀ r with |Jᵀ r|² by autograd, for one sample, one r, each parameter: all that J is made of.

    Raises:
        ValueError: they differ, so that a parameter acts outside its own layer's forward; or samples are not
            independent of each other or of chance.
    """
    require_independent_samples(model)
    require_fixed_function(model)
    require_repeatable(lambda: model(x[:1]))
    z, grams = jacobian_grams(model, x[:1])
    slack = 10 * math.sqrt(torch.finfo(z.dtype).eps)
    if not is_separable(model, x):
        raise ValueError(
            "the output of a sample depends on the others in its batch: use model.eval(), and samples along the first "
            "axis"
        )
    r = torch.linspace(1, 2, z[0].numel(), dtype=z.dtype, device=z.device)
    names = list(grams)
    params = dict(model.named_parameters())
    constants = {name: param.detach().requires_grad_(name in grams) for name, param in params.items()}
    with torch.enable_grad():
        z = functional_call(model, constants, (x[:1].detach(),)).flatten()
        grads = (
            torch.autograd.grad(z @ r, [constants[name] for name in names], allow_unused=True)
            if z.requires_grad
            else [None] * len(names)
        )
    for name, grad in zip(names, grads, strict=True):
        expected = 0.0 if grad is None else float(grad.square().sum())
        found = float(r @ grams[name][0] @ r)
        size = float(grams[name][0].norm() * (r @ r))
        if abs(found - expected) > slack * max(size, expected):
            raise ValueError(
                f"the parameter {name!r} acts on the output otherwise than through the forward of its own layer: call "
                "the layer, not its weight"
            )


def bytes_per_sample(model: nn.Module, x: Tensor) -> int:
    """What a sample holds at the peak: the graph, K derivatives of each output, one layer's columns and Jacobian."""
    z, calls = _forward(model, x[:1])
    K = z[0].numel()
    held = K + sum(call.h.numel() + (K + 2) * call.size for call in calls)
    largest = max((K * sum(p.numel() for p in call.module.parameters(recurse=False)) for call in calls), default=0)
    columns = max((unfolded(c.module, c.h).numel() for c in calls if not isinstance(c.module, NORMS)), default=0)
    return z.element_size() * (held + largest + columns)
