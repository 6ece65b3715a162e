"""L1 and L2 against torch's own weight decay, the proximal operator's definition and a lasso of scikit-learn."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from thalweg.regularize import L1, L2, soft_threshold


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


def train(model, optimizer, penalty=None, *, decoupled=False):
    g = torch.Generator().manual_seed(1)
    for _ in range(5):
        x, y = (torch.randn(8, k, generator=g, dtype=torch.float64) for k in (4, 3))
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        if penalty is not None and not decoupled:
            loss = loss + penalty(model)
        loss.backward()
        if penalty is not None and decoupled:
            penalty.step_(model, optimizer.param_groups[0]["lr"])
        optimizer.step()
    return torch.cat([param.detach().flatten() for param in model.parameters()])


def test_l2_in_the_loss_is_the_weight_decay_of_sgd():
    a, b = network(), network()
    with_penalty = train(a, torch.optim.SGD(a.parameters(), lr=0.1, momentum=0.9), L2(0.05))
    with_decay = train(b, torch.optim.SGD(b.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05))
    torch.testing.assert_close(with_penalty, with_decay, rtol=1e-12, atol=1e-14)


def test_l2_as_a_step_of_its_own_is_the_weight_decay_of_adamw():
    a, b = network(), network()
    with_penalty = train(a, torch.optim.Adam(a.parameters(), lr=0.1), L2(0.05), decoupled=True)
    with_decay = train(b, torch.optim.AdamW(b.parameters(), lr=0.1, weight_decay=0.05))
    torch.testing.assert_close(with_penalty, with_decay, rtol=1e-12, atol=1e-14)


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match=r"must be >= 0, got -1\.0"):
        soft_threshold(torch.ones(2), -1.0)


@pytest.mark.parametrize("w", [-2.0, -0.3, 0.0, 0.2, 1.5])
def test_soft_threshold_is_the_proximal_operator(w):
    result = minimize_scalar(lambda z: 0.5 * (z - w) ** 2 + 0.4 * abs(z), bounds=(-3, 3), method="bounded")
    # SciPy stops within 1e-5 of the minimum
    assert float(soft_threshold(torch.tensor(w), 0.4)) == pytest.approx(result.x, abs=1e-4)


def test_proximal_steps_solve_the_lasso_with_exact_zeros():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 8))
    y = X @ np.array([1.5, -2, 0, 0, 0.7, 0, 0, 0]) + 0.1 * rng.standard_normal(50)
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12).fit(X, y).coef_
    model = nn.Linear(8, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, target = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * (model(x).squeeze(1) - target).square().mean()).backward()
        optimizer.step()
        L1(0.1).step_(model, 0.1)
    weight = model.weight.detach().numpy()[0]
    np.testing.assert_allclose(weight, expected, atol=1e-8)
    assert (weight == 0).sum() == (expected == 0).sum() >= 3


def test_both_take_every_parameter_unless_told_otherwise():
    model = network()
    assert {row.layer for row in L2().per_layer(model).regularized} == {name for name, _ in model.named_parameters()}
    weights = L1(types=(nn.Linear,), exclude="*.bias").per_layer(model)
    assert [row.layer for row in weights.regularized] == ["0.weight", "3.weight"]
    total = sum(param.detach().abs().sum() for param in model.parameters())
    torch.testing.assert_close(L1()(model).detach(), total, rtol=1e-12, atol=0)


def test_a_proximal_step_follows_schedule_and_every():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    penalty = L1(0.1, schedule=lambda step: 1.0 + step, every=2)
    for expected in (0.8, 0.8, 0.2, 0.2):  # 1 - 2·0.1·1, then - 2·0.1·3
        penalty.step_(model, 1.0)
        penalty.advance()
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_a_parametrized_weight_has_no_proximal_step():
    model = nn.Sequential(weight_norm(nn.Linear(3, 2)), nn.Linear(2, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"0\.weight, which is parametrized or pruned"):
        L1(0.1).step_(model, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    L1(0.1, exclude="0").step_(model, 0.1)
