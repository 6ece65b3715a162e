"""The spectral form against dense eigenvalues, its estimator against the mean over all probes, and its flow from He."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.operators import LayerOperator
from thalweg.regularize.frame import FrameRegularizer
from thalweg.regularize.spectral import factors, hinge_cubics, probe_penalty, spectral_penalty, start_vector

A, B = 0.5, 2.0


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def operator(shape=(2, 2, 3), size=(2, 4), seed=0, **options):
    """A small convolution in float64 and its operator."""
    conv = [nn.Conv1d, nn.Conv2d][len(shape) - 3](
        size[0], shape[0], shape[2:], bias=False, dtype=torch.float64, **options
    )
    with torch.no_grad():
        conv.weight.copy_(0.7 * torch.randn(conv.weight.shape, dtype=torch.float64, generator=draw(seed)))
    return LayerOperator.of(conv, size)


@pytest.mark.parametrize("gram", ["col", "row"])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"padding": 1, "padding_mode": "circular"}])
def test_the_exact_value_is_the_mean_hinge_of_the_gram_eigenvalues(options, gram):
    op = operator((3, 2, 3), (2, 5), **options)
    eigenvalues = torch.linalg.eigvalsh(op.gram(gram).detach())
    expected = ((eigenvalues - A).clamp(max=0) ** 2 + (eigenvalues - B).clamp(min=0) ** 2).mean()
    value = spectral_penalty(op, lower=A, upper=B, gram=gram)
    # eigenvalues of a null space come out at 1e-15, in the flat part of neither hinge: the error is of first order
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)


def test_the_exact_value_takes_a_matrix_too_and_names_a_kernel():
    W = torch.randn(4, 3, dtype=torch.float64, generator=draw())
    assert spectral_penalty(W, lower=A, upper=B) == spectral_penalty(LayerOperator.of(W), lower=A, upper=B)
    with pytest.raises(ValueError, match="a kernel needs its convolution: give the module"):
        spectral_penalty(W[..., None], lower=A, upper=B)


def test_the_exact_gradient_is_that_of_finite_differences():
    op = operator((3, 2, 3), (2, 5), padding=1)
    assert torch.autograd.gradcheck(
        lambda w: spectral_penalty(LayerOperator.of(nn.Conv1d(2, 3, 3, padding=1), (2, 5), weight=w), lower=A, upper=B),
        op.weight.detach().requires_grad_(),
    )


@pytest.mark.parametrize("gram", ["col", "row"])
def test_the_mean_over_all_probes_is_the_trace_of_the_polynomials(gram, monkeypatch):
    """E z zᵀ = I over all 2ⁿ sign vectors: value tr F(V) / n and gradient of tr P(V) / n with P' = p, both exactly."""
    op = operator((2, 2, 3), (2, 3), padding=1)  # n = m = 6: 64 probes
    V = op.gram(gram)
    eigenvalues, Q = torch.linalg.eigh(V.detach())
    signs = torch.tensor(list(itertools.product((0, 1), repeat=6))).reshape(64, 2, 3)
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: signs)
    estimate = probe_penalty(op, Q[:, -1].reshape(2, 3), lower=A, upper=B, gram=gram, probes=64)
    (gradient,) = torch.autograd.grad(estimate.value, op.weight)
    assert estimate.largest == pytest.approx(float(eigenvalues[-1]), rel=1e-12)

    top = 1.1 * estimate.largest
    values, slopes = (torch.from_numpy(c.copy()) for c in hinge_cubics(A, B, top))
    powers = (eigenvalues / top)[:, None] ** torch.arange(4)
    torch.testing.assert_close(estimate.value.detach(), (powers @ values).mean(), rtol=1e-12, atol=0)
    p = Q @ torch.diag(powers @ slopes) @ Q.T
    (expected,) = torch.autograd.grad((p * V).sum() / 6, op.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)  # a root of the cubic is good to 1e-14


@pytest.mark.parametrize("lower", [A, -math.inf])
@pytest.mark.parametrize("top", [0.4, 1.9, 2.2, 4.0, 30.0])
def test_cubics_are_the_chebyshev_expansions_of_hinge_and_slope(lower, top):
    """By numpy's interpolation at as many nodes, cut off after the third polynomial."""

    def hinge(x):
        return np.minimum((x + 1) * top / 2 - lower, 0) ** 2 + np.maximum((x + 1) * top / 2 - B, 0) ** 2

    def slope(x):
        return 2 * np.minimum((x + 1) * top / 2 - lower, 0) + 2 * np.maximum((x + 1) * top / 2 - B, 0)

    t = np.linspace(0, 1, 50)
    for found, function in zip(hinge_cubics(lower, B, top), (hinge, slope), strict=True):
        expected = np.polynomial.chebyshev.chebinterpolate(function, 31)[:4]
        np.testing.assert_allclose(
            np.polyval(found[::-1], t),
            np.polynomial.chebyshev.chebval(2 * t - 1, expected),
            rtol=0,
            atol=1e-12 * top**2,
        )


@pytest.mark.parametrize("lower", [A, 0.0, -math.inf])
@pytest.mark.parametrize("top", [0.3, 0.9, 1.9, 1.98, 2.2, 4.0, 8.8, 30.0, 1e4])
def test_factors_multiply_to_the_cubic(lower, top):
    _, slopes = hinge_cubics(lower, B, top)
    root, b, limit = factors(slopes)
    t = np.linspace(0, 1, 200)
    product = (t - root) * np.polyval(b[::-1], t)
    np.testing.assert_allclose(product, np.polyval(slopes[::-1], t), rtol=0, atol=1e-8 * abs(slopes).max())  # rounding
    assert (np.sqrt(t) * abs(product)).max() <= 1.02 * limit + 1e-12  # sampled at 32 nodes


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": 3, "dilation": 2}, {"stride": 2, "padding": 1}])
def test_inputs_that_no_output_reads_do_not_count(options, monkeypatch):
    """Value and step are those of the map of the pixels that are read, or three quarters of zeros would divide them."""
    taps = 1 if options != {"stride": 3, "dilation": 2} else 2
    op = operator((6, 2, taps), (2, 6), **options)
    V = op.gram().detach()
    read = op.inputs_read()
    assert torch.equal(read.flatten(), V.diagonal() != 0)
    assert 0 < int(read.sum()) < read.numel() == len(V)
    eigenvalues, Q = torch.linalg.eigh(V[read.flatten()][:, read.flatten()])
    size = len(eigenvalues)
    expected = ((eigenvalues - A).clamp(max=0) ** 2 + (eigenvalues - B).clamp(min=0) ** 2).mean()
    value = spectral_penalty(op, lower=A, upper=B, gram="read")
    torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-14)  # as above

    signs = torch.zeros(2**size, *op.input_shape, dtype=torch.int64)
    signs[:, read] = torch.tensor(list(itertools.product((0, 1), repeat=size)))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: signs)
    vector = torch.zeros_like(read, dtype=torch.float64)
    vector[read] = Q[:, -1]
    estimate = probe_penalty(op, vector, lower=A, upper=B, gram="read", probes=2**size)
    (gradient,) = torch.autograd.grad(estimate.value, op.weight)
    top = 1.1 * float(eigenvalues[-1])
    values, slopes = (torch.from_numpy(c.copy()) for c in hinge_cubics(A, B, top))
    powers = (eigenvalues / top)[:, None] ** torch.arange(4)
    torch.testing.assert_close(estimate.value.detach(), (powers @ values).mean(), rtol=1e-12, atol=0)
    p = Q @ torch.diag(powers @ slopes) @ Q.T
    (expected,) = torch.autograd.grad((p * op.gram()[read.flatten()][:, read.flatten()]).sum() / size, op.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)  # a root of the cubic is good to 1e-14


def test_a_shortcut_takes_the_step_of_the_same_layer_on_the_pixels_that_it_reads(monkeypatch):
    """1 x 1 with stride 2 on 8 x 8 is 1 x 1 with stride 1 on 4 x 4."""
    strided, dense = (nn.Conv2d(4, 6, 1, stride=stride, bias=False, dtype=torch.float64) for stride in (2, 1))
    dense.weight.data.copy_(strided.weight.data)
    signs = torch.randint(0, 2, (6, 4, 8, 8), generator=draw())
    for layer, drawn in ((strided, signs), (dense, signs[..., ::2, ::2])):
        monkeypatch.setattr(torch, "randint", lambda *args, drawn=drawn, **kwargs: drawn[: args[2][0]])
        size = drawn.shape[-1]
        sample = torch.zeros(1, 4, size, size, dtype=torch.float64)
        penalty = FrameRegularizer(A, B, form="spectral", generator=draw(1)).prepare(layer, sample)
        operator = LayerOperator.of(layer, sample.shape[1:])
        V = operator.gram().detach()
        largest = torch.linalg.eigh(V[V.diagonal() != 0][:, V.diagonal() != 0]).eigenvectors[:, -1]
        penalty._vectors["weight"] = torch.zeros(4, size, size, dtype=torch.float64)
        penalty._vectors["weight"][operator.inputs_read()] = largest
        penalty.step_(layer, 0.2)
    torch.testing.assert_close(strided.weight, dense.weight, rtol=1e-12, atol=1e-14)  # the same sums


def test_power_steps_find_the_largest_eigenvalue_when_warm_started():
    op = operator((4, 4, 3, 3), (4, 6, 6), padding=1)
    vector = start_vector(op, generator=draw())
    for _ in range(60):
        _, value, vector = probe_penalty(op, vector, lower=A, upper=B, generator=draw())
    exact = float(op.singular_values()[0]) ** 2
    assert value <= exact * (1 + 1e-12)
    assert value == pytest.approx(exact, rel=1e-2)  # 130 steps: the headroom is .1


def test_an_underestimated_interval_cannot_throw_the_weights_away():
    op = operator((2, 2, 3), (2, 8), padding=1)
    _, sigma, Q = torch.linalg.svd(op.dense().detach())
    value, largest, _ = probe_penalty(op, Q[-1].reshape(2, 8), lower=A, upper=B, generator=draw())
    assert largest < float(sigma[0]) ** 2 / 8
    (gradient,) = torch.autograd.grad(value, op.weight)
    # |x| |y| <= max √λ |a b| n over [0, 1.1 largest], and the gradient is 2 x y / n summed over three taps
    _, _, limit = factors(hinge_cubics(A, B, 1.1 * largest)[1])
    assert gradient.norm() < 2 * 3 * math.sqrt(1.1 * largest) * limit


def inside(op):
    values = op.singular_values().square()
    return float(((values >= A) & (values <= B)).float().mean()), float(values.max())


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), (16, 8, 8)),
        (nn.Conv2d(32, 32, 3, padding=1), (32, 4, 4)),
        (nn.Conv2d(12, 24, 3, stride=2, padding=1), (12, 8, 8)),
        (nn.Conv2d(8, 16, 1, stride=2), (8, 8, 8)),
    ],
    ids=["square", "wide on a small map", "m < n", "a quarter of the pixels"],
)
def test_he_initialization_is_led_into_the_bounds(conv, size):
    """Nearly all of the spectrum, by 300 steps of the default settings: the seed's form ends at λ_min = 0 from here."""
    with torch.no_grad():
        conv.weight.normal_(0, math.sqrt(2 / conv.weight[0].numel()), generator=draw(1))
    penalty = FrameRegularizer(A, B, form="spectral", generator=draw(2)).prepare(conv, torch.zeros(1, *size))
    for _ in range(300):
        penalty.step_(conv, lr=0.15)
        penalty.advance()
    op = LayerOperator.of(conv, size)
    values = op.singular_values().square()
    if conv.kernel_size == (1, 1):
        values = values[: 8 * 16]  # those of the pixels that are read
    assert ((values >= A) & (values <= B)).float().mean() > 0.95  # the promise of the issue; .97 to 1.0 measured
    assert values.max() < 1.1 * B


def test_the_estimate_is_reproducible_and_resumes():
    def build():
        conv = nn.Conv2d(4, 4, 3, padding=1)
        with torch.no_grad():
            conv.weight.normal_(0, 0.2, generator=draw(3))
        return conv, FrameRegularizer(A, B, form="spectral", generator=draw(4)).prepare(conv, torch.zeros(1, 4, 5, 5))

    conv, penalty = build()
    for _ in range(3):
        penalty.step_(conv, lr=0.1)
        penalty.advance()
    saved, weight = penalty.state_dict(), conv.weight.detach().clone()
    table = penalty.per_layer(conv)  # draws nothing, changes nothing
    assert table.regularized[0].value == penalty.per_layer(conv).regularized[0].value
    penalty.step_(conv, lr=0.1)
    after = conv.weight.detach().clone()

    conv, penalty = build()
    penalty.load_state_dict(saved)
    with torch.no_grad():
        conv.weight.copy_(weight)
    penalty.step_(conv, lr=0.1)
    assert torch.equal(conv.weight, after)


def test_zeros_and_nan_are_answered():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    penalty = FrameRegularizer(A, B, form="spectral", generator=draw()).prepare(conv, torch.zeros(1, 2, 4, 4))
    nn.init.zeros_(conv.weight)
    value = penalty(conv)
    value.backward()
    assert value.item() == pytest.approx(2 * (1.1 * A) ** 2)  # two channels: the factor of the spectral form
    assert not conv.weight.grad.any()
    nn.init.constant_(conv.weight, float("nan"))
    assert penalty(conv).isnan()


def test_no_warning_of_collapse_in_the_spectral_form():
    conv = nn.Conv2d(16, 16, 3, padding=1)
    penalty = FrameRegularizer(A, B, form="spectral", generator=draw()).prepare(conv, torch.zeros(1, 16, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty(conv)


@pytest.mark.parametrize("options", [{"upper": 0.1}, {"upper": math.nan}, {"gram": "both"}])
def test_bounds_and_gram_matrices_that_are_none_are_refused(options):
    options = {"lower": A, "upper": B} | options
    message = "expected bounds A <= B and gram='col', 'read' or 'row', got"
    with pytest.raises(ValueError, match=message):
        spectral_penalty(operator(), **options)
    with pytest.raises(ValueError, match=message):
        probe_penalty(operator(), torch.ones(2, 4), **options)


def test_a_margin_without_room_is_refused():
    with pytest.raises(ValueError, match="margin"):
        FrameRegularizer(0.9, 1.0, form="spectral")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_on_an_accelerator():
    """The same draws of a generator on the CPU: the same step, up to the order of float64 sums."""
    weights = []
    for device in ("cpu", torch.accelerator.current_accelerator()):
        conv = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
        with torch.no_grad():
            conv.weight.normal_(0, 0.3, generator=draw(5))
        conv.to(device)
        sample = torch.zeros(1, 6, 8, 8, dtype=torch.float64, device=device)
        penalty = FrameRegularizer(A, B, form="spectral", generator=draw(6)).prepare(conv, sample)
        for _ in range(3):
            penalty.step_(conv, lr=0.1)
        weights.append(conv.weight.detach().cpu())
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)
