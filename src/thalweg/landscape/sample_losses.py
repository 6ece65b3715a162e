"""The loss of every sample, at the model's weights or at points around them, in one pass over the data each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.curvature.chunks import sample_count
from thalweg.curvature.evaluation import require_independent_samples
from thalweg.landscape._objective import (
    LossFunction,
    device_of,
    evaluate,
    flat_parameters,
    require_deterministic,
)
from thalweg.landscape._samples import each_sample, one_number, parts_of

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
        batch_size: samples at a time; larger batches are cut.

    Returns:
        l: (N,).

    Raises:
        TypeError: data that are no pairs, or can be read only once.
        ValueError: no samples, inputs without targets, batch statistics, a random output, a loss of another shape,
            unknown parameters, or no sample at a time.

    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    >>> per_sample_losses(nn.Identity(), nn.functional.mse_loss, (x, y))
    tensor([1., 4.])
    """
    require_independent_samples(model)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least one sample at a time expected")
    params = _known(model, params or {})
    require_deterministic(model, data)
    rows = []
    for x, y in parts_of(data, device_of(model), batch_size):
        output = evaluate(model, params, x)
        losses, n = loss_fn(output, y), sample_count(x)
        if isinstance(losses, Tensor) and losses.shape == (n,):
            rows.append(losses)
        elif isinstance(losses, Tensor) and losses.ndim:
            raise ValueError(
                f"loss_fn gave the shape {tuple(losses.shape)} for {n} samples: a scalar or a number each expected"
            )
        else:
            rows.append(each_sample(lambda o, t: one_number(loss_fn(o, t)), output, y))
    return torch.cat(rows)


def _known(model: nn.Module, params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, value in params.items():
        if name not in own or own[name].shape != value.shape:
            shape = f"has the shape {tuple(own[name].shape)} in the model" if name in own else "is none of the model's"
            raise ValueError(f"params: {name} of shape {tuple(value.shape)} {shape}: give parameters of this model")
    return params


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
