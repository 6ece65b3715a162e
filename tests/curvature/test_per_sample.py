"""`per_sample_ggn` against JᵀAJ formed from autograd's own J and A, in float64, on every kind of layer."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy, l1_loss, linear, mse_loss

from thalweg.curvature.jacobian_grams import jacobian_grams
from thalweg.curvature.layer_jacobians import layer_gram, layer_jacobian
from thalweg.curvature.per_sample import output_hessians, per_sample_ggn, product_eigenvalues

K = 3
# Sums of some thousand products of float64 numbers of order one, and symmetric eigenvalue solvers: 1e-12 in practice.
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(3, K)

    def forward(self, x):
        h = self.stem(x)
        h = h + self.conv2(torch.relu_(self.norm2(self.conv1(torch.relu(self.norm1(h))))))
        return self.last(h.mean((2, 3)))


class Repeated(nn.Module):
    """A layer used twice, and a weight that is two layers'."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(8, 4), nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.again.weight
        self.last = nn.Linear(4, K)

    def forward(self, x):
        h = torch.relu(self.first(x.flatten(1)))
        return self.last(self.tied(torch.relu(self.again(torch.relu(self.again(h))))))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.idle, self.lost = nn.Linear(8, K), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        self.lost(x)
        return self.last(x)


def frozen():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, K))
    model[1].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    return model


# name: (model, shape of one input, whether tr H = tr GGN)
NETWORKS = {
    "linear": (lambda: nn.Linear(8, K), (8,), True),
    "perceptron": (lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, K)), (8,), True),
    "smooth": (lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, K)), (8,), False),
    "in place": (lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(inplace=True), nn.Linear(5, K)), (8,), True),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(4, 3, 2), nn.MaxPool1d(2),
                              nn.Flatten(), nn.Linear(3, K)), (2, 7), True),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 3, 2, bias=False),
                              nn.LeakyReLU(), nn.Flatten(), nn.Linear(3, K)), (2, 4, 4), True),
    "few positions": (
        lambda: nn.Sequential(nn.Conv2d(9, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, K)), (9, 3, 2), True),
    "groups and dilation": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), nn.ReLU(),
                              nn.Conv2d(4, 8, (2, 3), groups=4, padding_mode="circular", padding=(0, 1)),
                              nn.Flatten(), nn.Linear(96, K)), (4, 4, 4), True),
    "same padding": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, (2, 3), padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(27, K)),
        (2, 3, 3), True),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, K)), (1, 3, 3, 3), True),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4),
                              nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, K)), (2, 4, 4), True),
    "residual": (Residual, (2, 4, 4), True),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, K)),
        (2, 4, 4), False),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm((5, 4)), nn.GELU(), nn.Linear(4, 2), nn.Flatten(),
                              nn.Linear(10, K)), (5, 3), False),
    "weight sharing": (Repeated, (8,), False),
    "frozen": (frozen, (2, 4, 4), True),
    "unused": (Unused, (8,), True),
}  # fmt: skip

LOSSES = {
    "cross-entropy": (cross_entropy, lambda n, g: torch.randint(K, (n,), generator=g)),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"), lambda n, g: torch.arange(n) % K),
    "squared error": (mse_loss, lambda n, g: torch.randn(n, K, generator=g, dtype=torch.float64)),
    "saddle": (
        lambda z, y: (z[:, 0] * z[:, 1] + z[:, 2] ** 3 - y).mean(),
        lambda n, g: torch.zeros(n, dtype=torch.float64),
    ),
}


def build(name, n=5, seed=0):
    make, shape, _ = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if (
                isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm))
                and module.weight is not None
            ):
                nn.init.normal_(module.weight)
        return model, torch.randn(n, *shape, dtype=torch.float64)


def targets(loss, n=5):
    loss_fn, draw = LOSSES[loss]
    return loss_fn, draw(n, torch.Generator().manual_seed(1))


def flat_function(model):
    """(θ, x) -> z of one sample, with θ the trainable parameters in one vector; and θ itself."""
    params = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}

    def outputs(theta, x):
        parts = theta.split([param.numel() for param in params.values()])
        weights = {name: part.view_as(param) for (name, param), part in zip(params.items(), parts, strict=True)}
        # the model's own functional call resolves tied weights
        return functional_call(model, weights, (x.unsqueeze(0),))[0]

    return outputs, torch.cat([param.flatten() for param in params.values()])


def out_of_place(model):
    """vmap does not follow operations in place."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def dense_gauss_newton(model, loss_fn, x, y):
    """JᵀAJ of every sample: (n, P, P)."""
    outputs, theta = flat_function(out_of_place(model))
    J = vmap(jacrev(outputs), in_dims=(None, 0))(theta, x)
    z = model(x).detach()
    A = torch.stack([jacrev(grad(lambda v, i=i: loss_fn(v[None], y[i : i + 1])))(z[i]) for i in range(len(z))])
    return J.mT @ A @ J


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_spectrum_of_every_sample_is_that_of_the_dense_matrix(name, loss):
    model, x = build(name)
    loss_fn, y = targets(loss)
    ggn = per_sample_ggn(model, loss_fn, (x, y))
    dense = dense_gauss_newton(model, loss_fn, x, y)
    spectrum = torch.linalg.eigvalsh(dense)
    torch.testing.assert_close(ggn.norms, spectrum.abs().amax(1), **CLOSE)
    torch.testing.assert_close(ggn.traces, dense.diagonal(dim1=1, dim2=2).sum(1), **CLOSE)
    torch.testing.assert_close(ggn.frobenius, torch.linalg.matrix_norm(dense), **CLOSE)
    # the K eigenvalues found are the P of the dense matrix less its P - K zeros
    order = spectrum.abs().argsort(descending=True)[:, :K]
    torch.testing.assert_close(ggn.eigenvalues, spectrum.gather(1, order).sort(1).values, **CLOSE)
    total = dense.sum(0) if ggn.reduction == "sum" else dense.mean(0)
    assert ggn.trace == pytest.approx(total.trace().item(), rel=1e-8)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (3, 1, 2)], ids=str)
def test_outputs_of_any_shape(shape):
    numbers = math.prod(shape)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, numbers), nn.Unflatten(1, shape or (1,))).double()
    if not shape:
        model.append(nn.Flatten(0))
    g = torch.Generator().manual_seed(0)
    for param in model.parameters():
        param.data = torch.randn(param.shape, generator=g, dtype=torch.float64)
    x, y = (torch.randn(5, *size, generator=g, dtype=torch.float64) for size in ((8,), shape))
    ggn = per_sample_ggn(model, mse_loss, (x, y))
    flat = nn.Sequential(*model[:3])
    expected = per_sample_ggn(flat, mse_loss, (x, y.reshape(5, -1)))
    torch.testing.assert_close(ggn.eigenvalues, expected.eigenvalues, **CLOSE)
    dense = dense_gauss_newton(flat, mse_loss, x, y.reshape(5, -1))
    torch.testing.assert_close(ggn.norms, torch.linalg.matrix_norm(dense, 2), **CLOSE)


def test_reduction_is_found():
    model, x = build("linear")
    for reduction in ("mean", "sum"):
        for loss_fn in (nn.CrossEntropyLoss(reduction=reduction), nn.MSELoss(reduction=reduction)):
            y = torch.zeros(5, dtype=torch.long) if isinstance(loss_fn, nn.CrossEntropyLoss) else model(x).detach()
            assert per_sample_ggn(model, loss_fn, (x, y)).reduction == reduction  # even where every loss is 0


def test_chunks_and_batches_change_nothing():
    model, x = build("residual", n=7)
    y = torch.arange(7) % K
    whole = per_sample_ggn(model, cross_entropy, (x, y), chunk_size=7)
    for data, options in [
        ((x, y), {"chunk_size": 2}),
        ((x, y), {"memory": 1}),
        ([x, y], {}),
        (zip(x.split(3), y.split(3), strict=True), {}),
    ]:
        # one sample's rounding depends on how many are computed together
        torch.testing.assert_close(per_sample_ggn(model, cross_entropy, data, **options).norms, whole.norms, **CLOSE)


def test_the_model_is_left_alone_and_keeps_its_gradients():
    model, x = build("batch norm")
    model(x).sum().backward()
    grads = [param.grad.clone() for param in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    per_sample_ggn(model, cross_entropy, (x, torch.arange(5) % K))
    assert all(torch.equal(param.grad, grad) for param, grad in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():  # works there too
        per_sample_ggn(model, cross_entropy, (x, torch.arange(5) % K))


@pytest.mark.parametrize("shape", [(9, 8, 2, 3), (1, 2, 6, 6)], ids=["few positions", "many positions"])
def test_either_order_of_multiplication_gives_the_same_gram(shape):
    c_in, c_out, height, width = shape
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(c_in, c_out, 2, padding=1).double()
    h = torch.randn(4, c_in, height, width, generator=generator, dtype=torch.float64)
    D = torch.randn(4, K, c_out, height + 1, width + 1, generator=generator, dtype=torch.float64)
    J = layer_jacobian(layer, "weight", h, D)
    torch.testing.assert_close(layer_gram(layer, "weight", h, D), J @ J.mT, **CLOSE)
    seen = torch.stack([torch.nn.grad.conv2d_weight(h[:1], layer.weight.shape, D[:1, c], padding=1) for c in range(K)])
    torch.testing.assert_close(J[0], seen.flatten(1), **CLOSE)


def test_output_hessian_of_cross_entropy_is_its_closed_form():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = z.softmax(1)
    A = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    torch.testing.assert_close(output_hessians(cross_entropy, z, torch.arange(6) % 4), A, **CLOSE)
    assert torch.linalg.eigvalsh(A).max() <= 0.5  # Gershgorin; the seed takes √2


def test_float32_follows_the_model():
    model, x = build("conv2d")
    y = torch.arange(5) % K
    exact = per_sample_ggn(model, cross_entropy, (x, y))
    single = per_sample_ggn(model.float(), cross_entropy, (x.float(), y))
    assert single.norms.dtype == torch.float32
    torch.testing.assert_close(single.norms.double(), exact.norms, rtol=1e-4, atol=1e-6)  # some thousand float32 sums


class OutsideItsLayer(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 0.1 * linear(x.square(), self.weight)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8, dtype=torch.float64))
        self.last = nn.Linear(8, K).double()

    def forward(self, x):
        return self.last(self.gain * x)


class Whitened(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, K).double()

    def forward(self, x):
        return self.last(x - x.mean(0))


class Bypass(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, K).double()

    def forward(self, x):
        return linear(x, self.last.weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OutsideItsLayer(8, K).double(), "'weight' acts on the output otherwise"),
        (Custom(), "no per-sample rule.*Custom"),
        (Bypass(), "'last.weight' acts on the output otherwise"),
        (Whitened(), "depends on the others"),
        (
            nn.Sequential(nn.Linear(8, K), nn.BatchNorm1d(K)).double().train(),
            "layer '1' .BatchNorm1d. normalizes by the statistics",
        ),
        (nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, K)).double().eval(), "layer '0'"),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(8, K)).double().train(), "layer '0' .Dropout. is random"),
        (nn.Linear(8, K).double().requires_grad_(False), "no trainable parameters"),
        (nn.Sequential(nn.ConvTranspose1d(8, K, 1), nn.Flatten()).double(), "ConvTranspose1d"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_models_that_are_refused(model, message):
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if isinstance(model, nn.Sequential) and isinstance(model[0], nn.ConvTranspose1d):
        x = x.unsqueeze(2)
    with pytest.raises(ValueError, match=message):
        per_sample_ggn(model, cross_entropy, (x, torch.arange(4) % K))


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (l1_loss, "piecewise linear"),
        (lambda z, y: mse_loss(z, y, reduction="none"), "scalar"),
        (lambda z, y: mse_loss(z, y) / 0, "finite"),
        (lambda z, y: mse_loss(z, y).detach(), "detach"),
        (lambda z, y: z.sum(), "not twice differentiable"),
        (
            lambda z, y: cross_entropy(
                z, y[:, 0].long() + torch.arange(len(y)) % K, weight=torch.tensor([1.0, 2.0, 3.0], dtype=z.dtype)
            ),
            "neither the mean",
        ),
        (lambda z, y: mse_loss(z, y).sqrt(), "neither the mean"),
        (lambda z, y: nn.functional.multi_margin_loss(z, y[:, 0].long()), "not twice differentiable: derivative"),
        (lambda z, y: cross_entropy(z, y[:, 0].long() - 100), "mean over ignored targets"),
    ],
)
def test_losses_that_are_refused(loss_fn, message):
    model, x = build("linear", n=6)
    with pytest.raises(ValueError, match=message):
        per_sample_ggn(model, loss_fn, (x, torch.zeros(6, K, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no data"),
        ((torch.zeros(0, 8), torch.zeros(0)), "positive length"),
        ((torch.zeros(2, 8), torch.zeros(3)), "equal"),
        ((torch.zeros(2, 8, dtype=torch.long), torch.zeros(2)), "floating-point"),
    ],
)
def test_data_that_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        per_sample_ggn(nn.Linear(8, K), mse_loss, data)


@pytest.mark.parametrize("data", [None, [{"x": torch.zeros(2, 8)}], [(1, 2, 3)]], ids=["nothing", "dict", "triple"])
def test_data_that_are_no_pairs_are_refused(data):
    with pytest.raises(TypeError, match="must be a pair"):
        per_sample_ggn(nn.Linear(8, K), mse_loss, data)


def test_inputs_of_another_type_are_refused():
    with pytest.raises(ValueError, match="fails on the data: .* same dtype"):
        per_sample_ggn(nn.Linear(8, K).double(), mse_loss, (torch.zeros(2, 8), torch.zeros(2, K)))


def test_a_penalty_inside_the_loss_is_refused():
    model, x = build("linear")

    def penalized(z, y):
        return cross_entropy(z, y) + model.weight.square().sum()

    with pytest.raises(ValueError, match="reads the parameter 'weight' besides"):
        per_sample_ggn(model, penalized, (x, torch.arange(5) % K))


def test_inference_mode_is_refused():
    model, x = build("linear")
    with torch.inference_mode(), pytest.raises(ValueError, match="no derivative can be taken"):
        per_sample_ggn(model, cross_entropy, (x, torch.arange(5) % K))


def test_weights_that_are_not_finite_are_refused():
    model, x = build("perceptron")
    model[2].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan"):
        per_sample_ggn(model, cross_entropy, (x, torch.arange(5) % K))


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss_fn", "last"),
    [(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), 2), (nn.CrossEntropyLoss(), -100)],
    ids=["weight", "ignored"],
)
def test_a_loss_that_shows_only_later_that_it_is_no_mean(loss_fn, last):
    """All is equal up to the last of 12 samples; in a batch of its own it is what it seems."""
    model, x = build("linear", n=12)
    y = torch.tensor([1] * 11 + [last])
    with pytest.raises(ValueError, match="neither the mean nor the sum"):
        per_sample_ggn(model, loss_fn, (x, y))
    summed = type(loss_fn)(weight=loss_fn.weight, reduction="sum")
    expected = dense_gauss_newton(model, summed, x, y).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(per_sample_ggn(model, summed, (x, y)).traces, expected, **CLOSE)


def test_a_batch_of_one_sample_leaves_open_what_the_loss_is():
    model, x = build("linear", n=4)
    y, loss_fn = torch.arange(4) % K, nn.CrossEntropyLoss(reduction="sum")
    parts = per_sample_ggn(model, loss_fn, [(x[:1], y[:1]), (x[1:], y[1:])])
    torch.testing.assert_close(parts.traces, per_sample_ggn(model, loss_fn, (x, y)).traces, **CLOSE)
    assert parts.reduction == "sum"
    assert per_sample_ggn(model, loss_fn, (x[:1], y[:1])).reduction == "mean"


def test_far_targets_of_a_huber_loss():
    """It is linear at the outputs, and curved around the targets: no curvature, and no kinks either."""
    model, x = build("linear", n=4)
    ggn = per_sample_ggn(model, nn.HuberLoss(), (x, torch.full((4, K), 50.0, dtype=torch.float64)))
    assert not ggn.eigenvalues.any()
    assert ggn.reduction == "mean"


def test_steps_of_time_along_the_first_axis_are_no_samples():
    """A causal network: only the later steps see the others."""

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.last = nn.LSTM(8, 4).requires_grad_(False), nn.Linear(4, K)

        def forward(self, x):
            return self.last(self.lstm(x)[0])

    x = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match="depends on the others in its batch: use model.eval.., and samples along"):
        per_sample_ggn(Steps().double(), mse_loss, (x, torch.zeros(5, 2, K, dtype=torch.float64)))


def test_running_statistics_are_not_moved():
    """Instance normalization in training mode updates them, although no sample sees another."""
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    model = nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Flatten(), nn.Linear(8, K)).double()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    per_sample_ggn(model, cross_entropy, (x, torch.arange(4) % K))
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("size", [0, -1])
def test_chunks_of_no_samples_are_refused(size):
    model, x = build("linear")
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {size}"):
        per_sample_ggn(model, cross_entropy, (x, torch.arange(5) % K), chunk_size=size)


def test_saturated_outputs_have_no_curvature_but_are_no_error():
    model, x = build("linear")
    model.weight.data *= 1e6
    ggn = per_sample_ggn(model, cross_entropy, (x, torch.arange(5) % K))
    assert ggn.reduction == "mean"
    assert ggn.norms.max() == 0


def test_an_input_that_is_changed_in_place_is_refused():
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8).double(), nn.Linear(8, K).double()

        def forward(self, x):
            h = self.a(x)
            z = self.b(h)
            h.mul_(2)
            return z + h[:, :K]

    with pytest.raises(ValueError, match="changed in place"):
        jacobian_grams(Later(), torch.ones(2, 8, dtype=torch.float64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["conv2d", "residual", "tokens"])
def test_cuda_gives_the_same(name):
    model, x = build(name)
    y = torch.arange(5) % K
    here = per_sample_ggn(model, cross_entropy, (x, y))
    there = per_sample_ggn(model.cuda(), cross_entropy, (x.cuda(), y.cuda()))
    torch.testing.assert_close(there.eigenvalues.cpu(), here.eigenvalues, **CLOSE)


def test_eigenvalues_of_a_saturated_softmax_keep_their_digits():
    """Probabilities down to 1e-300 beside those near 1: eigvalsh is off by 3e-12 on one of these."""
    z = 150 * torch.randn(3000, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = z.softmax(1)
    A = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    found = product_eigenvalues(A, torch.eye(10, dtype=torch.float64))
    # backward stable: some ε of the largest; an SVD squares nothing
    torch.testing.assert_close(found[:, -1], torch.linalg.matrix_norm(A, 2), rtol=1e-14, atol=0)
