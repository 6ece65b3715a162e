"""Orthogonal convolutions against torch's own conv2d (the paper's formula) and against the dense operator."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv1d, conv2d, conv3d

from thalweg.regularize import ConvOrthogonality, conv_orthogonality, soft_orthogonality

CONV = {1: conv1d, 2: conv2d, 3: conv3d}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paper(K, stride):
    """|Conv(K, K, stride S, padding P) - I₀|_F² with P = ⌊(k - 1)/S⌋ · S."""
    padding = [(k - 1) // stride * stride for k in K.shape[2:]]
    out = CONV[K.ndim - 2](K, K, stride=stride, padding=padding)
    target = torch.zeros_like(out)
    target[(slice(None), slice(None), *(p // stride for p in padding))] = torch.eye(K.shape[0], dtype=K.dtype)
    return (out - target).square().sum()


def circular_operator(K, size, stride, dilation):
    """Dense matrix (O · outputs, I · size²) of a convolution on a circular map: columns are images of unit images."""
    reach = [dilation * (k - 1) for k in K.shape[2:]]
    units = torch.eye(K.shape[1] * size**2, dtype=K.dtype).reshape(-1, K.shape[1], size, size)
    wrapped = nn.functional.pad(units, (0, reach[1], 0, reach[0]), mode="circular")
    return conv2d(wrapped, K, stride=stride, dilation=dilation).flatten(1).T


@settings(max_examples=60)
@given(
    O=st.integers(1, 4),
    inputs=st.integers(1, 4),
    taps=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    stride=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_the_papers_formula_where_rows_can_be_orthonormal(O, inputs, taps, stride, seed):
    taps = [min(k, 3) for k in taps] if len(taps) == 3 else taps
    K = draw(O, inputs, *taps, seed=seed)
    read = inputs * math.prod(min(stride, k) for k in taps)
    # the columns of the pixels that are read differ from the rows by a constant
    expected = paper(K, stride) - max(0, O - read)
    # some hundred float64 products; the constant cancels where it is not 0
    torch.testing.assert_close(conv_orthogonality(K, stride=stride), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("taps", [(3, 3), (1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize(("O", "inputs"), [(2, 3), (3, 1), (11, 1)])
def test_the_dense_operator_on_a_circular_map(O, inputs, taps, dilation, stride):
    K = draw(O, inputs, *taps)
    size = 18  # longer than two kernels, so that no pair of rows meets twice, and a multiple of the strides
    W = circular_operator(K, size, stride, dilation)
    assert W.shape[0] == O * (size // stride) ** 2
    steps = stride // math.gcd(stride, dilation)
    if inputs * math.prod(min(steps, k) for k in taps) >= O:
        G = W @ W.T
    else:
        W = W[:, W.abs().sum(0) > 0]  # pixels that are never read have zero columns, whatever the weights
        G = W.T @ W
    defect = (G - torch.eye(len(G), dtype=G.dtype)).square().sum()
    per_position = defect / (size // stride) ** 2
    value = conv_orthogonality(K, stride=stride, dilation=dilation)
    # sums of some thousand float64 terms
    torch.testing.assert_close(value, per_position, rtol=1e-10, atol=1e-10)


def test_the_released_code_misplaces_the_identity_at_stride_two():
    def released(K, stride):
        """deconv_orth_dist of the authors' utils.py, squared."""
        out = conv2d(K, K, stride=stride, padding=1)
        target = torch.zeros_like(out)
        middle = out.shape[-1] // 2
        target[:, :, middle, middle] = torch.eye(K.shape[0], dtype=K.dtype)
        return (out - target).square().sum()

    K = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    K[:, :, 1, 1] = torch.linalg.qr(draw(4, 4)).Q  # every second pixel, rotated: orthonormal rows
    W = circular_operator(K, 8, 2, 1)
    torch.testing.assert_close(W @ W.T, torch.eye(len(W), dtype=W.dtype), rtol=0, atol=1e-12)
    assert conv_orthogonality(K, stride=2) < 1e-24
    assert released(K, 2) == pytest.approx(4.0)  # |0 - I|² for four channels: the zero shift is not in it
    # and at stride 1 it does not see the shifts of two taps
    ends = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    ends[0, 0, 1, 0] = ends[0, 0, 1, 2] = math.sqrt(0.5)
    assert released(ends, 1) < 1e-24
    assert conv_orthogonality(ends) == pytest.approx(0.5)  # two shifts of 1/2


def test_a_kernel_of_one_tap_is_soft_orthogonality():
    for O, inputs in ((2, 5), (5, 2)):
        K = draw(O, inputs, 1, 1)
        torch.testing.assert_close(
            conv_orthogonality(K, stride=2), soft_orthogonality(K.flatten(1)), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("stride", [1, 2])
def test_groups_are_convolutions_side_by_side(stride):
    K = draw(6, 2, 3, 3)
    expected = sum(conv_orthogonality(part, stride=stride) for part in K.chunk(3))
    torch.testing.assert_close(conv_orthogonality(K, stride=stride, groups=3), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("O", "inputs"), [(2, 6), (9, 1)])
def test_a_transposed_convolution_is_the_transpose(O, inputs):
    conv = nn.Conv2d(inputs, O, 3, stride=2, bias=False).double()
    transposed = nn.ConvTranspose2d(O, inputs, 3, stride=2, bias=False).double()
    transposed.weight = conv.weight  # the same operator, applied the other way
    penalty = ConvOrthogonality(1.0)
    assert torch.equal(penalty(conv), penalty(transposed))
    x, y = draw(1, inputs, 9, 9), draw(1, O, 4, 4)
    torch.testing.assert_close((conv(x) * y).sum(), (x * transposed(y)).sum())


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 6, 2), (6, 3, 1), (1, 6, 2), (2, 5, 1)])
def test_the_penalty_bounds_the_singular_values_of_the_operator(inputs, outputs, stride):
    """Over a circular map, Σ (s² - 1)² = R · positions; and own steps lower R."""
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, bias=False).double()
    penalty = ConvOrthogonality(1.0)
    before = penalty(layer).item()
    for _ in range(300):
        penalty.step_(layer, 0.02)
    after = penalty(layer).item()
    assert after < before / 100
    W = circular_operator(layer.weight.detach(), 8, stride, 1)
    columns = W.abs().sum(0) > 0
    assert columns.all()
    defects = torch.linalg.svdvals(W).square() - 1
    assert defects.square().sum().item() == pytest.approx(after * (8 // stride) ** 2, rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 3), {}, "a kernel .* expected, got shape"),
        ((3, 2, 3, 3), {"groups": 2}, "a kernel .* expected, got shape"),
        ((3, 2, 3, 3), {"groups": 0}, "a multiple of groups=0"),
        ((3, 2, 3, 3), {"stride": (2,)}, r"stride must be an integer >= 1, or one for each of 2 axes, got \(2,\)"),
        ((3, 2, 3, 3), {"stride": 0}, "stride must be an integer >= 1"),
        ((3, 2, 3), {"dilation": (1, 1)}, "dilation must be an integer >= 1, or one for each of 1 axes"),
    ],
)
def test_what_is_no_convolution_is_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        conv_orthogonality(torch.ones(shape), **options)


def test_other_layers_are_named_as_left_out():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Linear(2, 2, bias=False))
    assert ConvOrthogonality().per_layer(model).skipped[0].note.startswith("Linear is not among the types")
    table = ConvOrthogonality(types=(nn.Conv2d, nn.Linear)).per_layer(model)
    assert table.skipped[0].note == "Linear is not a convolution"
