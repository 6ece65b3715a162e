"""Products of `CurvatureOperator` against dense Hessians that autograd makes from the definition, by network."""

import copy

import pytest
import torch
from curvature_networks import (
    CLASSES,
    NETWORKS,
    N,
    build,
    close,
    dense,
    draw,
    flat,
    mlp,
    normal,
    pairs,
    weighted_entropy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.curvature import CurvatureOperator, decompose


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("cached", [True, False])
def test_products_are_those_of_the_dense_matrices(case, cached):
    model, loss_fn, x, y, followed = build(case)
    gradient, H, G = dense(model, loss_fn, x, y)
    memory = 2**30
    if not cached:
        each = CurvatureOperator(model, loss_fn, (x, y))._recording.bytes_per_sample
        memory = int(20 * each)  # 28 would hold all seven samples' tapes; 8 for each sample of a chunk
    if not cached and loss_fn is weighted_entropy:
        with pytest.raises(ValueError, match="cannot be cut, as the loss is no mean"):
            CurvatureOperator(model, loss_fn, (x, y), memory=memory)
        return
    op = CurvatureOperator(model, loss_fn, (x, y), memory=memory)
    assert op.cached == cached
    assert op.traced == followed
    close(op.gradient(), gradient)
    close(op.loss(), loss_fn(model(x), y))
    V = normal(len(gradient), 3, seed=9)
    for kind, matrix in {"hessian": H, "ggn": G, "remainder": H - G}.items():
        same = op.with_kind(kind)
        close(same @ V[:, 0], matrix @ V[:, 0])
        close(same @ V, matrix @ V)
        assert same.products == 4
        close(CurvatureOperator(model, loss_fn, (x, y), kind=kind) @ V, matrix @ V)
    assert op.products == 0


@settings(max_examples=15)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_convolutions_of_every_geometry(kernel, stride, padding, dilation, groups, bias, seed):
    torch.manual_seed(seed)
    options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    model = nn.Sequential(
        nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Conv2d(2, 4, kernel, stride, **options), nn.ReLU(), nn.Flatten()
    ).double()
    x = normal(2, 2, 6, 6, seed=seed)
    y = torch.zeros_like(model(x)).detach()
    params = list(model.parameters())
    gradient = flat(torch.autograd.grad(mse_loss(model(x), y), params, create_graph=True), params)
    v = normal(len(gradient), seed=seed)
    op = CurvatureOperator(model, mse_loss, (x, y))
    close(op @ v, flat(torch.autograd.grad(gradient, params, v), params))
    close(op.gradient(), gradient)


def test_weight_norm_of_torch_is_right_although_its_double_backward_is_not():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, CLASSES)
    ).double()
    x, y = normal(N, 5), torch.randint(CLASSES, (N,), generator=draw())
    op = CurvatureOperator(model, cross_entropy, (x, y))
    v = normal(op.shape[0], seed=9)

    def gradient(t):
        moved = {name: p + t * op.unflatten(v)[name] for name, p in model.named_parameters()}
        return CurvatureOperator(with_weights(model, moved), cross_entropy, (x, y)).gradient()

    t = 1e-5
    close(op @ v, (gradient(t) - gradient(-t)) / (2 * t), tolerance=1e-8)  # t², and rounding of 1e-16/t
    close(op.dense(), op.dense().mT, tolerance=1e-14)


def with_weights(model, weights):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(weights[name])
    return other


class Straight(torch.autograd.Function):
    """Rounding forward, the identity backward."""

    @staticmethod
    def forward(ctx, h):
        return torch.round(4 * h) / 4

    @staticmethod
    def backward(ctx, u):
        return u


class Rounded(nn.Module):
    def forward(self, h):
        return Straight.apply(h)


def test_a_custom_backward_is_what_counts():
    """A straight-through estimator, whose forward alone would have the gradient zero."""
    model, (x, y) = nn.Sequential(*mlp(), Rounded()), pairs()
    gradient, H, _ = dense(model, cross_entropy, x, y)
    op = CurvatureOperator(model, cross_entropy, (x, y))
    assert gradient.any()
    close(op.gradient(), gradient)
    close(op.dense(), H)


class Clipped(nn.Module):
    def forward(self, h):
        return nn.functional.relu6(h + 3.0) / 6.0


def test_hardsigmoid_has_a_second_derivative_here():
    """Zero between its kinks; torch's has none."""
    torch.manual_seed(0)
    layers = nn.Linear(5, 4), nn.Linear(4, CLASSES)
    x, y = pairs()
    ours, clipped = (
        CurvatureOperator(nn.Sequential(layers[0], f, layers[1]).double(), cross_entropy, (x, y))
        for f in (nn.Hardsigmoid(), Clipped())
    )
    assert ours.traced
    close(ours.dense(), clipped.dense(), tolerance=1e-14)


class Pair(nn.Module):
    """Two outputs: the loss takes them both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)

    def forward(self, x):
        return torch.tanh(self.a(x)), self.b(x)


def pair_loss(z, y):
    return cross_entropy(z[0] + z[1], y) + z[1].square().mean()


def test_an_output_that_is_no_tensor_has_a_hessian_but_no_ggn():
    torch.manual_seed(0)
    model, (x, y) = Pair().double(), pairs()
    params = list(model.parameters())
    gradient = flat(torch.autograd.grad(pair_loss(model(x), y), params, create_graph=True), params)
    H = torch.stack([flat(torch.autograd.grad(g, params, retain_graph=True), params) for g in gradient])
    close(CurvatureOperator(model, pair_loss, (x, y)).dense(), H)
    whole = CurvatureOperator(model, pair_loss, (x, y))
    for refused in (
        lambda: CurvatureOperator(model, pair_loss, (x, y), kind="ggn"),
        lambda: CurvatureOperator(model, pair_loss, (x, y), kind="remainder"),
        lambda: whole.with_kind("ggn"),
        lambda: decompose(whole),
    ):
        with pytest.raises(ValueError, match="must return one tensor"):
            refused()


def test_float32_products_have_float32_accuracy():
    model, (x, y) = mlp(), pairs()
    v = normal(model[0].weight.numel() + 4 + 15)
    double = CurvatureOperator(model, cross_entropy, (x, y)) @ v
    single = CurvatureOperator(copy.deepcopy(model).float(), cross_entropy, (x.float(), y)) @ v.float()
    assert single.dtype == torch.float32
    close(single.double(), double, tolerance=1e-5)  # a hundred roundings of 6e-8


@pytest.mark.gpu
def test_on_an_accelerator():
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    device = torch.accelerator.current_accelerator()
    model, loss_fn, x, y, _ = build("2-D convolutions")
    host = CurvatureOperator(model, loss_fn, (x, y))
    op = CurvatureOperator(copy.deepcopy(model).to(device), loss_fn, (x, y))
    v = normal(op.shape[0])
    close((op @ v.to(device)).cpu(), host @ v)


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed, self.last = nn.Embedding(6, 4, **options), nn.Linear(4, CLASSES)
        nn.init.normal_(self.embed.weight)

    def forward(self, tokens):
        return self.last(torch.tanh(self.embed(tokens)).mean(1))


TOKENS = torch.tensor([[0, 1, 2], [0, 0, 3], [4, 5, 0]]), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"padding_idx": -6}, {"max_norm": 0.5}], ids=str)
def test_lookups_as_autograd_has_them(options):
    """The row for padding is a constant; `max_norm` shortens rows in place, and not the tangents."""
    model = Words(**options).double()
    model(TOKENS[0])  # rows are short from here on
    gradient, H, G = dense(model, cross_entropy, *TOKENS)
    op = CurvatureOperator(model, cross_entropy, TOKENS)
    assert op.traced
    V = normal(len(gradient), 2)
    close(op.gradient(), gradient)
    close(op @ V, H @ V)  # not `dense`, which would hide a matrix that is not symmetric
    close(op.with_kind("ggn") @ V, G @ V)


@pytest.mark.parametrize("option", ["sparse", "scale_grad_by_freq"])
def test_what_changes_the_gradient_alone_leaves_the_hessian_of_the_loss(option):
    model = Words().double()
    twin = Words(**{option: True}).double()
    twin.load_state_dict(model.state_dict())
    op, same = (CurvatureOperator(m, cross_entropy, TOKENS) for m in (model, twin))
    close(same.dense(), op.dense(), tolerance=1e-14)
    close(same.gradient(), op.gradient(), tolerance=1e-14)
    assert getattr(twin.embed, option)
