"""Exact spectra of circular convolutions and of windows without overlap, against the dense SVD."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from random_convolutions import CONVOLUTIONS, convolutions, matrix, randn, randomize
from torch import nn

from thalweg.operators import ConvolutionOperator, LayerOperator
from thalweg.operators.blocks import fourier_singular_values, patch_singular_values

# Both SVDs are backward stable: a few ε of the largest singular value, which stays below 100.
EXACT = {"rtol": 0, "atol": 1e-10}


@given(st.data())
def test_circular_convolutions_of_any_stride_that_divides_the_map(data):
    axes = data.draw(st.sampled_from([1, 2, 2, 3]))

    def each(low, high):
        return data.draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    stride, kernel, dilation = each(1, 3), each(1, 4), each(1, 2)
    size = [s * u for s, u in zip(stride, each(1, 4 if axes < 3 else 2), strict=True)]
    spare = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = [total // 2 for total in spare]
    assume(all(p <= h and h + 2 * p > t for h, p, t in zip(size, padding, spare, strict=True)))
    groups = data.draw(st.sampled_from([1, 2]))
    c_in, c_out = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 3))
    conv = CONVOLUTIONS[axes](c_in, c_out, kernel, stride, padding, dilation, groups, padding_mode="circular")
    randomize(conv, seed=data.draw(st.integers(0, 2**31)))
    # with an odd spare the output may be one short of h / s: both answers are checked
    fits = all((h + 2 * p - t - 1) // s + 1 == h // s for h, p, t, s in zip(size, padding, spare, stride, strict=True))
    values = fourier_singular_values(LayerOperator.of(conv, (c_in, *size)))
    assert (values is not None) == fits
    if values is not None:
        torch.testing.assert_close(values, torch.linalg.svdvals(matrix(conv, (c_in, *size))), **EXACT)


@given(convolutions())
def test_whatever_is_called_exact_is(case):
    values = LayerOperator.of(*case).exact_singular_values()
    if values is not None:
        torch.testing.assert_close(values, torch.linalg.svdvals(matrix(*case)), **EXACT)


@given(st.data())
def test_windows_without_overlap(data):
    """Patch embeddings and 1 x 1 kernels, with borders that cut windows and strides that skip pixels."""
    kernel = data.draw(st.integers(1, 3))
    dilation = data.draw(st.integers(1, 2))
    stride = dilation * (kernel - 1) + data.draw(st.integers(1, 2))
    padding = data.draw(st.integers(0, 3))
    size = (data.draw(st.integers(5, 7)), data.draw(st.integers(5, 7)))
    groups = data.draw(st.sampled_from([1, 2]))
    conv = randomize(nn.Conv2d(2 * groups, 3 * groups, kernel, stride, padding, dilation, groups))
    values = patch_singular_values(LayerOperator.of(conv, (2 * groups, *size)))
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix(conv, (2 * groups, *size))), **EXACT)


def test_the_same_over_many_chunks(monkeypatch):
    op = ConvolutionOperator(randn(3, 2, 3, 3), (2, 6, 6), stride=2, padding=1, padding_mode="circular")
    whole = fourier_singular_values(op)
    monkeypatch.setattr("thalweg.operators.blocks.CHUNK", 1)
    torch.testing.assert_close(fourier_singular_values(op), whole, rtol=0, atol=1e-13)  # another batch of the same SVDs


@pytest.mark.parametrize(
    "op",
    [
        ConvolutionOperator(randn(2, 2, 3, 3), (2, 5, 5), padding=1),  # zero borders
        ConvolutionOperator(randn(2, 2, 3), (2, 5), padding=0, padding_mode="circular"),  # two outputs short
        ConvolutionOperator(randn(2, 2, 3), (2, 5), padding=2, padding_mode="circular"),  # two outputs twice
        ConvolutionOperator(
            randn(2, 2, 3), (2, 5), stride=2, padding=1, padding_mode="circular"
        ),  # 2 does not divide 5
    ],
)
def test_others_have_no_blocks(op):
    assert op.exact_singular_values() is None


def test_a_shortcut_of_a_residual_network_is_exact_at_any_size():
    conv = randomize(nn.Conv2d(4, 8, 1, stride=2, bias=False))
    values = LayerOperator.of(conv, (4, 64, 64)).singular_values()
    kernel = torch.linalg.svdvals(conv.weight.detach().flatten(1))
    assert len(values) == 8 * 32 * 32  # of which half are zero: 8 outputs read 4 channels of the same pixel
    torch.testing.assert_close(values[: 4 * 1024], kernel.repeat_interleave(1024), **EXACT)
    assert values[4 * 1024 :].count_nonzero() == 0
