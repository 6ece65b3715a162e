"""`per_sample_losses` against one forward pass per sample; `neighbourhood` against its law."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.landscape import expected_increments, loss_increments, neighbourhood, per_sample_losses


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("loss_fn", [cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")])
@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_one_by_one(loss_fn, batch_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 4)).double().eval()
    x = torch.randn(20, 1, 6, 6, generator=draw(), dtype=torch.float64)
    y = torch.randint(4, (20,), generator=draw())
    alone = torch.stack([loss_fn(model(x[i : i + 1]), y[i : i + 1]).reshape(()) for i in range(20)])
    losses = per_sample_losses(model, loss_fn, (x, y), batch_size=batch_size)
    torch.testing.assert_close(losses, alone)
    assert not losses.requires_grad


def test_outputs_of_many_numbers_count_once():
    x = torch.randn(5, 3, generator=draw())
    losses = per_sample_losses(nn.Identity(), mse_loss, (x, torch.zeros(5, 3)))
    torch.testing.assert_close(losses, x.square().mean(dim=1))


def test_a_loss_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \(5, 3\) for 5 samples"):
        per_sample_losses(nn.Identity(), nn.MSELoss(reduction="none"), (torch.ones(5, 3), torch.ones(5, 3)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"wieght": torch.zeros(3, 4)}, "wieght of shape .* is none of the model's"),
        ({"weight": torch.zeros(1, 4)}, r"weight of shape \(1, 4\) has the shape \(3, 4\) in the model"),
    ],
)
def test_parameters_of_another_model(params, message):
    with pytest.raises(ValueError, match=message):
        per_sample_losses(nn.Linear(4, 3), mse_loss, (torch.ones(2, 4), torch.ones(2, 3)), params=params)


def test_no_sample_at_a_time():
    with pytest.raises(ValueError, match="batch_size=0"):
        per_sample_losses(nn.Linear(4, 3), mse_loss, (torch.ones(2, 4), torch.ones(2, 3)), batch_size=0)


def test_outputs_of_several_tensors():
    model = nn.Module()
    model.forward = lambda x: (x, {"twice": 2 * x})
    losses = per_sample_losses(
        model, lambda z, y: (z[0] + z[1]["twice"] - y).square().mean(), (torch.ones(3, 2), torch.zeros(3, 2))
    )
    torch.testing.assert_close(losses, torch.full((3,), 9.0))


def test_neighbourhood_is_gaussian_in_its_span():
    model = nn.Linear(4, 1, bias=False)
    basis = torch.linalg.qr(torch.randn(4, 2, generator=draw())).Q
    points = torch.stack(
        [p["weight"].flatten() for p in neighbourhood(model, basis, scale=0.5, count=2000, generator=draw(1))]
    )
    moved = points - model.weight.detach().flatten()
    torch.testing.assert_close(moved @ basis @ basis.T, moved, rtol=0, atol=1e-5)  # float32
    covariance = (moved @ basis).T.cov()
    assert (covariance - 0.25 * torch.eye(2)).abs().max() < 0.04  # 5 standard errors of 2000 draws: 0.25 (2/2000)^½ · 5


def test_delta_k_of_a_linear_model():
    """The successor's quantity: l_i(θ) = x_i·θ, so S²(θ) and E_θ S² = S²(θ*) + s² tr(Bᵀ Cov B) are known."""
    x = torch.randn(40, 3, generator=draw(), dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    basis, scale = torch.eye(3, dtype=torch.float64)[:, :2], 0.3
    points = neighbourhood(model, basis, scale=scale, count=1000, generator=draw(1))
    data = x, torch.ones(40, 1).double()
    losses = torch.stack([per_sample_losses(model, lambda o, y: (o * y).flatten(), data, params=p) for p in points])
    curve = expected_increments(losses, sizes=[1, 10, 39], power=2)
    covariance = x.T.cov()
    w = model.weight.detach().flatten()
    S2 = w @ covariance @ w + scale**2 * (basis.T @ covariance @ basis).trace()
    k = curve.sizes
    torch.testing.assert_close(curve.mean, S2 / (k * (k + 1)), rtol=0.12, atol=0)  # about 4 standard errors
    orders = loss_increments(losses[:50], permutations=400, power=2, generator=draw(2))
    there = expected_increments(losses[:50], power=2)
    assert ((orders.mean - there.mean).abs() < 4.5 * orders.error).all()


def test_a_basis_of_another_size():
    with pytest.raises(ValueError, match=r"\(4, d\) expected"):
        next(neighbourhood(nn.Linear(4, 1, bias=False), torch.eye(3), scale=1.0, count=1))
