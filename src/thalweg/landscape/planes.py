r"""Planes through the loss landscape: L(θ + a d₁ + b d₂) on a grid, along directions worth looking at.

    filter-normalised   d ~ N(0, I), then d_j ← d_j |θ_j| / |d_j| for each filter j     Li et al. 2018, section 4
    eigenvector         d₁, d₂ eigenvectors of the Hessian
    trajectory          two principal components of θ_0 - θ_T, …, θ_{T-1} - θ_T, 0      Li et al. 2018, section 7

A filter is an output: a row of a weight (out, …), a column of a transposed convolution's (in, out / groups, …).
Rescaling filters before a normalization leaves the filter-normalised surface as it is.

Biases, gains and shifts of normalizations, and gains of weight normalization have no such scale and stay fixed: there
the filters are those of its direction v. Deviations from the published code
(tomgoldstein/loss-landscape): there they stay fixed only with a flag; without it a vector is its own direction, which
is not random. The package loss-landscapes normalises biases again and again (its issue 3).
Both take a transposed convolution's inputs for its filters. A filter of zeros has direction zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

from thalweg.landscape._objective import LossFunction, Objective, flat_parameters

__all__ = [
    "Plane",
    "eigenvector_plane",
    "filter_normalised_direction",
    "filter_normalised_plane",
    "loss_surface",
    "trajectory_plane",
]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Plane:
    """The points origin + a·first + b·second, over the trainable parameters as one vector.

    Attributes:
        origin: (P,).
        first: (P,).
        second: (P,).
        track: (T + 1, 2), where a trajectory's points project to; None for other planes.
        explained: share of the trajectory's variance along either axis; None for other planes.

    >>> Plane(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).point(3.0, 4.0)
    tensor([3., 4.])
    """

    origin: Tensor
    first: Tensor
    second: Tensor
    track: Tensor | None = None
    explained: tuple[float, float] | None = None

    def point(self, a: float, b: float) -> Tensor:
        """Origin + a·first + b·second."""
        return self.origin + a * self.first + b * self.second


def loss_surface(
    model: nn.Module, loss_fn: LossFunction, data: Any, plane: Plane, a: Sequence[float], b: Sequence[float]
) -> Tensor:
    """L at every point of a grid, one pass over the data each; the model is not touched.

    Args:
        model: in the mode it is to be measured in.
        loss_fn: ``loss_fn(output, target)``, the mean over the batch.
        data: a pair (inputs, targets), or batches that can be read more than once.
        plane: through the trainable parameters of ``model``.
        a: coordinates along ``plane.first``.
        b: coordinates along ``plane.second``.

    Returns:
        (len(a), len(b)).

    Raises:
        ValueError: a plane of another size, an axis without points, no data, a random output.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> plane = Plane(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    >>> data = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> loss_surface(model, nn.functional.mse_loss, data, plane, [0.0, 1.0], [0.0, 1.0])  # (a + 2b)²
    tensor([[0., 4.],
            [1., 9.]])
    """
    if not len(a) or not len(b):
        raise ValueError(f"axes of {len(a)} and {len(b)} points: at least one on each expected")
    _check_size(plane.origin, flat_parameters(model)[1], "plane")
    objective = Objective(model, loss_fn, data)
    return torch.stack([torch.stack([objective.value(plane.point(x, y)) for y in b]) for x in a])


def filter_normalised_plane(model: nn.Module, *, generator: torch.Generator | None = None) -> Plane:
    """Two independent filter-normalised directions through the model's weights.

    Args:
        model: its trainable weights; biases and normalizations stay fixed.
        generator: draws the directions, on the CPU; None is one of its own with seed 0.

    Raises:
        ValueError: no trainable parameter, or none that has filters.

    >>> plane = filter_normalised_plane(nn.Linear(3, 2), generator=torch.Generator().manual_seed(0))
    >>> plane.first[6:]  # the bias
    tensor([0., 0.])
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    _, origin = flat_parameters(model)
    first, second = (filter_normalised_direction(model, generator=generator) for _ in range(2))
    return Plane(origin, first, second)


def filter_normalised_direction(model: nn.Module, *, generator: torch.Generator) -> Tensor:
    """A random direction (P,) whose filters are as long as the model's, drawn on the CPU.

    Raises:
        ValueError: no trainable parameter, or none that has filters.

    >>> layer = nn.Linear(3, 2, bias=False)
    >>> d = filter_normalised_direction(layer, generator=torch.Generator().manual_seed(0)).view(2, 3)
    >>> torch.allclose(d.norm(dim=1), layer.weight.norm(dim=1))
    True
    """
    params, _ = flat_parameters(model)
    owners = {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    parts = []
    for name, w in params.items():
        d = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)  # drawn always: same draws, same rows
        fixed = w.ndim < 2 or isinstance(owners[name], NORMS) or _is_gain(name.split(".")[-1], owners[name])
        parts.append((torch.zeros_like(d) if fixed else _as_long_as(w, d, owners[name])).reshape(-1))
    direction = torch.cat(parts)
    if not bool(direction.any()):
        raise ValueError("no trainable weight with filters that are not zero: biases and normalizations stay fixed")
    return direction


def eigenvector_plane(model: nn.Module, vectors: Tensor) -> Plane:
    """The plane of the first two columns of ``vectors``: (P, k), as `thalweg.curvature.eigsh` returns them.

    Raises:
        ValueError: another number of rows, or fewer than two columns.

    >>> eigenvector_plane(nn.Linear(2, 1, bias=False), torch.eye(2)).second
    tensor([0., 1.])
    """
    _, origin = flat_parameters(model)
    if vectors.ndim != 2 or vectors.shape[1] < 2:
        raise ValueError(f"vectors of shape {tuple(vectors.shape)}: (P, k) with at least two eigenvectors expected")
    _check_size(vectors[:, 0], origin, "eigenvector")
    return Plane(origin, vectors[:, 0].to(origin), vectors[:, 1].to(origin))


def trajectory_plane(points: Sequence[nn.Module | Tensor]) -> Plane:
    """The plane in which a training run moved most, through its last point.

    Costs a QR decomposition of the points, 2 (T + 1)² P multiplications; no P x P matrix is formed.

    Args:
        points: θ_0 … θ_T: models, or vectors (P,) of their trainable parameters in ``named_parameters`` order.

    Returns:
        Orthonormal directions, with ``track`` and ``explained``.

    Raises:
        TypeError: a point that is neither.
        ValueError: fewer than three points, points that differ in size, are not finite, are all the same or lie on one
            line, which spans no plane.

    >>> plane = trajectory_plane([torch.tensor([0.0, 0.0, 9.0]), torch.tensor([3.0, 1.0, 9.0]), torch.zeros(3)])
    >>> round(sum(plane.explained), 6)
    1.0
    """
    thetas = torch.stack(_vectors(points))
    moved = thetas - thetas[-1]
    # the singular values of a QR factor keep the digits of a direction that a Gram matrix would square away
    Q, R = torch.linalg.qr((moved - moved.mean(dim=0)).T)
    _, s, V = torch.linalg.svd(R.T, full_matrices=False)
    noise = torch.finfo(thetas.dtype).eps * thetas.norm()  # of rounding the points
    if not s[0] > noise:
        raise ValueError("all points are the same: give copies of the parameters, taken while they changed")
    if len(s) < 2 or not s[1] > noise:
        raise ValueError("the points lie on one line and span no plane: use linear_path, or give points that turn")
    first, second = Q @ V[0], Q @ V[1]
    share = (s / s[0]).square()
    explained = float(share[0] / share.sum()), float(share[1] / share.sum())
    return Plane(thetas[-1], first, second, moved @ torch.stack([first, second], dim=1), explained)


def _vectors(points: Sequence[nn.Module | Tensor]) -> list[Tensor]:
    thetas: list[Tensor] = []
    for point in points:
        if not isinstance(point, (Tensor, nn.Module)):
            raise TypeError(
                f"a point is of type {type(point).__name__}: models or vectors expected; load a state_dict into a model"
            )
        theta = point.detach() if isinstance(point, Tensor) else flat_parameters(point)[1]
        if theta.ndim != 1 or (thetas and theta.shape != thetas[0].shape):
            raise ValueError(
                f"point {len(thetas)} has the shape {tuple(theta.shape)}: vectors of one length expected, each all of "
                "a model's trainable parameters"
            )
        thetas.append(theta if theta.is_floating_point() else theta.to(torch.get_default_dtype()))
        if not bool(torch.isfinite(theta).all()):
            raise ValueError(f"point {len(thetas) - 1} is not finite: end the trajectory before the run diverged")
    if len(thetas) < 3:
        raise ValueError(f"{len(thetas)} points span no plane: at least 3 expected")
    return thetas


def _is_gain(name: str, owner: nn.Module) -> bool:
    """Whether a parameter is the length g of weight normalization's w = g v / |v|, by parametrization or by hook."""
    if isinstance(owner, ParametrizationList):
        return name == "original0" and isinstance(owner[0], _WeightNorm)
    return name.endswith("_g") and hasattr(owner, f"{name.removesuffix('_g')}_v")


def _as_long_as(w: Tensor, d: Tensor, owner: nn.Module) -> Tensor:
    """Direction d with the filter norms of w."""
    if isinstance(owner, _ConvTransposeNd):  # (in, out / groups, …): the filters of a group are columns
        grouped = owner.groups, w.shape[0] // owner.groups, *w.shape[1:]
        return _rescale(w.view(grouped), d.view(grouped), [j for j in range(w.ndim + 1) if j not in (0, 2)])
    return _rescale(w, d, list(range(1, w.ndim)))


def _rescale(w: Tensor, d: Tensor, axes: list[int]) -> Tensor:
    def norm(x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        return length

    return d * (norm(w) / norm(d).clamp_min(torch.finfo(d.dtype).tiny))


def _check_size(vector: Tensor, theta: Tensor, what: str) -> None:
    if vector.shape != theta.shape:
        raise ValueError(
            f"the {what} has {vector.numel()} coordinates and the model {theta.numel()} trainable parameters: "
            "give one made for this model"
        )
