r"""The exact trace of the Hessian of a piecewise-linear network: that of its Gauss-Newton matrix.

    tr H = tr H_O + tr H_F,   H_F = Σ_c dl/dz_c d²z_c/dθ²           seed 003, "decomposition of the Hessian"

If the outputs are affine in every parameter tensor alone, each diagonal block of d²z_c/dθ² is zero, so tr H_F = 0 and
tr H = tr H_O = Σ_i tr(A_i J_i J_iᵀ), which `per_sample_ggn` has exactly. ReLU networks are of this kind, with max or
average pooling, batch normalization in evaluation mode and residual connections; nothing is estimated. The seed does
not mention it.

Smooth activations and a weight that is used twice break the premise. It is therefore tested, not assumed: the blocks
are applied to random vectors, and where they are not zero the trace is refused with the layer and the reason.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from thalweg.curvature.chunks import LossFunction
from thalweg.curvature.evaluation import (
    require_autograd,
    require_fixed_function,
    require_independent_samples,
    twice_differentiable,
)
from thalweg.curvature.per_sample import MEMORY, batches, per_sample_ggn
from thalweg.invariance.twin import detached_copy

__all__ = ["exact_trace", "exact_trace_obstacle"]

PIECEWISE_LINEAR = (
    *(nn.Linear, nn.Bilinear, _ConvNd, _BatchNorm, _DropoutNd, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Threshold),
    *(_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd),
    *(_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, nn.Upsample, nn.PixelShuffle),
)


def exact_trace(
    model: nn.Module, loss_fn: LossFunction, data: Any, *, chunk_size: int | None = None, memory: int = MEMORY
) -> float:
    """Tr H of the loss over all data, with no error but rounding, for networks that are piecewise linear.

    Args:
        model: as for `per_sample_ggn`, with piecewise-linear activations and each weight used once.
        loss_fn: any loss that is the mean or the sum of those of its samples and twice differentiable.
        data: one pair (x, y), or an iterable of such pairs.
        chunk_size: samples to hold at once; None takes as many as fit into ``memory``.
        memory: bytes, an estimate.

    Returns:
        The trace over the parameters that require gradients.

    Raises:
        ValueError: the trace of the Hessian is not that of the Gauss-Newton matrix, with the reason; or as for
            `per_sample_ggn`.

    >>> model, x, y = nn.Linear(2, 2, bias=False), torch.tensor([[3.0, 4.0]]), torch.tensor([0])
    >>> torch.nn.init.zeros_(model.weight).sum().item()
    0.0
    >>> exact_trace(model, nn.functional.cross_entropy, (x, y))  # tr A |x|² = 1/2 · 25
    12.5
    """
    pairs = batches(model, data)
    first = list(islice(pairs, 1))
    if first and (reason := exact_trace_obstacle(model, first[0][0])):
        raise ValueError(f"the trace of the Hessian is not that of the Gauss-Newton matrix: {reason}; estimate it")
    return per_sample_ggn(model, loss_fn, chain(first, pairs), chunk_size=chunk_size, memory=memory).trace


def exact_trace_obstacle(model: nn.Module, x: Any) -> str | None:
    """Why tr H_F need not vanish, or None if it does.

    Args:
        model: the network.
        x: inputs, of which the first four are used.

    >>> exact_trace_obstacle(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 2)) is None
    True
    >>> exact_trace_obstacle(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.ones(1, 2))
    "layer '1' (Tanh) is not piecewise linear"
    """
    if not isinstance(x, Tensor):
        return "the input is not one tensor"
    require_autograd()
    model = detached_copy(model)  # a forward pass may change buffers
    try:
        require_independent_samples(model)
        require_fixed_function(model)
    except ValueError as error:
        return str(error)
    owners: dict[int, str] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if param.requires_grad and owners.setdefault(id(param), name) != name:
            return f"weight sharing: {owners[id(param)]!r} and {name!r} are one tensor"
    calls, z, params = _traced(model, x[:4])
    for name, module in model.named_modules():
        if calls.count(name) > 1 and any(param.requires_grad for param in module.parameters(recurse=False)):
            return f"weight sharing: layer {name!r} ({type(module).__name__}) is used {calls.count(name)} times"
    if not isinstance(z, Tensor):
        return "the output is not one tensor"
    try:
        curved = _first_curved_block(z, params)
    except RuntimeError as error:
        return f"the second derivatives of the outputs are not known: {error}"
    if curved is None:
        return None
    own = curved.rpartition(".")[0]
    after = calls[calls.index(own) + 1 :] if own in calls else calls
    modules = dict(model.named_modules())
    for name in after:
        if not isinstance(modules[name], PIECEWISE_LINEAR):
            return f"layer {name!r} ({type(modules[name]).__name__}) is not piecewise linear"
    return f"the outputs are not affine in {curved!r} alone: a function that is not piecewise linear, or a second use"


def _traced(model: nn.Module, x: Tensor) -> tuple[list[str], Any, dict[str, Tensor]]:
    """The leaves in the order of their calls, and the outputs as a function of copies of the parameters."""
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.named_modules()
        if not any(module.children()) or any(True for _ in module.parameters(recurse=False))
    ]
    params = {name: param.detach().requires_grad_(param.requires_grad) for name, param in model.named_parameters()}
    try:
        with torch.enable_grad(), twice_differentiable():
            z = functional_call(model, params, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    return calls, z, {name: param for name, param in params.items() if param.requires_grad}


@torch.enable_grad()
def _first_curved_block(z: Tensor, params: dict[str, Tensor]) -> str | None:
    """The first parameter tensor whose block of d²(r·z)/dθ², for one random r, does not map a random vector to 0."""
    if not z.requires_grad:
        return None
    generator = torch.Generator(z.device).manual_seed(0)
    r = torch.rand(z.shape, generator=generator, dtype=z.dtype, device=z.device) + 0.5
    grads = torch.autograd.grad((r * z).sum(), list(params.values()), create_graph=True, allow_unused=True)
    for (name, param), g in zip(params.items(), grads, strict=True):
        if g is None or not g.requires_grad:
            continue
        v = torch.randn(g.shape, generator=generator, dtype=g.dtype, device=g.device)
        (Hv,) = torch.autograd.grad((g * v).sum(), param, retain_graph=True, allow_unused=True)
        if Hv is not None and bool(Hv.norm() > 1e3 * torch.finfo(g.dtype).eps * g.norm()):
            return name
    return None
