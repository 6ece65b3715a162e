"""Paths: closed forms on quadratics, geometry of the sphere, no barrier where the loss is convex."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.invariance import find_scale_groups
from thalweg.landscape import Path, bezier_path, linear_path, spherical_path
from thalweg.nn import MLP


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


def linear(seed, features=3, out=2):
    model = nn.Linear(features, out, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(out, features, generator=draw(seed), dtype=torch.float64))
    return model


def regression(n=12, features=3, out=2):
    g = draw(9)
    return (
        torch.randn(n, features, generator=g, dtype=torch.float64),
        torch.randn(n, out, generator=g, dtype=torch.float64),
    )


def scale_invariant(seed, hidden=(6, 7)):
    """All with one frozen last layer."""
    model, first = (MLP(5, hidden, 3, generator=draw(s)).double().train() for s in (seed, 0))
    model.last.load_state_dict(first.last.state_dict())
    return model


def classes(n=16):
    return torch.randn(n, 5, generator=draw(8), dtype=torch.float64), torch.arange(n) % 3


@given(st.integers(0, 30), st.integers(31, 60))
@settings(max_examples=15)
def test_convex_losses_have_no_barrier(first, second):
    start, end = linear(first), linear(second)
    for loss_fn, y in [(mse_loss, regression()[1]), (cross_entropy, torch.arange(12) % 2)]:
        path = linear_path(start, end, loss_fn, (regression()[0], y), points=9)
        assert 0 <= path.barrier <= 1e-12  # 0 at the ends; float64


def test_quadratic_on_a_line():
    """L(θ(t)) - chord = -t (1 - t) δᵀHδ / 2 for any quadratic."""
    start, end = linear(0), linear(1)
    x, y = regression()
    path = linear_path(start, end, mse_loss, (x, y), points=11)
    delta = (end.weight - start.weight).detach()
    curvature = 2 * (x @ delta.T).square().mean()
    chord = torch.lerp(path.losses[0], path.losses[-1], path.t)
    torch.testing.assert_close(path.losses - chord, -path.t * (1 - path.t) * curvature / 2)
    torch.testing.assert_close(path.points[0], vector(start))
    torch.testing.assert_close(path.points[-1], vector(end))


def test_permuted_network_has_a_barrier():
    """Two copies of one function, hidden units swapped: equal losses at the ends, more between."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = torch.optim.Adam(start.parameters(), lr=0.05)
    x, y = classes()
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(start(x), y).backward()
        optimizer.step()
    end, order = copy.deepcopy(start), torch.tensor([1, 2, 3, 0])
    end[0].weight.data, end[0].bias.data = start[0].weight.data[order], start[0].bias.data[order]
    end[2].weight.data = start[2].weight.data[:, order]
    line = linear_path(start, end, cross_entropy, (x, y))
    torch.testing.assert_close(line.losses[0], line.losses[-1])
    assert line.barrier > 0.1
    curve = bezier_path(start, end, cross_entropy, (x, y), steps=400, lr=0.05, generator=draw())
    assert curve.barrier < line.barrier / 3  # the learned bend goes around
    middle = (curve.points[0] + 2 * curve.bend + curve.points[-1]) / 4
    torch.testing.assert_close(curve.points[10], middle)


def test_bend_on_a_quadratic_is_the_closed_form():
    """argmin_φ E L(θ(t)): E 2t(1-t) (θ(t) - c) = 0, with E t^a (1-t)^b = a! b! / (a + b + 1)!."""
    start, end = linear(0), linear(1)
    x, y = regression()
    c = torch.linalg.lstsq(x, y).solution.T.flatten()
    best = (c / 3 - (vector(start) + vector(end)) / 10) * 15 / 2
    path = bezier_path(start, end, mse_loss, (x, y), steps=1500, lr=0.05, generator=draw())
    # one random t per step leaves noise, which the falling rate damps
    torch.testing.assert_close(path.bend, best, rtol=0, atol=0.1 * float(best.norm()) / 6**0.5)
    objective = lambda bend: sum(  # noqa: E731
        mse_loss(x @ ((1 - t) ** 2 * vector(start) + 2 * t * (1 - t) * bend + t**2 * vector(end)).view(2, 3).T, y)
        for t in torch.linspace(0, 1, 201, dtype=torch.float64)
    )
    straight = (vector(start) + vector(end)) / 2
    assert objective(path.bend) - objective(best) < 0.01 * (objective(straight) - objective(best))


def test_bend_is_reproducible():
    bends = [bezier_path(linear(0), linear(1), mse_loss, regression(), steps=5, generator=draw(3)).bend for _ in "ab"]
    assert torch.equal(*bends)


def test_sphere_keeps_norms_and_turns_evenly():
    start, end = scale_invariant(0), scale_invariant(1)
    end.hidden[1].weight.data.mul_(2.0)
    data = classes()
    groups = [group.names for group in find_scale_groups(start, cross_entropy, [data])]
    path = spherical_path(start, end, cross_entropy, data, groups=groups, points=5)
    sizes = [p.numel() for p in start.parameters() if p.requires_grad]
    assert len(groups) == len(sizes) == 2
    for rows in torch.split(path.points, sizes, dim=1):
        torch.testing.assert_close(rows.norm(dim=1), torch.lerp(rows[0].norm(), rows[-1].norm(), path.t))
        cosines = torch.cosine_similarity(rows[1:], rows[:-1])
        torch.testing.assert_close(cosines, cosines[:1].expand(4))
    torch.testing.assert_close(path.points[-1], vector(end))
    assert spherical_path(start, start, cross_entropy, data, groups=groups, points=3).barrier == pytest.approx(0)


def test_one_group_meets_the_losses_of_the_line():
    """Where all is one scale-invariant vector, the line's point at t has the direction of the circle's at some t'."""
    start, end = (scale_invariant(seed, (6,)) for seed in (0, 1))
    data = classes()
    circle = spherical_path(start, end, cross_entropy, data, points=5)
    u, v = circle.points[0], circle.points[-1]
    for theta, loss in zip(circle.points[1:-1], circle.losses[1:-1], strict=True):
        coefficients = torch.linalg.lstsq(torch.stack([u, v], dim=1), theta.unsqueeze(1)).solution.flatten()
        model = copy.deepcopy(start)
        model.hidden[1].weight.data = ((u * coefficients[0] + v * coefficients[1]) / coefficients.sum()).view(6, 5)
        assert cross_entropy(model(data[0]), data[1]).item() == pytest.approx(loss.item(), rel=1e-3)  # eps = 1e-5


def test_barrier_with_nan_is_nan():
    path = Path(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, float("nan"), 1.0]), torch.zeros(3, 1))
    assert path.barrier != path.barrier


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: linear_path(linear(0), linear(0, 4), mse_loss, d), "differ in name or shape"),
        (lambda d: linear_path(linear(0), linear(1), mse_loss, d, points=1), "points=1"),
        (lambda d: bezier_path(linear(0), linear(1), mse_loss, d, steps=0), "steps=0"),
        (lambda d: bezier_path(linear(0), linear(1), mse_loss, d, lr=0.0), r"lr=0\.0"),
        (lambda d: bezier_path(linear(0), linear(1), mse_loss, d, lr=1e308), "the bend diverged"),
        (lambda d: spherical_path(linear(0), linear(1), mse_loss, d, groups=[["bias"]]), "'bias' is not a trainable"),
        (lambda d: spherical_path(linear(0), linear(1), mse_loss, d, groups=["weight"]), "'weight' is a name, not a"),
        (lambda d: spherical_path(linear(0), linear(1), mse_loss, d, groups=[["weight"]] * 2), "'weight' is named twi"),
        (lambda d: spherical_path(linear(0), linear(1), mse_loss, d, groups=[["weight"] * 2]), "'weight' is named twi"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(regression())


def test_frozen_parameters():
    """The end need not be trainable; what the start has frozen is one for all points, and must be the end's."""
    start, end = (nn.Sequential(linear(seed), nn.Linear(2, 2).double()) for seed in (0, 1))
    data = regression()
    whole = linear_path(start, end, mse_loss, data)
    frozen_end = linear_path(start, copy.deepcopy(end).requires_grad_(False), mse_loss, data)
    torch.testing.assert_close(frozen_end.losses, whole.losses)
    start[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"1\.\w+ is frozen in the start network and has other values in the end"):
        linear_path(start, end, mse_loss, data)
    end[1].load_state_dict(start[1].state_dict())
    path = linear_path(start, end, mse_loss, data)
    assert path.points.shape == (21, 6)
    torch.testing.assert_close(path.losses[-1], mse_loss(end(data[0]), data[1]).detach())


def test_no_group_is_a_line():
    ends = linear(0), linear(1)
    line, sphere = (
        linear_path(*ends, mse_loss, regression()),
        spherical_path(*ends, mse_loss, regression(), groups=[[]]),
    )
    torch.testing.assert_close(sphere.points, line.points)
    torch.testing.assert_close(sphere.losses, line.losses)


@pytest.mark.parametrize(("factor", "message"), [(-2.0, "opposite way"), (0.0, "zero at one end")])
def test_no_great_circle(factor, message):
    start, end = linear(0), linear(0)
    end.weight.data.mul_(factor)
    with pytest.raises(ValueError, match=message):
        spherical_path(start, end, mse_loss, regression())
