"""Planes: norms filter by filter, invariance to rescaling, principal components, and losses on the grid."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.landscape import (
    Plane,
    eigenvector_plane,
    filter_normalised_direction,
    filter_normalised_plane,
    loss_surface,
    trajectory_plane,
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def named(model, vector):
    params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts = torch.split(vector, [p.numel() for _, p in params])
    return {name: part.view_as(p) for (name, p), part in zip(params, parts, strict=True)}


def test_every_filter_is_as_long_as_the_models():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Flatten(),
        nn.LayerNorm((6, 5)), nn.Linear(5, 3), nn.Embedding(7, 2),
    ).double()  # fmt: skip
    d = named(model, filter_normalised_direction(model, generator=draw()))
    w = dict(model.named_parameters())
    for name in ("0.weight", "5.weight", "6.weight"):
        torch.testing.assert_close(d[name].flatten(1).norm(dim=1), w[name].flatten(1).norm(dim=1))
    # group g of a transposed convolution takes inputs 2g, 2g + 1 to outputs 3g, 3g + 1, 3g + 2: stored (4, 3, 3, 3)
    for group in (0, 2):
        for j in range(3):
            ours, theirs = d["2.weight"][group : group + 2, j], w["2.weight"][group : group + 2, j]
            torch.testing.assert_close(ours.norm(), theirs.norm())
    for name in ("0.bias", "1.weight", "1.bias", "2.bias", "4.weight", "4.bias", "5.bias"):
        assert not d[name].any(), name
    cosine = torch.cosine_similarity(d["6.weight"], w["6.weight"])
    assert cosine.abs().max() < 1 - 1e-6  # random, not the weights themselves


def test_zero_filters_and_frozen_weights_stay():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight[0])
    model[1].requires_grad_(False)
    d = named(model, filter_normalised_direction(model, generator=draw()))
    assert list(d) == ["0.weight", "0.bias"]
    assert not d["0.weight"][0].any()
    assert d["0.weight"][1].any()
    assert torch.isfinite(d["0.weight"]).all()


def hooked(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, hooked])
def test_gains_of_weight_normalization_stay(normed):
    """w = g v / |v|: the filters are those of v, whose rescaling leaves the function and so the surface as they are."""
    model = nn.Sequential(normed(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)).double()
    d = named(model, filter_normalised_direction(model, generator=draw()))
    w = dict(model.named_parameters())
    gain, v = (name for name, p in model[0].named_parameters(prefix="0") if p.ndim == 2)
    assert w[gain].shape == (3, 1)
    assert not d[gain].any()
    torch.testing.assert_close(d[v].norm(dim=1), w[v].norm(dim=1))
    data = torch.randn(6, 4, generator=draw(), dtype=torch.float64), torch.arange(6) % 2
    surfaces = []
    for factor in (1.0, 5.0):
        with torch.no_grad():
            w[v].mul_(factor)
        plane = filter_normalised_plane(model, generator=draw(1))
        surfaces.append(loss_surface(model, cross_entropy, data, plane, [-1.0, 0.5], [0.0, 0.7]))
    torch.testing.assert_close(*surfaces)


@given(st.lists(st.floats(0.05, 20), min_size=3, max_size=3), st.integers(0, 5))
@settings(max_examples=15)
def test_rescaling_filters_before_a_normalization_changes_nothing(alphas, seed):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, eps=1e-30), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)]
    model = nn.Sequential(*layers).double().train()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight.mul_(torch.tensor(alphas).view(3, 1, 1, 1))
    data = torch.randn(6, 2, 6, 6, generator=draw(), dtype=torch.float64), torch.arange(6) % 3
    a = [-1.0, 0.0, 0.7]
    surfaces = [
        loss_surface(net, cross_entropy, data, filter_normalised_plane(net, generator=draw(seed)), a, a)
        for net in (model, scaled)
    ]
    torch.testing.assert_close(*surfaces)


def test_surface_of_a_quadratic():
    """A linear model under squared error: L(θ + a d₁ + b d₂) is a polynomial that float64 gives to rounding."""
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(10, 3, generator=draw(), dtype=torch.float64)
    y = torch.randn(10, 2, generator=draw(), dtype=torch.float64)
    plane = filter_normalised_plane(model, generator=draw(1))
    a, b = [-1.0, 0.5], [0.0, 2.0, 3.0]
    found = loss_surface(model, mse_loss, (x, y), plane, a, b)
    for i, s in enumerate(a):
        for j, t in enumerate(b):
            W = (plane.origin + s * plane.first + t * plane.second).view(2, 3)
            assert found[i, j].item() == pytest.approx((x @ W.T - y).square().mean().item(), rel=1e-12)


def test_curvature_along_eigenvectors_is_their_eigenvalue():
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.randn(10, 3, generator=draw(), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(2 * x.T @ x / 10)
    plane = eigenvector_plane(model, vectors.flip(1))
    surface = loss_surface(model, mse_loss, (x, torch.zeros(10, 1).double()), plane, [0.0, 1.0], [0.0, 1.0])
    expected = torch.stack([torch.zeros(()), values[1] / 2, values[2] / 2, (values[1] + values[2]) / 2])
    torch.testing.assert_close(surface.flatten(), expected.to(surface))


def test_trajectory_is_scikit_learns_pca():
    points = torch.randn(6, 40, generator=draw(), dtype=torch.float64).cumsum(dim=0)
    plane = trajectory_plane(list(points))
    moved = (points - points[-1]).numpy()
    pca = PCA(n_components=2).fit(moved)
    for ours, theirs in zip((plane.first, plane.second), pca.components_, strict=True):
        assert abs(float(ours.numpy() @ theirs)) == pytest.approx(1, abs=1e-10)
        assert float(ours.norm()) == pytest.approx(1, abs=1e-10)
    assert plane.explained == pytest.approx(tuple(pca.explained_variance_ratio_))
    assert np.abs(plane.track[-1].numpy()).max() < 1e-12  # the last point is the origin
    nearest = plane.origin + plane.track @ torch.stack([plane.first, plane.second])
    residual = points - nearest
    assert (residual @ plane.first).abs().max() < 1e-10
    assert torch.equal(plane.origin, points[-1])


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-4])
def test_a_nearly_straight_trajectory_in_single_precision(ratio):
    """The second direction by PCA in float64; a Gram matrix in float32 loses it below a ratio of 1e-3."""
    along, across = torch.randn(2, 20, generator=draw(), dtype=torch.float64)
    u, v = torch.randn(2, 400, generator=draw(1), dtype=torch.float64)
    points = along[:, None] * u + ratio * across[:, None] * v
    plane, exact = trajectory_plane(list(points.float())), PCA(n_components=2).fit(points.numpy())
    # float32 keeps about 1e-7 of the first component, which is 1e-7 / ratio of the second
    for ours, theirs in zip((plane.first, plane.second), exact.components_, strict=True):
        assert abs(float(ours.double().numpy() @ theirs)) == pytest.approx(1, abs=1e-5)
    assert float(plane.first @ plane.second) == pytest.approx(0, abs=1e-6)
    assert plane.explained[1] == pytest.approx(exact.explained_variance_ratio_[1], rel=1e-2)


@pytest.mark.parametrize(("count", "size"), [(4, 2), (9, 2), (5, 5), (9, 3)])
def test_more_points_than_dimensions(count, size):
    points = torch.randn(count, size, generator=draw(), dtype=torch.float64)
    points[1] = points[0]  # a checkpoint saved twice
    plane = trajectory_plane(list(points.requires_grad_()))
    pca = PCA(n_components=2).fit(points.detach().numpy())
    assert plane.explained == pytest.approx(tuple(pca.explained_variance_ratio_))
    assert not plane.first.requires_grad
    if size == 2:
        assert sum(plane.explained) == pytest.approx(1)
        nearest = plane.origin + plane.track @ torch.stack([plane.first, plane.second])
        torch.testing.assert_close(nearest, points.detach())


def test_trajectory_of_models():
    models = [nn.Linear(2, 2) for _ in range(4)]
    plane = trajectory_plane(models)
    torch.testing.assert_close(plane.origin, torch.cat([p.detach().flatten() for p in models[-1].parameters()]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trajectory_plane([torch.zeros(2)] * 2), "at least 3"),
        (lambda: trajectory_plane([torch.full((2,), float(t)) for t in range(4)]), "one line"),
        (lambda: trajectory_plane([torch.rand(1) for _ in range(4)]), "one line"),
        (lambda: trajectory_plane([torch.ones(2)] * 3), "all points are the same"),
        (lambda: trajectory_plane([nn.Linear(2, 2)] * 3), "all points are the same"),
        (lambda: trajectory_plane([torch.zeros(2), torch.ones(2), torch.full((2,), float("nan"))]), "point 2 is not"),
        (lambda: trajectory_plane([torch.ones(2), torch.ones(3), torch.ones(2)]), r"point 1 has the shape \(3,\)"),
        (lambda: trajectory_plane([torch.ones(2, 2)] * 3), r"point 0 has the shape \(2, 2\)"),
        (lambda: eigenvector_plane(nn.Linear(2, 1), torch.eye(3)[:, :1]), "at least two"),
        (lambda: eigenvector_plane(nn.Linear(2, 1), torch.eye(4)), "4 coordinates and the model 3"),
        (lambda: filter_normalised_plane(nn.BatchNorm1d(3)), "biases and normalizations stay fixed"),
        (
            lambda: loss_surface(nn.Linear(2, 1), mse_loss, [], Plane(*torch.zeros(3, 2)), [0.0], [0.0]),
            "2 coordinates and the model 3",
        ),
        (
            lambda: loss_surface(nn.Linear(2, 1), mse_loss, [], Plane(*torch.zeros(3, 3)), [], [0.0]),
            "axes of 0 and 1 points",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_point_of_another_type():
    with pytest.raises(TypeError, match="of type OrderedDict.* load a state_dict into a model"):
        trajectory_plane([nn.Linear(2, 2).state_dict()] * 3)
