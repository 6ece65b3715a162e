"""`trace` and `fisher_trace`: exact values, and error bars that hold in the stated share of 200 draws."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.curvature import CurvatureOperator, Krylov, eigsh, trace
from thalweg.curvature.fisher import fisher_trace, sampled_factors
from thalweg.curvature.trace import SHARE

DRAWS = 200


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=12):
    return torch.randn(n, 6, generator=draw(1), dtype=torch.float64), torch.randint(3, (n,), generator=draw(2))


def network(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), activation(), nn.Linear(7, 5), activation(), nn.Linear(5, 3)).double()


class Matrix:
    def __init__(self, dense):
        self.dense, self.products = dense, 0
        self.shape, self.dtype, self.device = dense.shape, dense.dtype, dense.device

    def matvec(self, v):
        self.products += 1
        return self.dense @ v


@pytest.mark.parametrize("kind", ["hessian", "ggn", "remainder"])
def test_piecewise_linear_networks_are_exact(kind):
    op = CurvatureOperator(network(), cross_entropy, data(), kind=kind)
    value, error, exact = trace(op)
    assert exact
    assert error == 0.0
    assert op.products == 0
    assert value == pytest.approx(float(op.dense().trace()), abs=1e-8)  # the promise


def test_of_selected_parameters():
    op = CurvatureOperator(network(), cross_entropy, data(), params=lambda name: name == "2.weight")
    found = trace(op, products=10)
    assert found.exact
    assert found.value == pytest.approx(float(op.dense().trace()), abs=1e-8)


def test_smooth_networks_are_estimated_except_for_their_ggn():
    H = CurvatureOperator(network(nn.Tanh), cross_entropy, data())
    assert not trace(H, products=20).exact
    assert H.products == 20
    ggn = H.with_kind("ggn")
    found = trace(ggn, products=20)
    assert found.exact
    assert found.value == pytest.approx(float(ggn.dense().trace()), abs=1e-8)


def test_sums_over_several_batches_are_not_mistaken_for_means():
    x, y = data()

    def total(z, y):
        return mse_loss(z, nn.functional.one_hot(y, 3).double(), reduction="sum")

    op = CurvatureOperator(network(), total, [(x[:5], y[:5]), (x[5:], y[5:])])
    found = trace(op, products=op.shape[0])
    assert found.value == pytest.approx(float(op.dense().trace()), rel=1e-10)


def decaying(P):
    Q, _ = torch.linalg.qr(torch.randn(P, P, generator=draw(), dtype=torch.float64))
    values = torch.arange(1, P + 1, dtype=torch.float64) ** -1.0 * 20 - 0.3
    return Matrix(Q @ torch.diag(values) @ Q.mT)


@pytest.mark.parametrize("products", [8, 24])
@pytest.mark.parametrize("case", ["decaying", "Hessian"])
def test_error_bars_hold_in_the_stated_share_of_draws(case, products):
    H = (
        decaying(80)
        if case == "decaying"
        else Matrix(CurvatureOperator(network(nn.Tanh), cross_entropy, data()).dense())
    )
    truth = float(H.dense.trace())
    found = [trace(H, products=products, exact=False, generator=draw(seed)) for seed in range(DRAWS)]
    assert sum(abs(e.value - truth) <= e.error for e in found) >= SHARE * DRAWS
    values = torch.tensor([e.value for e in found])
    assert abs(float(values.mean()) - truth) <= 4 * float(values.std()) / DRAWS**0.5  # unbiased: 4 standard errors


def test_a_shared_run_narrows_the_error_bar():
    H = decaying(200)
    alone = trace(H, products=24, exact=False)
    run = Krylov(H)
    eigsh(run, 10)
    size, before = run.size, H.products
    shared = trace(run, products=24, exact=False)
    assert run.size == max(size, 12)
    assert H.products - before == 12 + max(0, 12 - size)
    assert shared.error < alone.error


def test_an_exhausted_space_is_exact():
    H = decaying(10)
    found = trace(H, products=20, exact=False)
    assert found.exact
    assert found.value == pytest.approx(float(H.dense.trace()), rel=1e-12)


def test_too_few_products_are_refused():
    with pytest.raises(ValueError, match="at least 8 products, got 7"):
        trace(decaying(10), products=7)


def test_sampled_factors_are_unbiased():
    logits = torch.randn(4, 6, generator=draw(), dtype=torch.float64)
    p = logits.softmax(1)
    A = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    S = sampled_factors(logits, 100_000, generator=draw(1))
    # 1e5 products of numbers below 1: standard errors are at most 3e-3, and 144 of them are compared
    torch.testing.assert_close(S @ S.mT, A, rtol=0, atol=0.012)
    assert float(S.sum(1).abs().max()) < 1e-12  # orthogonal to the ones, as A is


def test_fisher_traces_hold_in_the_stated_share_of_draws():
    op = CurvatureOperator(network(nn.Tanh), cross_entropy, data())
    truth = float(op.with_kind("ggn").dense().trace())
    found = [fisher_trace(op, draws=12, generator=draw(seed)) for seed in range(DRAWS)]
    assert sum(abs(e.value - truth) <= e.error for e in found) >= SHARE * DRAWS
    values = torch.tensor([e.value for e in found])
    assert abs(float(values.mean()) - truth) <= 4 * float(values.std()) / DRAWS**0.5  # unbiased: 4 standard errors
    batches = [(data()[0][:5], data()[1][:5]), (data()[0][5:], data()[1][5:])]
    split = CurvatureOperator(network(nn.Tanh), cross_entropy, batches)
    many = fisher_trace(split, draws=400)
    assert abs(many.value - truth) <= many.error


def test_labels_are_sampled_for_cross_entropy_only():
    x, y = data()
    op = CurvatureOperator(network(), lambda z, y: z.square().mean(), (x, y))
    with pytest.raises(ValueError, match="labels can only be sampled for a mean cross-entropy"):
        fisher_trace(op)
    with pytest.raises(ValueError, match="at least 4 draws"):
        fisher_trace(op, draws=3)
    with pytest.raises(ValueError, match="logits must be"):
        sampled_factors(x[0], 1, generator=draw())
    with pytest.raises(ValueError, match="logits are not finite"):
        sampled_factors(x / 0, 1, generator=draw())


def one_logit():
    targets = torch.rand(12, 1, generator=draw(), dtype=torch.float64)
    return CurvatureOperator(
        nn.Linear(6, 1).double(), nn.functional.binary_cross_entropy_with_logits, (data()[0], targets)
    )


def ignored_in_the_second_batch():
    x, y = data()
    return CurvatureOperator(network(), cross_entropy, [(x, y), (x, torch.where(y == 0, -100, y))])


def several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3).double()

        def forward(self, x):
            return {"logits": self.layer(x)}

    return CurvatureOperator(Two(), lambda z, y: cross_entropy(z["logits"], y), data())


@pytest.mark.parametrize("make", [one_logit, ignored_in_the_second_batch, several_outputs], ids=lambda f: f.__name__)
def test_other_losses_are_told_from_cross_entropy(make):
    """The cross-entropy of one logit is zero, and so would be all that is sampled for it."""
    with pytest.raises(ValueError, match="labels can only be sampled for a mean cross-entropy"):
        fisher_trace(make())


def test_a_network_without_an_exact_trace_is_estimated():
    """Hardsigmoid has no second derivative in torch, and has one here."""
    model = network(nn.Hardsigmoid)
    with torch.no_grad():
        found = trace(CurvatureOperator(model, cross_entropy, data()))
    assert not found.exact
