"""The norms of links, each from above: against the matrices themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev

from thalweg.curvature.bound_terms import column_norms
from thalweg.curvature.chain import between_norm, chain, layer_matrix, layer_norm, torus_norm
from thalweg.curvature.layer_jacobians import unfolded


def draw(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def convolutions(draw_):
    axes = draw_(st.integers(1, 2))
    groups, k = draw_(st.integers(1, 2)), draw_(st.integers(1, 3))
    options = {
        "kernel_size": k,
        "stride": draw_(st.integers(1, 3)),
        "padding": draw_(st.integers(0, 2)),
        "dilation": draw_(st.integers(1, 2)),
        "groups": groups,
    }
    layer = (nn.Conv1d, nn.Conv2d)[axes - 1](groups, 2 * groups, **options).double()
    g = draw(draw_(st.integers(0, 10**6)))
    layer.weight.data = torch.randn(layer.weight.shape, generator=g, dtype=torch.float64)
    return layer, torch.randn(
        2, groups, *[draw_(st.integers(5, 7)) for _ in range(axes)], generator=g, dtype=torch.float64
    )


@settings(max_examples=150)
@given(convolutions())
def test_norms_of_a_convolution(case):
    layer, h = case
    T = layer_matrix(layer, h.shape[1:])
    bias = layer.bias.detach().reshape(1, -1, *[1] * (h.ndim - 2))
    image = (h.flatten(1) @ T.mT).reshape(layer(h).shape) + bias
    torch.testing.assert_close(image, layer(h).detach())  # T is its matrix
    exact = torch.linalg.matrix_norm(T, 2).item()
    link = chain(nn.Sequential(layer, nn.Flatten()), h)[0][0]
    assert layer_norm(link) == pytest.approx(exact)
    assert torus_norm(layer, h.shape[2:]) >= exact * (1 - 1e-12)
    columns = torch.linalg.matrix_norm(unfolded(layer, h), 2).amax(1)
    assert bool((columns <= link.kappa * h.flatten(1).norm(dim=1) * (1 + 1e-12)).all())
    with_ones = torch.linalg.matrix_norm(torch.cat([U := unfolded(layer, h), torch.ones_like(U[:, :, :1])], 2), 2)
    torch.testing.assert_close(column_norms(link), with_ones.amax(1))


def test_fourier_is_close_for_a_stride_of_one():
    """1.0 to 1.8 times the truth is what the specification saw; circular boundaries cost little on larger maps."""
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    layer.weight.data = torch.randn(layer.weight.shape, generator=draw(0), dtype=torch.float64)
    exact = torch.linalg.matrix_norm(layer_matrix(layer, (3, 8, 8)), 2).item()
    assert exact <= torus_norm(layer, (8, 8)) <= 1.8 * exact


def test_a_convolution_too_large_for_its_matrix_takes_the_fourier_bound():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    link = chain(nn.Sequential(layer, nn.Flatten()), torch.zeros(1, 4, 24, 24))[0][0]
    assert layer_norm(link) == torus_norm(layer, (24, 24))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.ReLU(), (2, 4)),
        (nn.LeakyReLU(0.1), (2, 4)),
        (nn.LeakyReLU(2.0), (2, 4)),
        (nn.MaxPool1d(2), (2, 6)),
        (nn.MaxPool1d(3, 1, padding=1), (1, 6)),
        (nn.MaxPool1d(2, 1, dilation=2), (1, 6)),
        (nn.MaxPool2d(3, 2), (1, 5, 5)),
        (nn.AvgPool1d(3, 2, padding=1), (2, 7)),
        (nn.AvgPool2d(2), (2, 4, 6)),
        (nn.AvgPool2d((1, 3), (1, 2)), (1, 2, 7)),
        (nn.AdaptiveAvgPool2d((2, None)), (1, 4, 2)),
        (nn.AdaptiveMaxPool1d(2), (1, 6)),
        (nn.Flatten(), (2, 2)),
    ],
    ids=str,
)
def test_norm_of_what_is_between(module, shape):
    norm = 0.0
    for seed in range(20):
        h = torch.randn(1, *shape, generator=draw(seed), dtype=torch.float64)
        jacobian = jacrev(module)(h).reshape(-1, h.numel())
        norm = max(norm, torch.linalg.matrix_norm(jacobian, 2).item())
        assert module(h).norm() <= between_norm(module, h) * h.norm() * (1 + 1e-12)
    assert norm <= between_norm(module, h) * (1 + 1e-12)
    if module.__class__ in (nn.ReLU, nn.AvgPool2d, nn.Flatten) and getattr(module, "kernel_size", 2) == 2:
        assert norm == pytest.approx(between_norm(module, h))  # disjoint windows: exactly


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.AvgPool1d(2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool1d(2, padding=1, count_include_pad=False), "uncounted padding"),
        (nn.AvgPool2d(2, divisor_override=1), "divisor_override"),
        (nn.AdaptiveAvgPool1d(2), "unequal windows"),
        (nn.Sigmoid(), "Sigmoid"),
    ],
)
def test_maps_without_a_norm(module, message):
    with pytest.raises(ValueError, match=message):
        between_norm(module, torch.ones(1, 1, 5) if "2d" not in str(module) else torch.ones(1, 1, 5, 5))
