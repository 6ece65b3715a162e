"""Dropout by enumeration of all masks, and against torch's module."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thalweg.lecture import (
    all_masks,
    classic_dropout,
    geometric_average,
    inverted_dropout,
    keep_mask,
    mask_average,
    mask_probabilities,
)

DOUBLE = torch.float64
PROBABILITIES = st.floats(0, 0.9)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@given(p=PROBABILITIES, N=st.integers(1, 6))
def test_masks_are_all_there_and_their_probabilities_sum_to_one(p, N):
    masks = all_masks(N, dtype=DOUBLE)
    assert len(masks.unique(dim=0)) == 2**N
    weights = mask_probabilities(masks, p)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-13)  # 64 summands
    # a neuron is kept with probability 1 - p
    torch.testing.assert_close(weights @ masks, torch.full((N,), 1 - p, dtype=DOUBLE), rtol=0, atol=1e-13)


def test_equal_weights_for_one_half_only():
    masks = all_masks(3)
    assert mask_probabilities(masks, 0.5).unique().tolist() == [0.125]
    assert len(mask_probabilities(masks, 0.25).unique()) == 4


@given(p=PROBABILITIES)
def test_training_equals_prediction_in_expectation(p):
    x = torch.randn(5, generator=draw(), dtype=DOUBLE)
    masks = all_masks(5, dtype=DOUBLE)
    weights = mask_probabilities(masks, p)
    classic, inverted = mask_average(masks * x, weights), mask_average(masks * x / (1 - p), weights)
    # rounding of 32 summands
    torch.testing.assert_close(classic, classic_dropout(x, p, training=False), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(inverted, inverted_dropout(x, p, training=False), rtol=1e-12, atol=1e-14)
    assert torch.equal(inverted_dropout(x, p, training=False), nn.Dropout(p).eval()(x))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_inverted_dropout_has_the_values_and_the_rate_of_torchs(p):
    x = torch.ones(20_000, dtype=DOUBLE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = nn.Dropout(p)(x)
    ours = inverted_dropout(x, p, generator=draw())
    torch.testing.assert_close(ours.unique(), theirs.unique(), rtol=1e-15, atol=0)
    scatter = (p * (1 - p) / len(x)) ** 0.5
    for y in (ours, theirs):
        assert float((y == 0).double().mean()) == pytest.approx(p, abs=5 * scatter)
    assert torch.equal(classic_dropout(x, p, generator=draw()), keep_mask(x, p, generator=draw()))


def test_both_forms_predict_alike_from_weights_trained_alike():
    """Classic weights are 1/(1 - p) times inverted ones: W_c r x = W_i r x/(1 - p) for every mask."""
    g, p = draw(), 0.25
    W, x = torch.randn(3, 6, generator=g, dtype=DOUBLE), torch.randn(6, generator=g, dtype=DOUBLE)
    classic = W / (1 - p) @ classic_dropout(x, p, training=False)
    torch.testing.assert_close(classic, W @ inverted_dropout(x, p, training=False), rtol=1e-12, atol=0)  # rounding


def networks(p, N=8):
    """Masked and scaled hidden neurons of a random layer."""
    g = draw(3)
    x, W = torch.randn(N, generator=g, dtype=DOUBLE), torch.randn(4, N, generator=g, dtype=DOUBLE)
    masks = all_masks(N, dtype=DOUBLE)
    return (masks * x) @ W.mT, W @ ((1 - p) * x), mask_probabilities(masks, p)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_where_the_average_of_all_models_is_exact(p):
    thinned, scaled, weights = networks(p)
    torch.testing.assert_close(mask_average(thinned, weights), scaled, rtol=1e-12, atol=1e-13)  # 256 summands
    geometric = geometric_average(thinned.softmax(-1), weights)
    torch.testing.assert_close(geometric, scaled.softmax(-1), rtol=1e-12, atol=1e-14)
    # and where it is not: the arithmetic mean of probabilities, and anything beyond a ReLU
    assert float((mask_average(thinned.softmax(-1), weights) - scaled.softmax(-1)).abs().max()) > 0.01
    assert float((mask_average(thinned.relu(), weights) - scaled.relu()).abs().max()) > 0.05


def test_relu_averages_lie_above_the_scaled_network():
    """Jensen: relu is convex, so E relu(z) >= relu(E z)."""
    thinned, scaled, weights = networks(0.5)
    assert bool((mask_average(thinned.relu(), weights) >= scaled.relu() - 1e-12).all())


def test_the_printed_sample_is_inverted_dropout():
    """The lecture prints values 0 or 2 for 1 and 0 or 4 for 2 while training, 1 and 2 in prediction."""
    module, a = nn.Dropout(), torch.tensor([1.0, 2.0])
    assert module.p == 0.5
    g = draw()
    for network in (module, lambda x: inverted_dropout(x, generator=g)):
        with torch.random.fork_rng(devices=[]):
            sample = torch.stack([network(a) for _ in range(100)])
        assert [column.unique().tolist() for column in sample.T] == [[0, 2], [0, 4]]
    assert module.eval()(a).tolist() == inverted_dropout(a, training=False).tolist() == [1, 2]


def test_gradients_flow_through_kept_neurons_only():
    x = torch.ones(8, requires_grad=True)
    y = inverted_dropout(x, 0.5, generator=draw())
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_an_impossible_probability_is_refused(p):
    for function in (classic_dropout, inverted_dropout, keep_mask):
        with pytest.raises(ValueError, match="below 1"):
            function(torch.ones(2), p)


def test_too_many_masks_are_refused():
    with pytest.raises(ValueError, match="20 neurons"):
        all_masks(21)
