"""`exact_trace` against the trace of the dense Hessian in float64, and everything that it must refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn.functional import cross_entropy, leaky_relu, max_pool2d, mse_loss

from thalweg.curvature.exact_trace import exact_trace, exact_trace_obstacle

K = 3


def draw(seed):
    return torch.Generator().manual_seed(seed)


def dense_trace(model, loss_fn, x, y):
    params = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}

    def loss(theta):
        parts = theta.split([param.numel() for param in params.values()])
        weights = {name: part.view_as(param) for (name, param), part in zip(params.items(), parts, strict=True)}
        return loss_fn(functional_call(model, weights, (x,)), y)

    return float(jacrev(grad(loss))(torch.cat([param.flatten() for param in params.values()])).trace())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(12, K)

    def forward(self, x):
        h = torch.relu(self.norm(self.stem(x)))
        return self.last(max_pool2d(h + self.conv(h), 2).flatten(1))


class Smooth(nn.Module):
    """Its activation is a function, not a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 4), nn.Linear(4, K)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.flatten(1))))


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.again, self.b = nn.Linear(32, 4), nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x):
        h = leaky_relu(self.again(self.a(x.flatten(1))))  # which no input leaves dead
        return self.b(self.again(h))


class Tied(Repeated):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, 4)
        self.other.weight = self.again.weight

    def forward(self, x):
        return self.b(torch.relu(self.other(self.again(torch.relu(self.a(x.flatten(1)))))))


def perceptron(activation):
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 5), activation, nn.Linear(5, K))


def normalized(layer):
    return nn.Sequential(nn.Conv2d(2, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(16, K))


PIECEWISE_LINEAR = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, K)),
    "relu": lambda: perceptron(nn.ReLU()),
    "relu in place": lambda: perceptron(nn.ReLU(inplace=True)),
    "leaky": lambda: perceptron(nn.LeakyReLU(0.2)),
    "hardtanh": lambda: perceptron(nn.Hardtanh()),
    "max pooling": lambda: normalized(nn.MaxPool2d(3, 1, 1)),
    "average pooling": lambda: normalized(nn.AvgPool2d(3, 1, 1)),
    "batch norm": lambda: normalized(nn.BatchNorm2d(4)),
    "dropout": lambda: normalized(nn.Dropout(0.5)),
    "residual": Residual,
}


def prepared(make, n=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        return model, torch.randn(n, 2, 4, 4, dtype=torch.float64), torch.arange(n) % K


@pytest.mark.parametrize("loss_fn", [cross_entropy, nn.CrossEntropyLoss(reduction="sum")], ids=["mean", "sum"])
@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_it_is_the_trace_of_the_dense_hessian(name, loss_fn):
    model, x, y = prepared(PIECEWISE_LINEAR[name])
    # the dense Hessian has off-diagonal blocks of H_F, its trace none of them; float64 sums of some hundred terms
    assert exact_trace(model, loss_fn, (x, y)) == pytest.approx(dense_trace(model, loss_fn, x, y), rel=1e-8)


def test_squared_error_and_several_batches():
    model, x, _ = prepared(Residual)
    y = torch.randn(6, K, generator=draw(1), dtype=torch.float64)
    batches = list(zip(x.split(4), y.split(4), strict=True))
    for data in (batches, iter(batches)):
        assert exact_trace(model, mse_loss, data) == pytest.approx(dense_trace(model, mse_loss, x, y), rel=1e-8)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 4), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_any_relu_perceptron(seed, depth, scale):
    g = draw(seed)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(4, K)).double()
    for param in model.parameters():
        param.data = scale * torch.randn(param.shape, generator=g, dtype=torch.float64)
    x, y = torch.randn(3, 4, generator=g, dtype=torch.float64), torch.randint(K, (3,), generator=g)
    dense = dense_trace(model, cross_entropy, x, y)
    # A = diag(p) - ppᵀ cancels where p is nearly one-hot, relative to |J|²: weights up to 5⁸ make that 1e-12 of 1e10
    size = max(1.0, scale ** (2 * depth))
    assert exact_trace(model, cross_entropy, (x, y)) == pytest.approx(dense, rel=1e-8, abs=1e-10 * size)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: perceptron(nn.Tanh()), "layer '2' .Tanh. is not piecewise linear"),
        (lambda: perceptron(nn.GELU()), "layer '2' .GELU. is not piecewise linear"),
        (lambda: perceptron(nn.ELU()), "layer '2' .ELU. is not piecewise linear"),
        (lambda: nn.Sequential(*perceptron(nn.ReLU()), nn.Softmax(1)), "layer '4' .Softmax. is not piecewise linear"),
        (lambda: normalized(nn.GroupNorm(2, 4)), "layer '1' .GroupNorm. is not piecewise linear"),
        (lambda: normalized(nn.InstanceNorm2d(4)), "layer '1' .InstanceNorm2d. is not piecewise linear"),
        (Smooth, "not affine in 'a.weight' alone"),
        (Repeated, "weight sharing: layer 'again' .Linear. is used 2 times"),
        (Tied, "weight sharing: 'again.weight' and 'other.weight' are one tensor"),
    ],
)
def test_what_is_refused_and_why(make, reason):
    model, x, y = prepared(make)
    with pytest.raises(ValueError, match=reason):
        exact_trace(model, cross_entropy, (x, y))
    # and rightly: the Gauss-Newton trace is another number. GroupNorm's own gain is affine, the layer before is not
    model.double()
    J = jacrev(lambda v: functional_call(model, v, (x,)))({n: p.detach() for n, p in model.named_parameters()})
    z = model(x).detach()
    A = torch.stack([torch.diag(p) - torch.outer(p, p) for p in z.softmax(1)])
    ggn = sum(torch.einsum("ncp,ncd,ndp->", j.flatten(2), A, j.flatten(2)) for j in J.values()) / len(x)
    assert abs(float(ggn) - dense_trace(model, cross_entropy, x, y)) > 1e-4 * float(ggn)


@pytest.mark.parametrize(
    ("layer", "reason"), [(nn.BatchNorm2d(4), "normalizes by the statistics"), (nn.Dropout(0.5), "random")]
)
def test_training_mode_is_refused(layer, reason):
    model, x, y = prepared(lambda: normalized(layer))
    with pytest.raises(ValueError, match=f"layer '1'.*{reason}"):
        exact_trace(model.train(), cross_entropy, (x, y))


def test_frozen_layers_before_a_smooth_activation_do_no_harm():
    model, x, y = prepared(lambda: perceptron(nn.Tanh()))
    model[1].requires_grad_(False)
    assert exact_trace_obstacle(model, x) is None
    assert exact_trace(model, cross_entropy, (x, y)) == pytest.approx(dense_trace(model, cross_entropy, x, y), rel=1e-8)


def test_no_data():
    with pytest.raises(ValueError, match="no data"):
        exact_trace(nn.Linear(2, 2), cross_entropy, [])


def test_gradients_may_be_switched_off_around_it():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K)).double()
    x, y = torch.randn(6, 4, generator=draw(1), dtype=torch.float64), torch.arange(6) % K
    with torch.no_grad():
        assert exact_trace(model, cross_entropy, (x, y)) == pytest.approx(dense_trace(model, cross_entropy, x, y))
        assert "Tanh" in exact_trace_obstacle(nn.Sequential(model, nn.Tanh()), x)


def test_an_activation_without_a_second_derivative_is_an_obstacle():
    model = nn.Sequential(nn.Linear(4, 5), nn.Hardsigmoid(), nn.Linear(5, K)).double()
    assert "hardsigmoid" in exact_trace_obstacle(model, torch.ones(2, 4, dtype=torch.float64))


def test_vectors_of_spectral_normalization_are_not_moved():
    """In training mode every forward pass improves them."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, K))).double()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    exact_trace_obstacle(model, torch.ones(2, 4, dtype=torch.float64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
