"""Extreme singular values by products, against the dense SVD in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_convolutions import convolutions, draw, matrix, randn, randomize
from torch import nn

from thalweg.operators import LayerOperator, extreme_singular_values

# the default tolerance is 4e-11 of the largest singular value, itself below 20
NEAR = {"rtol": 0, "atol": 1e-9}


@settings(max_examples=40)
@given(convolutions(), st.sampled_from([(1, 0), (0, 1), (1, 1), (2, 1), (0, 2), (2, 2)]))
def test_both_ends_of_small_layers(case, wanted):
    largest, smallest = wanted
    oracle = torch.linalg.svdvals(matrix(*case))
    op = LayerOperator.of(*case)
    largest, smallest = min(largest, len(oracle)), min(smallest, len(oracle))
    found = extreme_singular_values(op, largest=largest, smallest=smallest)
    assert found.converged
    torch.testing.assert_close(found.largest, oracle[:largest], **NEAR)
    torch.testing.assert_close(found.smallest, oracle[len(oracle) - smallest :], **NEAR)


LAYERS = {
    "3 x 3, m = n": (nn.Conv2d(4, 4, 3, padding=1), (4, 10, 10)),
    "3 x 3, m = 2 n": (nn.Conv2d(6, 12, 3, padding=1), (6, 12, 12)),
    "stride 2, m < n": (nn.Conv2d(6, 12, 3, stride=2, padding=1), (6, 16, 16)),
    "circular": (nn.Conv2d(6, 12, 3, padding=1, padding_mode="circular"), (6, 12, 12)),
}


@pytest.mark.parametrize(("conv", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_both_ends_of_layers_with_hundreds_of_dimensions(conv, shape):
    op = LayerOperator.of(randomize(conv), shape)
    oracle = torch.linalg.svdvals(op.dense().detach())
    found = extreme_singular_values(op, largest=2, smallest=2)
    assert found.converged
    bound = 1e-10 * oracle[0].item()  # the tolerance, and as much for the two SVDs
    torch.testing.assert_close(found.largest, oracle[:2], rtol=0, atol=bound)
    torch.testing.assert_close(found.smallest, oracle[-2:], rtol=0, atol=bound)


def test_the_largest_takes_few_vectors():
    op = LayerOperator.of(randomize(nn.Conv2d(16, 16, 3, padding=1)), (16, 16, 16))
    found = extreme_singular_values(op)
    assert found.converged
    assert found.vectors < 200  # of 4096
    wider = extreme_singular_values(op, generator=draw(7))
    assert wider.largest.item() == pytest.approx(found.largest.item(), rel=1e-10)  # the tolerance is 4e-11


def test_small_values_keep_their_digits():
    """Lanczos on WᵀW would see 1e-10 as 1e-20 beside 1, which is rounding."""
    Q = torch.linalg.qr(randn(40, 20)).Q
    op = LayerOperator.of(Q * torch.logspace(0, -10, 20, dtype=torch.float64))
    found = extreme_singular_values(op, smallest=1)
    assert found.smallest.item() == pytest.approx(1e-10, rel=1e-4)  # ε over 1e-10 is 2e-6


def test_a_repeated_value_is_found_as_often_as_asked_for():
    op = LayerOperator.of(torch.diag(torch.tensor([3.0, 3.0, 3.0, *torch.linspace(0.1, 2, 60)], dtype=torch.float64)))
    found = extreme_singular_values(op, largest=4)
    torch.testing.assert_close(found.largest, torch.tensor([3.0, 3.0, 3.0, 2.0], dtype=torch.float64), **NEAR)


def test_a_tight_frame_is_done_after_one_vector():
    Q = torch.linalg.qr(randn(30, 10)).Q
    found = extreme_singular_values(LayerOperator.of(2 * Q), largest=1, smallest=1)
    assert found.vectors == 1
    assert found.converged
    assert found.largest.item() == found.smallest.item() == pytest.approx(2.0, rel=1e-14)


def test_null_directions_and_the_zero_operator():
    W = randn(12, 8)
    W[:, 3] = 0
    found = extreme_singular_values(LayerOperator.of(W), smallest=1)
    assert found.smallest.item() == pytest.approx(0.0, abs=1e-10)
    zero = extreme_singular_values(LayerOperator.of(torch.zeros(5, 7)), largest=2, smallest=2)
    assert zero.converged
    assert torch.equal(torch.cat([zero.largest, zero.smallest]), torch.zeros(4))


def test_a_budget_that_is_too_small_is_told_and_bounds_from_inside():
    op = LayerOperator.of(randomize(nn.Conv2d(8, 8, 3, padding=1)), (8, 8, 8))
    oracle = torch.linalg.svdvals(op.dense().detach())
    found = extreme_singular_values(op, smallest=1, max_vectors=20)
    assert not found.converged
    assert found.vectors <= 20
    assert found.largest.item() <= oracle[0].item() + 1e-12
    assert found.smallest.item() >= oracle[-1].item() - 1e-12
    assert found.residual > 0


def test_asking_for_nothing_or_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="is not finite: it has no singular values"):
        extreme_singular_values(LayerOperator.of(torch.full((3, 2), torch.nan)))
    with pytest.raises(ValueError, match="ask for at least one singular value"):
        extreme_singular_values(LayerOperator.of(torch.eye(3)), largest=0)


def test_float32():
    conv = randomize(nn.Conv2d(4, 4, 3, padding=1)).float()
    op = LayerOperator.of(conv, (4, 8, 8))
    found = extreme_singular_values(op)
    oracle = torch.linalg.svdvals(op.dense().detach().double())
    assert found.largest.dtype == torch.float32
    assert found.largest.item() == pytest.approx(oracle[0].item(), rel=1e-4)  # the tolerance is 2e-5
