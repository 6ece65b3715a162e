"""The contract of every layer operator, dense layers, and what `LayerOperator.of` reads and refuses."""

import copy
import warnings

import pytest
import torch
from random_convolutions import draw, randn, randomize
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from thalweg.operators import LayerOperator, frame

OPERATORS = {
    "Linear": lambda: LayerOperator.of(randomize(nn.Linear(4, 6))),
    "matrix": lambda: LayerOperator.of(randn(3, 5)),
    "Conv1d": lambda: LayerOperator.of(randomize(nn.Conv1d(2, 3, 3, padding=1)), (2, 6)),
    "Conv2d": lambda: LayerOperator.of(randomize(nn.Conv2d(2, 4, 3, stride=2, padding=1)), (2, 5, 4)),
    "Conv2d, depthwise": lambda: LayerOperator.of(randomize(nn.Conv2d(3, 3, 3, padding=1, groups=3)), (3, 4, 4)),
    "Conv2d, circular": lambda: LayerOperator.of(
        randomize(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")), (2, 4, 4)
    ),
    "Conv2d, 1 x 1, stride 2": lambda: LayerOperator.of(randomize(nn.Conv2d(2, 3, 1, stride=2)), (2, 4, 5)),
    "Conv3d": lambda: LayerOperator.of(randomize(nn.Conv3d(1, 2, 2)), (1, 3, 3, 3)),
}
every = pytest.mark.parametrize("build", OPERATORS.values(), ids=OPERATORS.keys())


@every
def test_contract(build):
    op = build()
    W = op.dense().detach()
    m, n = op.shape
    assert W.shape == (m, n)
    x, y = randn(2, *op.input_shape, seed=1), randn(2, *op.output_shape, seed=2)
    near = {"rtol": 0, "atol": 1e-12}  # sums of tens of products of numbers of order 1
    torch.testing.assert_close(op.matvec(x).flatten(1), x.flatten(1) @ W.T, **near)
    torch.testing.assert_close(op.rmatvec(y).flatten(1), y.flatten(1) @ W, **near)
    torch.testing.assert_close(op.matvec(x[0]), op.matvec(x)[0], **near)
    torch.testing.assert_close(op.gram(), W.T @ W, **near)
    torch.testing.assert_close(op.gram("row"), W @ W.T, **near)
    assert op.matvec(x).requires_grad == op.weight.requires_grad
    assert str(op.shape) in repr(op)


@every
def test_spectrum_is_that_of_the_matrix(build):
    op = build()
    sigma = torch.linalg.svdvals(op.dense().detach())
    # backward stable: a few ε of the largest singular value, which is below 10
    torch.testing.assert_close(op.singular_values(), sigma, rtol=0, atol=1e-10)
    torch.testing.assert_close(op.singular_values(2), sigma[:2], rtol=0, atol=1e-10)
    torch.testing.assert_close(op.singular_values(2, which="smallest"), sigma[-2:], rtol=0, atol=1e-10)
    assert op.spectral_norm() == pytest.approx(sigma[0].item(), abs=1e-10)
    squares = torch.linalg.eigvalsh(op.gram("col" if op.shape[0] >= op.shape[1] else "row")).detach().flip(0)
    torch.testing.assert_close(op.singular_values() ** 2, squares, rtol=0, atol=1e-10)


@every
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_of_zeros_and_weights_that_are_not_finite(build, value):
    op = build()
    op.weight = torch.full_like(op.weight, value)
    if value == 0:
        assert op.spectral_norm() == 0
        assert torch.equal(op.singular_values(), torch.zeros(min(op.shape), dtype=torch.float64))
    else:
        assert op.singular_values().isnan().all()
        assert len(op.singular_values()) == min(op.shape)
        assert len(op.singular_values(2)) == 2
        assert op.spectral_norm() != op.spectral_norm()


def test_a_dense_layer_takes_any_batch_axes_and_keeps_its_own_weight():
    layer = randomize(nn.Linear(4, 3))
    op = LayerOperator.of(layer, (4,))
    x = randn(2, 5, 4)
    torch.testing.assert_close(op.matvec(x) + layer.bias, layer(x))
    assert op.dense() is layer.weight


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=lambda f: f.__name__,
)
def test_parametrized_weights_are_read_and_get_gradients(wrap):
    conv = wrap(nn.Conv2d(2, 3, 3, padding=1, bias=False).double())
    buffers = {name: buffer.clone() for name, buffer in conv.named_buffers()}
    op = LayerOperator.of(conv, (2, 4, 4))  # in training mode: spectral_norm would take a power step
    assert conv.training
    assert all(module.training for module in conv.modules())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in conv.named_buffers())
    conv.eval()
    x = randn(1, 2, 4, 4)
    torch.testing.assert_close(op.matvec(x), conv(x))
    op.matvec(x).square().sum().backward()
    got = [param.grad.clone() for param in conv.parameters()]
    conv.zero_grad()
    conv(x).square().sum().backward()
    assert len(got) == len(list(conv.parameters())) > 0
    for mine, theirs in zip(got, conv.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)


def test_an_orthogonal_parametrization_is_a_tight_frame():
    bounds = LayerOperator.of(parametrizations.orthogonal(nn.Linear(4, 6).double())).frame_bounds()
    assert bounds.lower == pytest.approx(1.0, abs=1e-13)
    assert bounds.upper == pytest.approx(1.0, abs=1e-13)
    assert (bounds.rank, bounds.lost) == (4, 0)


def test_a_pruned_weight_is_read_behind_its_mask_and_is_not_a_step_old():
    layer = nn.Linear(4, 6).double()
    prune.l1_unstructured(layer, "weight", amount=8)
    with torch.no_grad():
        layer.weight_orig.mul_(2)  # torch renews layer.weight at the next forward pass only
    op = LayerOperator.of(layer)
    assert (op.dense() == 0).sum() == 8
    x = randn(4)
    torch.testing.assert_close(op.matvec(x) + layer.bias, layer(x))
    op.matvec(x).sum().backward()
    assert (layer.weight_orig.grad[layer.weight_mask == 0] == 0).all()


def test_the_weight_is_read_once():
    class Count(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return 2 * weight

    layer, count = nn.Linear(2, 2), Count()
    parametrize.register_parametrization(layer, "weight", count)
    before = count.calls
    op = LayerOperator.of(layer)
    op.matvec(torch.ones(2))
    op.rmatvec(torch.ones(2))
    assert count.calls == before + 1


def test_a_weight_given_takes_the_place_of_the_modules_own():
    conv = nn.Conv2d(1, 2, 3)
    other = torch.randn(2, 1, 3, 3, generator=draw())
    op = LayerOperator.of(conv, (1, 4, 4), weight=other)
    assert op.weight is other
    assert LayerOperator.of(nn.Linear(3, 2), weight=torch.ones(2, 3)).spectral_norm() == pytest.approx(6**0.5)


def test_the_module_is_left_alone():
    conv = nn.Conv2d(2, 3, 3, padding=1)
    before = copy.deepcopy(conv.state_dict())
    op = LayerOperator.of(conv, (2, 4, 4))
    op.frame_bounds()
    op.singular_values()
    assert all(torch.equal(before[name], value) for name, value in conv.state_dict().items())
    assert conv.weight.grad is None


@pytest.mark.parametrize(
    "module", [nn.ConvTranspose2d(1, 1, 3), nn.Embedding(3, 2), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(2, 2))]
)
def test_other_modules_are_refused_by_name(module):
    with pytest.raises(TypeError, match=f"{type(module).__name__} is not supported: expected Linear, Conv1d"):
        LayerOperator.of(module, (1, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("large", [False, True])
def test_spectra_and_inputs_of_half_precision_layers_are_those_of_their_weights(dtype, large, monkeypatch):
    if large:
        monkeypatch.setattr(frame, "known_singular_values", lambda op: None)
        monkeypatch.setattr(frame, "SMALL", 0)
    conv = randomize(nn.Conv2d(2, 8, 3, padding=1)).to(dtype)
    op = LayerOperator.of(conv, (2, 6, 6))
    exact = LayerOperator.of(conv, (2, 6, 6), weight=conv.weight.detach().double())
    # float32 arithmetic on the same weights; products in half precision err by 1e-2
    assert op.frame_bounds().lower == pytest.approx(exact.frame_bounds().lower, rel=1e-3)
    assert op.frame_bounds().upper == pytest.approx(exact.frame_bounds().upper, rel=1e-4)
    z = randn(3, 2, 6, 6).to(dtype)
    y = exact.matvec(z.double())
    torch.testing.assert_close(op.reconstruct(y.float()), z.float(), rtol=0, atol=1e-4)
    assert op.reconstruct(y.to(dtype)).dtype == dtype


@pytest.mark.parametrize("size", [8, 32], ids=["dense", "by products"])
def test_spectra_and_inputs_are_found_outside_of_autocast(size):
    op = LayerOperator.of(randomize(nn.Conv2d(4, 4, 3, padding=1)).float(), (4, size, size))
    y = op.matvec(randn(4, size, size).float())

    def measure():
        small = [op.dual_frame()] if size == 8 else []
        return [op.dense()[:8], op.singular_values(2), op.reconstruct(y), *small]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a random layer loses some of its input
        exact = measure()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = measure()
    for value, expected in zip(found, exact, strict=True):
        assert torch.equal(value, expected)


def test_errors():
    with pytest.raises(ValueError, match="LazyConv2d has an uninitialized weight: call the model once on real data"):
        LayerOperator.of(nn.LazyConv2d(3, 3), (1, 4, 4))
    with pytest.raises(TypeError, match=r"input_shape is a sequence, \(channels, \*map\) or \(n,\), got 4"):
        LayerOperator.of(nn.Conv1d(1, 1, 3), 4)
    with pytest.raises(ValueError, match="with elements, got torch.float32 of shape \\(0, 3\\)"):
        LayerOperator.of(torch.ones(0, 3))
    dense = LayerOperator.of(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"matvec takes \(\*batch, 3\), got \(4,\)"):
        dense.matvec(torch.ones(4))
    with pytest.raises(ValueError, match=r"rmatvec takes \(\*batch, 2\), got \(\)"):
        dense.rmatvec(torch.ones(()))
    with pytest.raises(ValueError, match=r"gives \(\*batch, 2\), got \(2, 3\)"):
        dense.reconstruct(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"acts on the last axis: expected input_shape \(4,\), got \(7, 4\)"):
        LayerOperator.of(nn.Linear(4, 3), (7, 4))
    with pytest.raises(ValueError, match="a kernel needs its convolution"):
        LayerOperator.of(torch.ones(2, 3, 3, 3))
    op = LayerOperator.of(torch.ones(2, 3))
    with pytest.raises(ValueError, match="side must be 'col'"):
        op.gram("rows")
    with pytest.raises(ValueError, match="has 2 singular values: k must be from 1 to 2, got 3"):
        op.singular_values(3)
    with pytest.raises(ValueError, match="k must be from 1 to 2, got 1.5"):
        op.singular_values(1.5)
    with pytest.raises(ValueError, match="which must be"):
        op.singular_values(1, which="both")
    with pytest.raises(ValueError, match=r"1 map size\(s\)\), without batch axes, got \(2, 1, 4\)"):
        LayerOperator.of(nn.Conv1d(1, 1, 3), (2, 1, 4))
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        LayerOperator.of(nn.Conv1d(1, 1, 3), (1, 8 / 2))


def test_all_singular_values_of_a_huge_layer_are_refused_with_a_way_out():
    op = LayerOperator.of(nn.Conv2d(64, 64, 3, padding=1), (64, 32, 32))
    with pytest.raises(ValueError, match="too large for all of its 65536 singular values: ask for the k largest"):
        op.singular_values()
