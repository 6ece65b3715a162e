"""Lemma 1 of seed 003, built: the product of matrices is the network, and QᵀFᵀAFQ its Gauss-Newton matrix."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from thalweg.curvature.chain import chain, layer_matrix
from thalweg.curvature.matricization import matricize, weight_derivative
from thalweg.curvature.per_sample import per_sample_ggn

K = 3
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64 products of matrices with some dozen rows

NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, K, bias=False)), (6,)),
    "perceptron": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False), nn.ReLU(inplace=True),
                              nn.Linear(5, 4, bias=False), nn.LeakyReLU(), nn.Linear(4, K, bias=False)), (2, 3)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool1d(2),
                              nn.Conv1d(3, K, 3, bias=False), nn.Flatten()), (2, 6)),
    "conv2d with head": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2),
                              nn.Conv2d(2, 2, 1, groups=2, bias=False), nn.ReLU(), nn.Flatten(),
                              nn.Linear(2, K, bias=False)), (1, 4, 4)),
    "global pooling": (
        lambda: nn.Sequential(nn.Conv2d(1, K, 2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (1, 4, 4)),
}  # fmt: skip


def build(name, n=1):
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make().double(), torch.randn(n, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_product_of_the_matrices_is_the_network(name):
    model, x = build(name)
    net = matricize(model, x)
    torch.testing.assert_close(net.output, model(x).flatten(), **CLOSE)
    assert net.names == tuple(link.name for link in chain(model, x)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_lemma_1(name):
    model, x = build(name)
    params = {key: value.detach() for key, value in model.named_parameters()}
    jacobian = jacrev(lambda v: functional_call(model, v, (x.clone(),))[0])(params)
    J = torch.cat([jacobian[key].flatten(1) for key in params], 1)
    p = model(x)[0].detach().softmax(0)
    expected = J.mT @ (torch.diag(p) - torch.outer(p, p)) @ J
    H_O = matricize(model, x).gauss_newton()
    torch.testing.assert_close(H_O, expected, **CLOSE)
    norm = per_sample_ggn(model, cross_entropy, (x, torch.tensor([0]))).norms[0]
    torch.testing.assert_close(torch.linalg.matrix_norm(H_O, 2), norm, rtol=1e-8, atol=1e-12)  # two eigenvalue solvers


@pytest.mark.parametrize("name", NETWORKS)
def test_f_is_the_derivative_in_the_matrices(name):
    net = matricize(*build(name))

    def product(matrices):
        h = net.x
        for T, Lambda in zip(matrices, net.Lambda, strict=True):
            h = Lambda @ (T @ h)
        return h

    for F_p, derivative in zip(net.F, jacrev(product)(net.T), strict=True):
        torch.testing.assert_close(F_p, derivative.flatten(1), **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
def test_q_makes_the_matrix_of_the_weights(name):
    model, x = build(name)
    net = matricize(model, x)
    for layer, T, Q in zip(net.names, net.T, net.Q, strict=True):
        torch.testing.assert_close(Q @ model.get_submodule(layer).weight.detach().flatten(), T.flatten(), **CLOSE)


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    [
        (nn.Conv1d(2, 3, 3, bias=False), (2, 6), 4),
        (nn.Conv2d(2, 2, 2, bias=False), (2, 4, 3), 6),
        (nn.Linear(4, 2), (4,), 1),
    ],
)
def test_norm_of_q_is_the_root_of_the_positions(layer, shape, positions):
    """The seed takes d² = 16 (theorem 1) and C²k²mn = 96 (theorem 2) for the first two."""
    norm = torch.linalg.matrix_norm(weight_derivative(layer, shape), 2)
    assert norm.square().item() == pytest.approx(positions, rel=1e-5)  # float32


def test_the_matrix_of_a_convolution_is_toeplitz():
    """In one dimension block for block; in two a Toeplitz matrix of blocks that are Toeplitz matrices themselves."""

    def constant_along_diagonals(T):
        return torch.equal(T[..., 1:, 1:], T[..., :-1, :-1])

    g = torch.Generator().manual_seed(0)
    line = nn.Conv1d(2, 3, 3, padding=1, bias=False).double()
    line.weight.data = torch.randn(3, 2, 3, generator=g, dtype=torch.float64)
    blocks = layer_matrix(line, (2, 6)).reshape(3, 6, 2, 6).transpose(1, 2)
    assert constant_along_diagonals(blocks)
    # row t of block (o, i) holds W[o, i] from column t - 1 on
    torch.testing.assert_close(blocks[:, :, 2, 1:4], line.weight.data)
    plane = nn.Conv2d(1, 1, 2, bias=False).double()
    plane.weight.data = torch.randn(1, 1, 2, 2, generator=g, dtype=torch.float64)
    grid = layer_matrix(plane, (1, 4, 5)).reshape(3, 4, 4, 5)  # (output row, column, input row, column)
    assert constant_along_diagonals(grid.permute(0, 2, 1, 3))
    assert constant_along_diagonals(grid.permute(1, 3, 0, 2))
    assert not constant_along_diagonals(layer_matrix(nn.Linear(4, 4, bias=False), (4,)))


def test_relu_and_max_pooling_are_zeros_and_ones():
    net = matricize(*build("conv1d"))
    assert set(net.Lambda[0].unique().tolist()) <= {0.0, 1.0}
    assert net.Lambda[0].sum(1).max() == 1  # one entry of each window


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), "'0' has a bias"),
        (nn.Sequential(nn.Linear(2, 2, bias=False)), torch.ones(3, 2), "depend on the input: give one"),
        (nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh()), torch.ones(1, 2), "no bound for a layer of type Tanh"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), torch.ones(1, 2), "no linear layer"),
        (nn.Sequential(nn.Linear(2, 2, bias=False)), torch.full((1, 2), torch.nan), "outputs are not finite"),
        (nn.Conv2d(64, 64, 3, bias=False), torch.ones(1, 64, 32, 32), "hessian_bounds and per_sample_ggn"),
    ],
)
def test_what_is_refused(model, x, message):
    with pytest.raises(ValueError, match=message):
        matricize(model, x)


def test_a_model_that_is_no_chain_is_refused():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return self.b(self.a(x)) + x

    with pytest.raises(ValueError, match="more than call its leaves"):
        matricize(Skip(), torch.ones(1, 2))
