"""The tracker against dense Hessians along a training run, and the products it spends."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.landscape import EdgeOfStability
from thalweg.landscape.edge_of_stability import ritz_top, stability_limit


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def top_eigenvalue(model, loss_fn, data):
    names, params = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in params]

    def loss(vector):
        parts = torch.split(vector, sizes)
        named = {n: part.view_as(p) for n, p, part in zip(names, params, parts, strict=True)}
        return loss_fn(torch.func.functional_call(model, named, (data[0],)), data[1])

    H = torch.autograd.functional.hessian(loss, torch.cat([p.detach().reshape(-1) for p in params]))
    return torch.linalg.eigvalsh(H)[-1].item()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def classes(n=30):
    return torch.randn(n, 4, generator=draw(), dtype=torch.float64), torch.arange(n) % 3


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_follows_the_dense_hessian_through_training(kind):
    model, data = network(), classes()
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.5), "adam": lambda p: torch.optim.Adam(p, lr=0.01)}[kind]
    optimizer = make(model.parameters())
    tracker = EdgeOfStability(model, cross_entropy, data, optimizer, products=3, generator=draw())
    for _ in range(25):
        row, truth = tracker.measure(), top_eigenvalue(model, cross_entropy, data)
        assert row.sharpness <= truth + 1e-9  # a Ritz value never exceeds the top eigenvalue
        assert row.sharpness > 0.99 * truth  # three products behind a moving Hessian
        assert row.threshold == 2 / optimizer.param_groups[0]["lr"]
        assert row.ratio == pytest.approx(row.sharpness / row.threshold)
        optimizer.zero_grad()
        cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    assert [row.step for row in tracker.rows] == list(range(25))
    assert [row.products for row in tracker.rows[1:]] == [3] * 24


def test_gradient_descent_on_a_quadratic_sits_where_it_was():
    """A constant Hessian: the residual keeps falling as later measurements continue the first."""
    g = draw(1)
    x = torch.randn(50, 30, generator=g, dtype=torch.float64)
    model = nn.Linear(30, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tracker = EdgeOfStability(
        model, mse_loss, (x, torch.zeros(50, 1).double()), optimizer, products=2, first=4, generator=g
    )
    rows = [tracker.measure() for _ in range(20)]
    truth = torch.linalg.eigvalsh(2 * x.T @ x / 50)[-1].item()
    assert rows[-1].residual < 0.1 * rows[0].residual
    assert rows[-1].sharpness == pytest.approx(truth, rel=1e-3)  # λ errs by the square of the residual
    assert all(a.sharpness <= b.sharpness + 1e-9 for a, b in itertools.pairwise(rows))
    assert abs(rows[0].sharpness - truth) < 10 * rows[0].residual


def test_reads_the_largest_and_current_rate():
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.4}]
    optimizer = torch.optim.SGD(groups)
    tracker = EdgeOfStability(model, cross_entropy, classes(), optimizer, generator=draw())
    assert tracker.measure().threshold == 5.0
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert tracker.measure().threshold == float("inf")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.5, "weight_decay": 0.3},
        {"weight_decay": 0.3},
        {"dampening": 0.5},  # without momentum torch dampens nothing
    ],
)
def test_threshold_is_where_descent_on_a_quadratic_starts_to_diverge(options):
    lr = 0.2
    for factor, stable in [(0.98, True), (1.02, False)]:
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([w], lr=lr, **options)
        sharpness = factor * stability_limit(optimizer)
        for _ in range(3000):
            optimizer.zero_grad()
            (sharpness * w.square() / 2).sum().backward()
            optimizer.step()
        assert (abs(w.item()) < 1e-3) == stable, (factor, w.item())
        assert (abs(w.item()) > 1e3 or w.isnan().item()) != stable


def test_parameters_that_start_to_train():
    model, data = network(), classes()
    model[0].requires_grad_(False)
    tracker = EdgeOfStability(model, cross_entropy, data, torch.optim.SGD(model.parameters(), lr=0.1))
    tracker.measure()
    model[0].requires_grad_(True)
    row = tracker.measure()
    assert row.products == 30  # as the first time: the vector found before is one of another space
    assert row.sharpness == pytest.approx(top_eigenvalue(model, cross_entropy, data), rel=1e-6)
    assert tracker.measure().products == 3


def test_ritz_value_is_the_krylov_space():
    A = torch.randn(12, 12, generator=draw(), dtype=torch.float64)
    H, v = A + A.T, torch.randn(12, generator=draw(1), dtype=torch.float64)
    K = torch.linalg.qr(torch.stack([v, H @ v, H @ H @ v], dim=1)).Q
    value, vector, residual = ritz_top(H.mv, v, 3)
    assert value == pytest.approx(torch.linalg.eigvalsh(K.T @ H @ K)[-1].item(), rel=1e-10)
    assert residual == pytest.approx((H @ vector - value * vector).norm().item(), rel=1e-8)
    assert float(vector.norm()) == pytest.approx(1)
    value, _, residual = ritz_top(H.mv, v, 12)
    assert value == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-10)


class Decoupled(nn.Module):
    """L = w² / 2 + (1 + t) u² / 2 for an input t: a Hessian diag(1, 1 + t, 0, …) whose eigenvectors do not move."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(50, dtype=torch.float64))

    def forward(self, t):
        return (self.weight[0].square() + (1 + t) * self.weight[1].square()) / 2


def test_an_eigenvalue_that_overtakes_in_another_direction_is_seen():
    t = torch.tensor([-0.5], dtype=torch.float64)
    model = Decoupled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = EdgeOfStability(model, lambda z, _: z.mean(), (t, t), optimizer)
    assert tracker.measure().sharpness == pytest.approx(1.0)
    t.fill_(1.0)  # the data are not copied
    found = [tracker.measure().sharpness for _ in range(10)]
    assert found[-1] == pytest.approx(2.0, rel=1e-6)


def test_measuring_draws_nothing_that_training_draws():
    model = network()
    tracker = EdgeOfStability(model, cross_entropy, classes(), torch.optim.SGD(model.parameters(), lr=0.1))
    state = torch.get_rng_state()
    tracker.measure(), tracker.measure()
    assert torch.equal(state, torch.get_rng_state())


def test_fused_attention_is_taken_apart():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True).double().eval()
    x = torch.randn(3, 5, 4, generator=draw(), dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    y = torch.randn(3, 5, 4, generator=draw(1), dtype=torch.float64)
    row = EdgeOfStability(model, mse_loss, (x, y), optimizer, first=40).measure()
    with sdpa_kernel(SDPBackend.MATH):
        assert row.sharpness == pytest.approx(top_eigenvalue(model, mse_loss, (x, y)), rel=1e-6)


@pytest.mark.parametrize("loss_fn", [nn.L1Loss(), nn.MultiMarginLoss()], ids=str)
def test_a_loss_with_kinks_is_refused(loss_fn):
    model = network()
    x, y = classes()
    target = y if isinstance(loss_fn, nn.MultiMarginLoss) else torch.zeros(30, 3).double()
    with pytest.raises(ValueError, match="not twice differentiable"):
        EdgeOfStability(model, loss_fn, (x, target), torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, (x, y) = network().to(dtype), classes()
    data = x.to(dtype), y
    row = EdgeOfStability(model, cross_entropy, data, torch.optim.SGD(model.parameters(), lr=0.1)).measure()
    exact = top_eigenvalue(model.double(), cross_entropy, (x.to(dtype).double(), y))
    assert row.sharpness == pytest.approx(exact, rel=0.05)  # bfloat16 keeps 8 bits


def test_an_invariant_space_ends_early():
    calls = []
    value, _, residual = ritz_top(lambda v: calls.append(1) or 2 * v, torch.ones(5), 4)
    assert (value, residual, len(calls)) == (pytest.approx(2.0), pytest.approx(0, abs=1e-6), 1)
    assert ritz_top(lambda v: 0 * v, torch.ones(5), 4)[0] == 0  # a linear loss


@pytest.mark.parametrize("options", [{"products": 0}, {"first": 0}])
def test_products(options):
    model = network()
    with pytest.raises(ValueError, match="at least one product"):
        EdgeOfStability(model, cross_entropy, classes(), torch.optim.SGD(model.parameters(), lr=1), **options)


def test_an_optimizer_without_a_rate():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="without lr"):
        EdgeOfStability(model, cross_entropy, classes(), optimizer)
