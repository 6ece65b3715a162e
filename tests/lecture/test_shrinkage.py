"""Ridge and lasso against scikit-learn, and weight decay in torch's optimizers against both."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, Ridge

from thalweg.lecture import (
    alpha_of_weight_decay,
    gradient_of,
    l1_norm,
    lasso,
    noisy_sample,
    polynomial_features,
    ridge,
    weight_decay_of_alpha,
)
from thalweg.lecture.comparisons import torch_path
from thalweg.regularize import soft_threshold

DOUBLE = torch.float64


def regression(seed=0, N=40, d=5):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(N, d, generator=g, dtype=DOUBLE) + 1
    return X, X @ torch.randn(d, generator=g, dtype=DOUBLE) + torch.randn(N, generator=g, dtype=DOUBLE) + 3


def polynomial(degree=7):
    x, y = noisy_sample(25, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    return polynomial_features(x, degree)[:, 1:], y


@given(seed=st.integers(0, 1000), alpha=st.floats(1e-3, 100))
def test_ridge_is_scikit_learns(seed, alpha):
    X, y = regression(seed)
    w, b = ridge(X, y, alpha)
    theirs = Ridge(alpha=alpha, solver="svd").fit(X.numpy(), y.numpy())
    # both solve a problem of condition number below 100 to rounding
    assert w.numpy() == pytest.approx(theirs.coef_, rel=1e-10, abs=1e-10)
    assert float(b) == pytest.approx(theirs.intercept_, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0])
def test_ridge_of_the_lectures_polynomial_is_scikit_learns(alpha):
    X, y = polynomial()
    theirs = Ridge(alpha=alpha, solver="svd").fit(X.numpy(), y.numpy())
    assert ridge(X, y, alpha)[0].numpy() == pytest.approx(theirs.coef_, rel=1e-10, abs=1e-10)


def test_ridge_zero_is_least_squares():
    X, y = regression()
    stacked = torch.cat([X, torch.ones(len(X), 1, dtype=DOUBLE)], 1)
    expected = torch.linalg.lstsq(stacked, y.unsqueeze(-1)).solution.flatten()
    w, b = ridge(X, y, 0.0)
    torch.testing.assert_close(torch.cat([w, b[None]]), expected, rtol=1e-10, atol=1e-12)  # condition number 10


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_sgd_with_weight_decay_reaches_ridge(alpha):
    X, y = regression()
    N = len(X)
    decay = weight_decay_of_alpha(alpha, N)
    assert alpha_of_weight_decay(decay, N) == pytest.approx(alpha)
    model, target = torch.nn.Linear(5, 1, dtype=DOUBLE), y.unsqueeze(-1)
    torch.nn.init.zeros_(model.weight)
    # the intercept is free in ridge, so it may not decay
    groups = [{"params": [model.weight], "weight_decay": decay}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(1500):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(X), target).backward()
        optimizer.step()
    w, b = ridge(X, y, alpha)
    torch.testing.assert_close(model.weight.detach().flatten(), w, rtol=1e-10, atol=1e-10)  # converged to rounding
    torch.testing.assert_close(model.bias.detach()[0], b, rtol=1e-10, atol=1e-10)


def test_adamw_does_not_reach_ridge():
    """Its decay balances m/√v, not the gradient: the fixed point is another one."""
    X, y = regression()
    X, y = X - X.mean(0), y - y.mean()
    gradient = gradient_of(lambda w: (X @ w - y).square().mean())
    w, _ = ridge(X, y, 5.0)
    decay = weight_decay_of_alpha(5.0, len(X))
    end = torch_path(lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=decay), gradient, w, steps=500)[-1]
    assert float((end - w).abs().max()) > 0.05


@given(seed=st.integers(0, 1000), alpha=st.floats(0.01, 2))
def test_lasso_is_scikit_learns(seed, alpha):
    X, y = regression(seed)
    w, b = lasso(X, y, alpha)
    theirs = Lasso(alpha=alpha, tol=1e-13, max_iter=100_000).fit(X.numpy(), y.numpy())
    # our optimality conditions hold to 1e-10 of max |Xᵀy|/N, about 10, and its duality gap to 1e-13: √ of that in w
    assert w.numpy() == pytest.approx(theirs.coef_, abs=1e-6)
    assert float(b) == pytest.approx(theirs.intercept_, abs=1e-6)


@given(seed=st.integers(0, 1000), alpha=st.floats(0.01, 2))
def test_the_proximal_gradient_step_leaves_lasso_where_it_is(seed, alpha):
    """w = S(w - t ∇, tα): with the proximal step of the regularizers."""
    X, y = regression(seed)
    w, b = lasso(X, y, alpha)
    gradient = X.mT @ (X @ w + b - y) / len(y)
    torch.testing.assert_close(
        soft_threshold(w - 0.1 * gradient, 0.1 * alpha), w, rtol=0, atol=1e-8
    )  # tolerance of lasso
    assert torch.equal(soft_threshold(w, 0.1), torch.nn.functional.softshrink(w, 0.1))


def test_lasso_vanishes_at_the_largest_correlation():
    X, y = regression()
    largest = float(((X - X.mean(0)).mT @ (y - y.mean()) / len(y)).abs().max())
    assert int(lasso(X, y, 1.001 * largest)[0].count_nonzero()) == 0
    assert int(lasso(X, y, 0.999 * largest)[0].count_nonzero()) == 1


def test_lasso_of_the_lectures_polynomial_is_sparse():
    X, y = polynomial()
    w, _ = lasso(X, y, 0.01)
    theirs = Lasso(alpha=0.01, tol=1e-12, max_iter=100_000).fit(X.numpy(), y.numpy())
    assert w.numpy() == pytest.approx(theirs.coef_, abs=1e-4)  # nearly collinear: a flat valley of solutions
    assert 1 <= int(w.count_nonzero()) < 7


def test_only_the_proximal_form_gives_zeros():
    """The lecture's code, loss += α Σ torch.norm(param, 1), by gradient steps; and the proximal step."""
    X, y = regression(d=6)
    X, y = X - X.mean(0), y - y.mean()
    alpha, lr = 0.8, 0.05
    proximal, _ = lasso(X, y, alpha)
    loss = gradient_of(lambda w: (X @ w - y).square().mean() / 2 + alpha * l1_norm([w]))
    start = torch.ones(6, dtype=DOUBLE)
    end = torch_path(lambda p: torch.optim.SGD(p, lr=lr), loss, start, steps=1000)[-1]
    assert int((proximal == 0).sum()) > 0
    assert int((end == 0).sum()) == 0
    # it swings about zero by the length of a step instead
    assert float(end[proximal == 0].abs().max()) < 2 * lr * alpha


def test_l1_norm_is_the_lectures_loop():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    expected = sum(param.abs().sum() for param in model.parameters())
    torch.testing.assert_close(l1_norm(model.parameters()), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: ridge(X, y, -1.0), "alpha >= 0"),
        (lambda X, y: lasso(X, y, 0.0), "alpha > 0"),
        (lambda X, y: ridge(X, y[:-1], 1.0), r"expected \(N, d\)"),
        (lambda X, y: lasso(X[0], y, 1.0), r"expected \(N, d\)"),
        (lambda X, y: l1_norm([]), "no parameters"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(*regression())


def test_lasso_says_when_it_has_not_converged():
    with pytest.raises(RuntimeError, match="2 sweeps"):
        lasso(*polynomial(), 1e-6, max_sweeps=2)
