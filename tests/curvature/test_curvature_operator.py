"""`CurvatureOperator` against dense Hessians that torch.func makes from the definition, for every kind of network."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator, eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss, nll_loss

from thalweg.curvature import CurvatureOperator, decompose

N, CLASSES = 7, 3


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=draw(seed), dtype=torch.float64)


class Residual(nn.Module):
    """Pre-activation block with a 1x1 shortcut, means by method and function, normalization in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(2), nn.BatchNorm2d(3, affine=False)
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1)
        self.shortcut, self.last = nn.Conv2d(2, 3, 1, stride=2), nn.Linear(3, CLASSES)

    def forward(self, x):
        h = torch.relu(self.norm1(x))
        x = self.conv2(torch.tanh(self.norm2(self.conv1(h)))) + self.shortcut(h)
        return self.last(nn.functional.relu(x).mean((2, 3)))


class Tied(nn.Module):
    """One matrix in two layers, and the head is its transpose."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.first.weight = self.inner.weight

    def forward(self, x):
        return self.last(torch.sigmoid(self.inner(torch.sin(self.first(x))))) + self.last(x)


class Arithmetic(nn.Module):
    """Products, quotients, constants, slices and concatenations of activations; a parameter on its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(8, CLASSES)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("offset", torch.linspace(-1, 1, 4))

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        gate = torch.sigmoid(a) * b * self.scale + self.offset
        ratio = (2.0 * a[:, :2] - 1.0) / (1.0 + b[:, 2:].square())
        both = torch.cat([gate, ratio / 3.0, a[:, 2:] * a[:, 2:]], 1)
        return self.last(both) - x.mean(1, keepdim=True)


class Attention(nn.Module):
    """Softmax attention written out, layer norm, an embedding: operations without a rule among those with one."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.k = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, tokens):
        h = self.embed(tokens)
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) / 2.0, -1)
        return self.last(self.norm(weights @ h + h).mean(1))


class Recurrent(nn.Module):
    """A fused operation of many steps, which returns a tuple."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.last = nn.Embedding(6, 4), nn.LSTM(4, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, tokens):
        return self.last(self.lstm(self.embed(tokens))[0][:, -1])


class Transformer(nn.Module):
    """An encoder layer of torch, whose fused attention has no second derivative."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(6, 4), nn.Linear(4, CLASSES)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)

    def forward(self, tokens):
        return self.last(self.layer(self.embed(tokens)).mean(1))


class Branching(nn.Module):
    """Control flow that depends on data: no trace follows it."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.layer(x)
        return self.last(torch.tanh(h) if h.sum() > -1e9 else h)


class InPlace(nn.Module):
    """Activations changed in place under another name, which a trace misses."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.layer(x)
        h.mul_(2.0)
        return self.last(torch.tanh(h))


class Pair(nn.Module):
    """Two outputs: the loss takes them both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)

    def forward(self, x):
        return torch.tanh(self.a(x)), self.b(x)


def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(3, 2), nn.Conv1d(3, 4, 2, dilation=2), nn.BatchNorm1d(4),
        nn.SiLU(), nn.AvgPool1d(2), nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def conv2d():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(inplace=True), nn.MaxPool2d(2, stride=1),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(inplace=True),
        nn.ConvTranspose2d(4, 2, 2, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Dropout(0.5),
        nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten(), nn.Linear(12, CLASSES),
    )  # fmt: skip


def group_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


def smooth_mlp():
    return nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4), nn.Mish(), nn.Linear(4, CLASSES)
    )  # fmt: skip


def relu_mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def log_softmax():
    return nn.Sequential(nn.Linear(5, CLASSES), nn.LogSoftmax(1))


class Skew(nn.Module):
    def forward(self, w):
        return w.triu() - w.triu().T


def parametrized():
    layer = nn.utils.parametrize.register_parametrization(nn.Linear(5, 5), "weight", Skew())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, CLASSES))


def pair_loss(z, y):
    return cross_entropy(z[0] + z[1], y) + z[1].square().mean()


def weighted_entropy(z, y):
    """A mean over samples weighted by class: no mean over samples."""
    return cross_entropy(z, y, weight=torch.tensor([1.0, 2.0, 5.0], dtype=z.dtype))


def images(size=8):
    return normal(N, 2, size, size, seed=1)


# network, input, loss, whether the trace is followed
NETWORKS = {
    "MLP": (relu_mlp, lambda: normal(N, 5), cross_entropy, True),
    "MLP, squared error": (smooth_mlp, lambda: normal(N, 5), mse_loss, True),
    "tokens through linear layers": (smooth_mlp, lambda: normal(N, 4, 5), mse_loss, True),
    "1-D convolutions": (conv1d, lambda: normal(N, 2, 18), cross_entropy, True),
    "2-D convolutions": (conv2d, images, cross_entropy, True),
    "residual": (Residual, images, cross_entropy, True),
    "weight sharing": (Tied, lambda: normal(N, 5), cross_entropy, True),
    "arithmetic": (Arithmetic, lambda: normal(N, 5), mse_loss, True),
    "attention": (Attention, lambda: torch.randint(6, (N, 4), generator=draw()), cross_entropy, True),
    "LSTM": (Recurrent, lambda: torch.randint(6, (N, 4), generator=draw()), cross_entropy, False),
    "transformer": (Transformer, lambda: torch.randint(6, (N, 4), generator=draw()), cross_entropy, True),
    "group norm": (group_norm, images, mse_loss, True),
    "log-probabilities": (log_softmax, lambda: normal(N, 5), nll_loss, True),
    "weights computed from others": (parametrized, lambda: normal(N, 5), cross_entropy, True),
    "not traceable": (Branching, lambda: normal(N, 5), cross_entropy, False),
    "in place": (InPlace, lambda: normal(N, 5), mse_loss, False),
    "loss that is no sample mean": (smooth_mlp, lambda: normal(N, 5), weighted_entropy, True),
}  # fmt: skip


def build(case):
    make, x, loss_fn, followed = NETWORKS[case]
    torch.manual_seed(0)  # layers draw their weights from the global state
    model = make().double().eval()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(generator=draw()), norm.running_var.uniform_(0.5, 2.0, generator=draw())
                if norm.affine:
                    norm.weight.uniform_(0.5, 2.0, generator=draw()), norm.bias.normal_(generator=draw())
        x = x()
        z = model(x)
    target = torch.randint(CLASSES, (N,), generator=draw()) if loss_fn is not mse_loss else normal(*z.shape, seed=5)
    return model, loss_fn, x, target, followed


def dense(model, loss_fn, x, y, names=None):
    """Gradient, H and H_O row by row by double backward, whose derivatives autograd makes from the definition.

    Not torch.func.hessian: in torch 2.13 neither forward nor reverse over reverse is symmetric for the gain of a layer
    norm over (n, tokens, d), nor for weight norm; finite differences agree with the double backward.
    """
    params = [p for name, p in model.named_parameters() if names is None or name in names]

    def rows(vector, leaves):
        parts = [
            torch.autograd.grad(e, leaves, retain_graph=True, allow_unused=True) for e in vector if e.requires_grad
        ]
        return torch.stack([flat(part, leaves) for part in parts])

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no double backward
        z = model(x)
    gradient = flat(torch.autograd.grad(loss_fn(z, y), params, create_graph=True), params)
    J = rows(z.reshape(-1), params)
    leaf = z.detach().requires_grad_()
    A = rows(torch.autograd.grad(loss_fn(leaf, y), leaf, create_graph=True)[0].reshape(-1), [leaf])
    return gradient.detach(), rows(gradient, params), J.mT @ A @ J


def flat(parts, like):
    return torch.cat([(torch.zeros_like(p) if a is None else a).reshape(-1) for a, p in zip(parts, like, strict=True)])


def close(actual, expected, tolerance=1e-10):
    """Relative to the largest entry; 1e-10 is the promise for products in float64."""
    actual, expected = actual.detach(), expected.detach()
    assert float((actual - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


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


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()


def pairs(n=N):
    return normal(n, 5), torch.randint(CLASSES, (n,), generator=draw())


def test_batches_count_by_their_samples():
    model, (x, y) = mlp(), pairs(9)
    whole = CurvatureOperator(model, cross_entropy, (x, y))
    batches = CurvatureOperator(model, cross_entropy, ((x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)))
    v = normal(whole.shape[0])
    close(batches @ v, whole @ v, tolerance=1e-14)
    close(batches.gradient(), whole.gradient(), tolerance=1e-14)
    close(batches.loss(), whole.loss(), tolerance=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_is_cut_where_the_loss_is_a_mean_or_a_sum(reduction):
    model, loss_fn = smooth_mlp().double(), nn.MSELoss(reduction=reduction)
    x, y = normal(60, 5), normal(60, CLASSES, seed=2)
    data = [(x[:40], y[:40]), (x[40:], y[40:])]
    whole = CurvatureOperator(model, loss_fn, data)
    each = whole._recording.bytes_per_sample
    cut = CurvatureOperator(model, loss_fn, data, memory=int(80 * each))  # ten samples of 4 · 2 · each
    assert [chunk.count for chunk in cut._recording._chunks] == [10] * 6
    v = normal(whole.shape[0])
    close(cut @ v, whole @ v, tolerance=1e-13)
    close(cut.loss(), whole.loss(), tolerance=1e-13)
    close(cut.gradient(), whole.gradient(), tolerance=1e-13)


def test_a_sum_is_no_mean_where_both_are_zero():
    """Targets that a network hits have the loss zero, which says nothing of the weight of a part."""
    model, x = smooth_mlp().double(), normal(60, 5)
    data = x, model(x).detach()
    whole = CurvatureOperator(model, nn.MSELoss(reduction="sum"), data)
    cut = CurvatureOperator(
        model, nn.MSELoss(reduction="sum"), data, memory=int(80 * whole._recording.bytes_per_sample)
    )
    assert (len(cut._recording._chunks), float(whole.loss())) == (6, 0.0)
    v = normal(whole.shape[0])
    close(cut @ v, whole @ v, tolerance=1e-13)


def test_a_target_that_is_no_sequence_of_samples():
    model, (x, _) = smooth_mlp().double(), pairs()
    op = CurvatureOperator(model, lambda z, y: (z - y).square().mean(), (x, torch.tensor(0.5, dtype=torch.float64)))
    expected = CurvatureOperator(model, mse_loss, (x, torch.full((N, CLASSES), 0.5, dtype=torch.float64)))
    close(op.dense(), expected.dense(), tolerance=1e-14)


def test_a_custom_backward_is_what_counts():
    """A straight-through estimator, whose forward alone would have the gradient zero."""
    model, (x, y) = nn.Sequential(*mlp(), Rounded()), pairs()
    gradient, H, _ = dense(model, cross_entropy, x, y)
    op = CurvatureOperator(model, cross_entropy, (x, y))
    assert gradient.any()
    close(op.gradient(), gradient)
    close(op.dense(), H)


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


def test_chunks_within_the_cache_change_nothing():
    """700 tokens of 60 samples exceed the activations that a chunk may have."""
    model, x = smooth_mlp().double(), normal(60, 700, 5)
    y = normal(60, 700, 3, seed=2)
    op = CurvatureOperator(model, mse_loss, (x, y))
    assert len(op._recording._chunks) == 2
    assert op.cached
    v = normal(op.shape[0])
    close(op @ v, CurvatureOperator(model, mse_loss, [(x[:20], y[:20]), (x[20:], y[20:])]) @ v)


def test_the_operator_is_a_snapshot_and_leaves_the_model_alone():
    model, data = mlp(), pairs()
    before = copy.deepcopy(model.state_dict())
    op = CurvatureOperator(model, cross_entropy, data)
    v = normal(op.shape[0])
    product = op @ v
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    assert torch.equal(op @ v, product)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.load_state_dict(before)
    assert torch.equal(CurvatureOperator(model, cross_entropy, data) @ v, product)


def test_only_selected_parameters_count():
    model, (x, y) = mlp(), pairs()
    model[0].bias.requires_grad_(False)
    op = CurvatureOperator(model, cross_entropy, (x, y), params=lambda name: name != "2.weight")
    assert op.names == ("0.weight", "2.bias")
    for p in model.parameters():
        p.requires_grad_(True)
    gradient, H, G = dense(model, cross_entropy, x, y, names=op.names)
    close(op.dense(), H)
    close(op.with_kind("ggn").dense(), G)
    close(op.gradient(), gradient)
    close(op.restrict(lambda name: name == "2.bias").dense(), H[-3:, -3:])
    assert {name: v.shape for name, v in op.unflatten(gradient).items()} == {"0.weight": (4, 5), "2.bias": (3,)}


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


def test_statistics_of_the_batch_when_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, CLASSES)).double().train()
    x, y = pairs()
    with pytest.raises(ValueError, match=r"'1' \(BatchNorm1d\) is in training mode"):
        CurvatureOperator(model, cross_entropy, (x, y))
    before = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    twin[2].eval()
    _, batch, _ = dense(twin, cross_entropy, x, y)
    _, running, _ = dense(copy.deepcopy(model).eval(), cross_entropy, x, y)
    close(CurvatureOperator(model, cross_entropy, (x, y), mode="batch").dense(), batch)
    close(CurvatureOperator(model, cross_entropy, (x, y), mode="eval").dense(), running)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scipy_takes_the_numpy_view():
    op = CurvatureOperator(mlp(), cross_entropy, pairs())
    wrapped = aslinearoperator(op.numpy())
    V = normal(op.shape[0], 2).numpy()
    np.testing.assert_allclose(wrapped @ V, (op @ torch.tensor(V)).numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(wrapped.T @ V[:, 0], wrapped @ V[:, 0], rtol=0, atol=1e-14)
    expected = np.linalg.eigvalsh(op.dense().numpy())[-3:]
    np.testing.assert_allclose(eigsh(op.numpy(), 3, which="LA")[0], expected, rtol=0, atol=1e-8)  # the promise


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


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.square().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, u):
        (z,) = ctx.saved_tensors
        return u * 2 * z / z.numel()


class Clipped(nn.Module):
    def forward(self, h):
        return nn.functional.relu6(h + 3.0) / 6.0


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


class FirstOrder(nn.Module):
    """No trace follows it, and autograd knows its gradient alone."""

    def forward(self, h):
        return nn.functional.hardsigmoid(h) if h.sum() > -1e9 else h


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.layer(x) + torch.randn(len(x), 1, dtype=x.dtype)


def frozen():
    return mlp().requires_grad_(False)


def nan():
    model = mlp()
    model[0].weight.data[0, 0] = float("nan")
    return model


def squares(z, y):
    return z.square().mean()


def test_what_cannot_be_done_is_refused():
    x, y = pairs()
    for arguments, options, message in (
        ((mlp(), cross_entropy, []), {}, "there is no data"),
        ((mlp(), cross_entropy, (x[:0], y[:0])), {}, "there is no data"),
        ((frozen(), cross_entropy, (x, y)), {}, "no trainable parameter"),
        (
            (mlp(), cross_entropy, (x, y)),
            {"params": lambda name: name == "absent"},
            "no trainable parameter that params",
        ),
        ((nan(), cross_entropy, (x, y)), {}, "the loss is nan"),
        ((mlp(), lambda z, y: squares(z, y) * float("inf"), (x, y)), {}, "the loss is inf"),
        ((mlp(), lambda z, y: Once.apply(z), (x, y)), {}, "not twice differentiable"),
        ((mlp(), lambda z, y: (z - 1.0).abs().mean(), (x, y)), {}, "not twice differentiable"),
        ((mlp(), lambda z, y: torch.relu(1.0 - z).mean(), (x, y)), {}, "not twice differentiable"),
        ((mlp(), lambda z, y: z.square(), (x, y)), {}, "scalar"),
        ((mlp(), lambda z, y: squares(z.detach(), y), (x, y)), {}, "does not depend on the model's output"),
        ((Noisy().double(), squares, (x, y)), {}, "output is random"),
        ((nn.Sequential(mlp(), FirstOrder()), squares, (x, y)), {}, "the model is not twice differentiable"),
        ((nn.Sequential(mlp(), FirstOrder()), squares, (x, y)), {"kind": "ggn"}, "the model is not twice diff"),
        ((mlp(), cross_entropy, (x, y)), {"kind": "fisher"}, "kind must be one of"),
        ((mlp(), cross_entropy, (x, y)), {"mode": "train"}, "mode must be"),
    ):
        with pytest.raises(ValueError, match=message):
            CurvatureOperator(*arguments, **options)
    with pytest.raises(TypeError, match="pairs"):
        CurvatureOperator(mlp(), cross_entropy, [x])
    op = CurvatureOperator(mlp(), cross_entropy, (x, y))
    with pytest.raises(ValueError, match="a vector of 39 numbers"):
        op @ torch.zeros(4)
    with pytest.raises(ValueError, match="a matrix of 39 rows"):
        op.matmat(torch.zeros(4, 2))


def test_a_loss_linear_in_the_output_is_twice_differentiable():
    """Such as an output itself: the whole Hessian is its remainder."""
    model, (x, y) = mlp(), pairs()
    op = CurvatureOperator(model, lambda z, y: z[:, 0].mean(), (x, y))
    assert not (op.with_kind("ggn") @ normal(op.shape[0])).any()
    assert torch.equal(op.with_kind("remainder").dense(), op.dense())
    assert op.dense().any()
