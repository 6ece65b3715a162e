"""Convolutions as operators, against the module on unit maps and the autograd Jacobian, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_convolutions import convolutions, matrix, randn, randomize
from torch import nn

from thalweg.operators import ConvolutionOperator, LayerOperator

# Entries are sums of at most a few hundred products of numbers of order 1.
EXACT = {"rtol": 0, "atol": 1e-12}


@given(convolutions())
def test_matrix_and_both_products_are_the_module_without_its_bias(case):
    module, shape = case
    op = LayerOperator.of(module, shape)
    W = matrix(module, shape)
    assert op.shape == tuple(W.shape)
    torch.testing.assert_close(op.dense(), W, **EXACT)
    units = torch.eye(op.shape[0], dtype=torch.float64).view(-1, *op.output_shape)
    torch.testing.assert_close(op.rmatvec(units).flatten(1), W, **EXACT)
    x = randn(2, *shape)
    torch.testing.assert_close(op.matvec(x).flatten(1), x.flatten(1) @ W.T, **EXACT)


@given(convolutions())
def test_inputs_that_no_output_reads_are_the_columns_of_zeros(case):
    module, shape = case
    op = LayerOperator.of(module, shape, weight=torch.ones_like(module.weight))
    assert torch.equal(op.inputs_read().flatten(), op.dense().any(0))


@given(convolutions(), st.integers(0, 2**31))
def test_adjoint_identity(case, seed):
    op = LayerOperator.of(*case)
    x, y = randn(*op.input_shape, seed=seed), randn(*op.output_shape, seed=seed + 1)
    Wx, Wty = op.matvec(x).detach(), op.rmatvec(y).detach()
    # rounding of the inner products, whose terms are bounded by these norms
    bound = 1e-13 * float(Wx.norm() * y.norm() + x.norm() * Wty.norm()) + 1e-300
    assert abs(float((Wx * y).sum() - (x * Wty).sum())) <= bound


CASES = {
    "strided, dilated, in groups": (nn.Conv2d(4, 2, (3, 2), (2, 1), (1, 0), (1, 2), 2), (4, 4, 4)),
    "circular": (nn.Conv2d(2, 3, 3, 2, 1, padding_mode="circular"), (2, 5, 4)),
    "same, even span": (nn.Conv1d(2, 3, 4, padding="same"), (2, 7)),
    "same, even span, circular": (nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (2, 7)),
    "three axes": (nn.Conv3d(1, 2, (2, 3, 1), (1, 2, 1), (1, 1, 2)), (1, 3, 4, 2)),
}
cases = pytest.mark.parametrize(("module", "shape"), CASES.values(), ids=CASES.keys())


@cases
def test_matrix_is_the_jacobian_of_the_module(module, shape):
    randomize(module)
    jacobian = torch.autograd.functional.jacobian(module, randn(1, *shape))
    op = LayerOperator.of(module, shape)
    torch.testing.assert_close(op.dense(), jacobian.reshape(op.shape), **EXACT)


@cases
def test_products_and_matrix_are_differentiable_in_vector_and_weight(module, shape):
    randomize(module)
    op = LayerOperator.of(module, shape)
    x, y = randn(2, *op.input_shape, seed=1), randn(2, *op.output_shape, seed=2)

    def with_weight(product):
        return lambda weight, vector: getattr(LayerOperator.of(module, shape, weight=weight), product)(vector)

    weight = module.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(with_weight("matvec"), (weight, x.requires_grad_()))
    assert torch.autograd.gradcheck(with_weight("rmatvec"), (weight, y.requires_grad_()))
    assert torch.autograd.gradcheck(lambda weight: LayerOperator.of(module, shape, weight=weight).dense(), (weight,))


@cases
def test_second_derivatives(module, shape):
    randomize(module)
    op = LayerOperator.of(module, shape)
    weight, x = module.weight.detach().requires_grad_(), randn(1, *op.input_shape).requires_grad_()

    def quadratic(weight, x):
        op = LayerOperator.of(module, shape, weight=weight)
        return op.rmatvec(op.matvec(x))

    assert torch.autograd.gradgradcheck(quadratic, (weight, x))


@cases
def test_batch_axes_any_number(module, shape):
    op = LayerOperator.of(randomize(module), shape)
    x, y = randn(2, 3, *op.input_shape), randn(2, 3, *op.output_shape)
    # one image and a batch may take different kernels of the backend: rounding only
    torch.testing.assert_close(op.matvec(x)[1, 2], op.matvec(x[1, 2]), **EXACT)
    torch.testing.assert_close(op.rmatvec(y)[1, 2], op.rmatvec(y[1, 2]), **EXACT)
    assert op.matvec(x).shape == (2, 3, *op.output_shape)
    assert op.rmatvec(y).shape == (2, 3, *op.input_shape)


def test_dtype_follows_the_weight():
    op = LayerOperator.of(nn.Conv2d(2, 3, 3, padding=1).to(torch.bfloat16), (2, 4, 4))
    assert op.matvec(torch.zeros(2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert op.dense().dtype == torch.bfloat16
    assert op.singular_values().dtype == torch.float32


def test_a_map_that_is_never_read_at_its_end():
    """Stride 3 over 5 pixels reads pixels 0 and 3: the transpose must still give five."""
    op = LayerOperator.of(nn.Conv1d(1, 1, 1, stride=3), (1, 5))
    assert op.rmatvec(torch.ones(1, 2)).shape == (1, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("name", CASES)
def test_on_an_accelerator(name):
    module, shape = CASES[name]
    on_cpu = LayerOperator.of(randomize(module), shape)
    device = torch.accelerator.current_accelerator()
    op = LayerOperator.of(module, shape, weight=module.weight.detach().to(device))
    x, y = randn(2, *op.input_shape), randn(2, *op.output_shape)
    torch.testing.assert_close(op.matvec(x.to(device)).cpu(), on_cpu.matvec(x).detach(), **EXACT)
    torch.testing.assert_close(op.rmatvec(y.to(device)).cpu(), on_cpu.rmatvec(y).detach(), **EXACT)
    torch.testing.assert_close(op.dense().cpu(), on_cpu.dense().detach(), **EXACT)
    torch.testing.assert_close(op.singular_values().cpu(), on_cpu.singular_values(), rtol=0, atol=1e-10)
    assert op.frame_bounds().upper == pytest.approx(on_cpu.frame_bounds().upper)


WRONG = {
    "reflect": (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 5), "padding_mode='reflect'"),
    "replicate": (lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate"), (1, 5), "is not supported"),
    "no size": (lambda: nn.Conv2d(1, 1, 3), None, "give input_shape"),
    "channels": (lambda: nn.Conv2d(4, 2, 3, groups=2), (2, 5, 5), r"takes input_shape=\(4, 2 map"),
    "axes": (lambda: nn.Conv2d(1, 1, 3), (1, 5), "got \\(1, 5\\)"),
    "small map": (lambda: nn.Conv2d(1, 1, 5), (1, 5, 4), "smaller than the kernel"),
    "wraps twice": (lambda: nn.Conv1d(1, 1, 3, padding=3, padding_mode="circular"), (1, 2), "more than once"),
}


@pytest.mark.parametrize(("build", "shape", "message"), WRONG.values(), ids=WRONG.keys())
def test_errors(build, shape, message):
    with pytest.raises(ValueError, match=message):
        LayerOperator.of(build(), shape)


def test_errors_of_the_kernel_and_the_vectors():
    K = torch.ones(1, 1, 3)
    with pytest.raises(ValueError, match="1 to 3 axes"):
        ConvolutionOperator(torch.ones(3, 3), (1, 5))
    with pytest.raises(ValueError, match="is real"):
        ConvolutionOperator(K.to(torch.complex64), (1, 5))
    with pytest.raises(ValueError, match="'same' has no meaning with stride"):
        ConvolutionOperator(K, (1, 5), stride=2, padding="same")
    with pytest.raises(ValueError, match="'same' or 'valid'"):
        ConvolutionOperator(K, (1, 5), padding="full")
    with pytest.raises(ValueError, match="stride must be an integer >= 1"):
        ConvolutionOperator(K, (1, 5), stride=0)
    with pytest.raises(ValueError, match="padding must be an integer >= 0"):
        ConvolutionOperator(K, (1, 5), padding=(1, 1))
    op = ConvolutionOperator(K, (1, 5))
    with pytest.raises(ValueError, match="matvec takes"):
        op.matvec(torch.ones(1, 6))
    with pytest.raises(ValueError, match="rmatvec takes"):
        op.rmatvec(torch.ones(5))
