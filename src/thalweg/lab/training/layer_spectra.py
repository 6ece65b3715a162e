"""The spectrum of every layer of a network as numbers of a metrics row, and how alike its filters are.

For each layer the eigenvalues λ of the Gram matrix that ``side="auto"`` bounds (WᵀW, or WWᵀ for m < n):

    min NAME, max NAME     the extremes
    inside NAME            share of the eigenvalues in [A, B]
    R NAME                 the seed's penalty, with exact borders

All eigenvalues are computed while min(m, n) <= 4096. Of larger layers they are those of the same kernel on a torus of
the same size, one small singular value decomposition per frequency: the borders are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.operators import ConvolutionOperator, LayerOperator, input_shapes
from thalweg.regularize import FrameRegularizer
from thalweg.regularize.gram import LayerMap

__all__ = ["coherence", "eigenvalues", "layer_spectra"]

MANY = 4096  # the largest min(m, n) of a layer whose spectrum is taken with its borders
TOLERANCE = 1e-4  # of A and B, for the share inside: float32 eigenvalues of a tight frame are not exactly equal


@torch.no_grad()
def layer_spectra(model: nn.Module, input_shape: Sequence[int], *, lower: float, upper: float) -> dict[str, float]:
    """Extremes, share inside [A, B] and R of every dense layer and convolution, by its name.

    >>> layer = nn.Sequential(nn.Linear(2, 2))
    >>> _ = layer[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    >>> layer_spectra(layer, (2,), lower=0.5, upper=2.0)
    {'min 0': 1.0, 'max 0': 9.0, 'inside 0': 0.5, 'R 0': 24.5}
    """
    sample = next(model.parameters()).new_zeros(1, *input_shape)
    row: dict[str, float] = {}
    for name, shape in input_shapes(model, sample).items():
        values = eigenvalues(model.get_submodule(name), shape)
        inside = (values >= lower * (1 - TOLERANCE)) & (values <= upper * (1 + TOLERANCE))
        row |= {f"min {name}": float(values.min()), f"max {name}": float(values.max())}
        row[f"inside {name}"] = float(inside.double().mean())
    for entry in FrameRegularizer(lower, upper).prepare(model, sample).per_layer(model).regularized:
        row[f"R {entry.layer.removesuffix('.weight')}"] = math.nan if entry.value is None else entry.value
    return row


def eigenvalues(module: nn.Module, shape: Sequence[int]) -> Tensor:
    """Eigenvalues of the Gram matrix of a layer on maps of the given input shape; NaN for a weight that is not finite.

    >>> eigenvalues(nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False), (1, 2, 2)).shape
    torch.Size([4])
    """
    operator = LayerOperator.of(module, shape)
    weight = operator.weight
    layer_map = LayerMap.of_module(module, weight, shape)
    rows = {"col": operator.shape[1], "read": layer_map.read, "row": operator.shape[0]}[
        layer_map.gram_side("auto").gram or "row"
    ]
    if not weight.isfinite().all():
        return torch.full((rows,), torch.nan)
    sigma = operator.exact_singular_values()
    if sigma is None and min(operator.shape) <= MANY:  # half the time of an SVD, and in double precision
        T = operator.dense().detach().double()
        values: Tensor = torch.linalg.eigvalsh(T.mT @ T if T.shape[0] >= T.shape[1] else T @ T.mT)
        return values.clamp(min=0).flip(0)[:rows]
    if sigma is None and isinstance(module, nn.Conv2d):
        options: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        torus = ConvolutionOperator(weight, shape, groups=module.groups, padding_mode="circular", **options)
        sigma = torus.exact_singular_values()
    if sigma is None:
        raise ValueError(f"{operator} is too large for all of its eigenvalues")
    return sigma[:rows].square()


@torch.no_grad()
def coherence(model: nn.Module) -> float:
    """Mean |cos| between the filters of a layer (rows of the kernel matrix), averaged over the layers.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> round(coherence(layer), 4)
    0.7071
    """
    found = []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.shape[0] > 1:
            directions = nn.functional.normalize(module.weight.flatten(1), dim=1)
            cosines = (directions @ directions.mT).abs()
            count = len(cosines)
            found.append(float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))))
    return sum(found) / len(found)
