"""The loss of every sample, at the model's weights or at points around them, in one pass over the data each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from thalweg.curvature.evaluation import require_independent_samples
from thalweg.landscape._objective import (
    LossFunction,
    batches_of,
    evaluate,
    flat_parameters,
    require_deterministic,
)

__all__ = ["neighbourhood", "per_sample_losses"]


@torch.no_grad()
def per_sample_losses(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int = 500,
) -> Tensor:
    """l_i for every sample, in the order of ``data``.

    Args:
        model: in evaluation mode if it has batch normalization or dropout.
        loss_fn: ``loss_fn(output, target)``: a scalar, then called for each sample as a batch of one; or one number
            per sample (``reduction="none"``), which is faster.
        data: a pair (inputs, targets), or batches of them.
        params: values that replace the model's parameters of these names.
        batch_size: samples at a time where ``data`` is a pair.

    Returns:
        l: (N,).

    Raises:
        ValueError: no samples, batch statistics, a random output, or a loss of another shape.

    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    >>> per_sample_losses(nn.Identity(), nn.functional.mse_loss, (x, y))
    tensor([1., 4.])
    """
    require_independent_samples(model)
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        data = list(zip(*(torch.split(part, batch_size) for part in data), strict=True))
    require_deterministic(model, data)
    rows = []
    for x, y in batches_of(data):
        output = evaluate(model, params or {}, x)
        losses = loss_fn(output, y)
        if losses.ndim == 0:
            losses = vmap(lambda o, t: loss_fn(o.unsqueeze(0), t.unsqueeze(0)))(output, y)
        elif losses.shape != (len(y),):
            raise ValueError(
                f"loss_fn gave the shape {tuple(losses.shape)} for {len(y)} samples: a scalar or a number each expected"
            )
        rows.append(losses)
    return torch.cat(rows)


def neighbourhood(
    model: nn.Module, basis: Tensor, *, scale: float, count: int, generator: torch.Generator | None = None
) -> Iterator[dict[str, Tensor]]:
    """Points θ = θ* + s B ξ, ξ ~ N(0, I_d): the neighbourhood over which the successor of seed 003 averages Δ_k.

    Args:
        model: at θ*.
        basis: B: (P, d), orthonormal columns over the trainable parameters, such as top Hessian eigenvectors.
        scale: s.
        count: number of points.
        generator: draws ξ, on the CPU; None is one of its own with seed 0.

    Yields:
        Parameters by name, for the ``params`` of `per_sample_losses`.

    Raises:
        ValueError: a basis that does not fit the parameters.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> points = neighbourhood(model, torch.ones(1, 1), scale=0.0, count=2)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    >>> losses = torch.stack([per_sample_losses(model, nn.functional.mse_loss, (x, y), params=p) for p in points])
    >>> losses.shape
    torch.Size([2, 2])
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    params, theta = flat_parameters(model)
    if basis.ndim != 2 or len(basis) != len(theta):
        raise ValueError(
            f"basis of shape {tuple(basis.shape)}: ({len(theta)}, d) expected, a row per trainable parameter"
        )
    sizes = [param.numel() for param in params.values()]
    for _ in range(count):
        draw = torch.randn(basis.shape[1], generator=generator, dtype=basis.dtype).to(basis.device)
        parts = torch.split(theta + scale * (basis @ draw), sizes)
        yield {
            name: part.view_as(param).to(param.dtype) for (name, param), part in zip(params.items(), parts, strict=True)
        }
