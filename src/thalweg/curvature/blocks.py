"""Where the curvature sits: diagonal blocks of layers, and the two terms of H = H_O + H_F side by side.

Seed 003 argues from ||H_F|| << ||H_O||. That is an outcome of training, not a law: at initialization the remainder is
as large as the Gauss-Newton matrix (spectral ratio 1.04 on a small CNN), after training a few thousandths. For networks
of linear and piecewise linear operations without shared weights every diagonal block of H_F is zero, layer by layer.
"""

from __future__ import annotations

from typing import NamedTuple

from thalweg.curvature.lanczos import SymmetricOperator, eigsh
from thalweg.curvature.operator import CurvatureOperator

__all__ = ["Decomposition", "LayerCurvature", "decompose", "layer_blocks", "layer_curvature", "spectral_norm"]


class Decomposition(NamedTuple):
    """Spectral norms of H, H_O and H_F, and ``ratio`` = ||H_F|| / ||H_O||; infinite where H_O is zero.

    >>> Decomposition(hessian=2.0, gauss_newton=1.6, remainder=0.8, ratio=0.5).ratio
    0.5
    """

    hessian: float
    gauss_newton: float
    remainder: float
    ratio: float


class LayerCurvature(NamedTuple):
    """Spectral norms of a layer's diagonal blocks of H_O and H_F: (P, P) for its own P parameters.

    >>> LayerCurvature("fc", parameters=12, gauss_newton=1.5, remainder=0.0).parameters
    12
    """

    name: str
    parameters: int
    gauss_newton: float
    remainder: float


def spectral_norm(op: SymmetricOperator, tol: float = 1e-3) -> float:
    """The largest |λ|, from the two ends of the spectrum.

    >>> import torch
    >>> H = torch.tensor([[0.0, 2.0], [2.0, -3.0]])  # eigenvalues 1 and -4
    >>> class Matrix:
    ...     shape, dtype, device, matvec = H.shape, H.dtype, H.device, H.__matmul__
    >>> round(spectral_norm(Matrix()), 4)
    4.0
    """
    ends = 2 if op.shape[0] > 1 else 1
    return float(eigsh(op, ends, "BE", tol).values.abs().max())


def decompose(op: CurvatureOperator, tol: float = 1e-3) -> Decomposition:
    """How much of the curvature is Gauss-Newton, at the weights of ``op``: three norms to a relative ``tol``.

    Raises:
        ValueError: a model whose output is no tensor, which has no Gauss-Newton matrix, or a matrix that is not finite.

    >>> import torch
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> H = CurvatureOperator(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, y))
    >>> decompose(H).ratio  # a linear model has no remainder
    0.0
    """
    hessian, ggn, remainder = (spectral_norm(op.with_kind(kind), tol) for kind in ("hessian", "ggn", "remainder"))
    return Decomposition(hessian, ggn, remainder, remainder / ggn if ggn else float("inf"))


def layer_blocks(op: CurvatureOperator) -> dict[str, CurvatureOperator]:
    """The diagonal block of every module that has parameters of its own among those of ``op``.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    >>> H = CurvatureOperator(model, torch.nn.functional.mse_loss, (torch.ones(1, 2), torch.ones(1, 1)))
    >>> {name: block.shape for name, block in layer_blocks(H).items()}
    {'0': (9, 9), '1': (4, 4)}
    """
    layers: dict[str, set[str]] = {}
    for name in op.names:
        layers.setdefault(name.rpartition(".")[0], set()).add(name)
    return {layer: op.restrict(names.__contains__) for layer, names in layers.items()}


def layer_curvature(op: CurvatureOperator, tol: float = 1e-3) -> list[LayerCurvature]:
    """A row for each layer: how curved the loss is in its own parameters, and what of that is H_F.

    Raises:
        ValueError: as for `decompose`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> H = CurvatureOperator(model, torch.nn.functional.mse_loss, (torch.ones(1, 2), torch.ones(1, 1)))
    >>> [(row.name, row.remainder) for row in layer_curvature(H)]
    [('0', 0.0), ('2', 0.0)]
    """
    return [
        LayerCurvature(
            name,
            block.shape[0],
            spectral_norm(block.with_kind("ggn"), tol),
            spectral_norm(block.with_kind("remainder"), tol),
        )
        for name, block in layer_blocks(op).items()
    ]
