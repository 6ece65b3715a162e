"""Frame inequality, ranks, dual frames and reconstruction, against sampling, eigenvectors and the identities."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_convolutions import convolutions, matrix, randn, randomize
from torch import nn

from thalweg.operators import LayerOperator
from thalweg.operators import frame as frame_module

MERCEDES = torch.tensor([[0, 1], [-(3**0.5) / 2, -0.5], [3**0.5 / 2, -0.5]], dtype=torch.float64)


@given(convolutions())
def test_bounds_rank_and_condition_are_those_of_the_matrix(case):
    W = matrix(*case)
    bounds = LayerOperator.of(*case).frame_bounds()
    eigenvalues = torch.linalg.eigvalsh(W.T @ W)
    rank, n = int(torch.linalg.matrix_rank(W)), W.shape[1]
    assert (bounds.rank, bounds.lost) == (rank, n - rank)
    assert bounds.upper == pytest.approx(eigenvalues[-1].item(), rel=1e-12)
    if rank < n:
        assert (bounds.lower, bounds.condition) == (0.0, math.inf)
    else:
        assert bounds.lower == pytest.approx(eigenvalues[0].item(), abs=1e-13 * bounds.upper)  # eigvalsh: ε B
        sigma = torch.linalg.svdvals(W)
        condition = (sigma[0] / sigma[-1]).item()
        # the smallest singular value is known to ε of the largest
        assert bounds.layer_condition == pytest.approx(condition, rel=1e-12 + 1e-14 * condition)
        assert bounds.condition == pytest.approx(bounds.layer_condition**2)


@given(convolutions(), st.integers(0, 2**31))
def test_the_frame_inequality_holds_and_is_attained(case, seed):
    op = LayerOperator.of(*case)
    bounds = op.frame_bounds()
    z = randn(20, *op.input_shape, seed=seed)
    ratio = op.matvec(z).detach().flatten(1).square().sum(1) / z.flatten(1).square().sum(1)
    slack = 1e-12 * bounds.upper  # rounding of sums of squares
    assert bounds.lower - slack <= ratio.min().item()
    assert ratio.max().item() <= bounds.upper + slack
    _, vectors = torch.linalg.eigh(op.gram().detach())
    ends = op.matvec(vectors.T[[0, -1]].reshape(2, *op.input_shape)).detach().flatten(1).square().sum(1)
    torch.testing.assert_close(
        ends, torch.tensor([bounds.lower, bounds.upper], dtype=torch.float64), rtol=0, atol=slack
    )


def test_the_mercedes_frame_is_tight_with_bound_three_halves():
    op = LayerOperator.of(MERCEDES)
    torch.testing.assert_close(op.gram(), 1.5 * torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-15)
    bounds = op.frame_bounds()
    assert bounds.lower == pytest.approx(1.5, rel=1e-15)
    assert bounds.upper == pytest.approx(1.5, rel=1e-15)
    assert bounds.condition == pytest.approx(1.0)
    torch.testing.assert_close(op.dual_frame(), MERCEDES / 1.5, rtol=0, atol=1e-15)


@given(convolutions(), st.integers(0, 2**31))
def test_the_formula_of_the_seed_and_the_projection_where_rows_do_not_span(case, seed):
    op = LayerOperator.of(*case)
    z = randn(2, *op.input_shape, seed=seed)
    W, bounds = matrix(*case), op.frame_bounds()
    kept = torch.linalg.svd(W, full_matrices=False)[2][: bounds.rank]
    projection = (z.flatten(1) @ kept.T) @ kept
    found = op.reconstruct(op.matvec(z))
    sigma = torch.linalg.svdvals(W)
    # rounding of W z is amplified by the condition number on the span
    slack = 1e-13 * (1 + float(sigma[0] / sigma[bounds.rank - 1] if bounds.rank else 0)) * float(z.norm())
    torch.testing.assert_close(found.flatten(1), projection, rtol=0, atol=slack)
    if bounds.lost == 0:
        V = W.T @ W
        by_hand = (z.flatten(1) @ W.T) @ (W @ torch.linalg.inv(V))  # Σ <z, wᵢ> V⁻¹wᵢ
        torch.testing.assert_close(
            by_hand, z.flatten(1), rtol=0, atol=1e-14 * bounds.condition * float(z.norm()) + 1e-12
        )


def test_dual_bounds_are_the_reciprocals():
    op = LayerOperator.of(randn(12, 5))
    bounds, dual = op.frame_bounds(), LayerOperator.of(op.dual_frame()).frame_bounds()
    assert dual.lower == pytest.approx(1 / bounds.upper, rel=1e-12)
    assert dual.upper == pytest.approx(1 / bounds.lower, rel=1e-12)


LOST = {
    "1 x 1, stride 2: three pixels of four are never read": (nn.Conv2d(3, 12, 1, stride=2), (3, 8, 8), 3 * 48),
    "m < n": (nn.Conv2d(4, 2, 3, padding=1), (4, 5, 5), 50),
    "depthwise": (nn.Conv2d(3, 3, 3, padding=1, groups=3), (3, 5, 5), 0),
    "valid: m < n": (nn.Conv2d(2, 2, 3), (2, 6, 6), 40),
    "redundant": (nn.Conv2d(2, 4, 3, padding=1), (2, 5, 5), 0),
}


@pytest.mark.parametrize(("conv", "shape", "lost"), LOST.values(), ids=LOST.keys())
def test_lost_dimensions(conv, shape, lost):
    bounds = LayerOperator.of(randomize(conv), shape).frame_bounds()
    assert bounds.lost == lost
    assert (bounds.lower == 0) == (lost > 0)


def test_a_dead_input_channel_is_lost():
    conv = randomize(nn.Conv2d(2, 4, 3, padding=1))
    with torch.no_grad():
        conv.weight[:, 1] = 0
    assert LayerOperator.of(conv, (2, 4, 4)).frame_bounds().lost == 16


def test_weights_of_zeros_and_nan():
    zero = LayerOperator.of(torch.zeros(3, 2))
    bounds = zero.frame_bounds()
    assert (bounds.lower, bounds.upper, bounds.condition, bounds.rank, bounds.lost) == (0, 0, math.inf, 0, 2)
    assert torch.equal(zero.reconstruct(torch.ones(3)), torch.zeros(2))
    bad = LayerOperator.of(torch.full((3, 2), math.nan))
    bounds = bad.frame_bounds()
    assert all(math.isnan(x) for x in (bounds.lower, bounds.upper, bounds.condition, bounds.layer_condition))
    assert bounds.rank is bounds.lost is None
    for call in (bad.dual_frame, lambda: bad.reconstruct(torch.ones(3))):
        with pytest.raises(ValueError, match="is not finite: nothing can be recovered"):
            call()


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.Conv2d(8, 64, 2, stride=2)],
    ids=["torus", "patches"],
)
def test_float32_does_not_lose_what_small_blocks_keep(conv):
    """By max(m, n)·ε = 1e-3 hundreds of directions counted as lost; the blocks are 8 x 8 and 64 x 32."""
    randomize(conv, seed=2).float()
    if conv.padding_mode == "zeros":
        with torch.no_grad():
            conv.weight[:, 0] *= 1e-4
    exact = LayerOperator.of(conv, (8, 32, 32), weight=conv.weight.detach().double()).frame_bounds()
    bounds = LayerOperator.of(conv, (8, 32, 32)).frame_bounds()
    assert exact.lower < (3e-4) ** 2 * exact.upper
    assert bounds.lost == exact.lost == 0
    assert bounds.lower == pytest.approx(exact.lower, rel=0.05)  # a few ε of the largest, 3e-7 beside 3e-5, squared


@pytest.fixture
def by_products(monkeypatch):
    """As if every layer were too large for a dense matrix."""
    monkeypatch.setattr(frame_module, "known_singular_values", lambda op: None)
    monkeypatch.setattr(frame_module, "SMALL", 0)


@pytest.mark.usefixtures("by_products")
@pytest.mark.parametrize(("conv", "shape", "lost"), LOST.values(), ids=LOST.keys())
def test_bounds_by_products_alone(conv, shape, lost):
    op = LayerOperator.of(randomize(conv), shape)
    oracle = torch.linalg.svdvals(op.dense().detach())
    bounds = op.frame_bounds()
    assert bounds.converged
    assert bounds.upper == pytest.approx(oracle[0].item() ** 2, rel=1e-9)  # tolerance 4e-11
    if lost:
        assert (bounds.lower, bounds.condition) == (0.0, math.inf)
        assert bounds.lost in (lost, None)  # below min(m, n) the rank is not known
    else:
        assert bounds.lower == pytest.approx(oracle[-1].item() ** 2, rel=1e-6)
        assert (bounds.rank, bounds.lost) == (op.shape[1], 0)


@pytest.mark.usefixtures("by_products")
@pytest.mark.parametrize("conv", [nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)], ids=["m > n", "m < n"])
def test_reconstruction_by_products_alone(conv):
    op = LayerOperator.of(randomize(conv), (conv.in_channels, 6, 6))
    z = randn(3, *op.input_shape)
    z[1] = 0  # a sample that is done at once must not stop the others, nor divide by zero
    found = op.reconstruct(op.matvec(z))
    W = op.dense().detach()
    oracle = z.flatten(1) @ W.T @ torch.linalg.pinv(W).T
    condition = torch.linalg.cond(W).item()
    torch.testing.assert_close(found.flatten(1), oracle, rtol=0, atol=1e-12 * condition**2)
    assert torch.equal(found[1], torch.zeros_like(found[1]))


@pytest.mark.usefixtures("by_products")
def test_what_does_not_converge_warns():
    op = LayerOperator.of(torch.diag(torch.logspace(0, -7, 300, dtype=torch.float64)))
    with pytest.warns(UserWarning, match="was not recovered in 5 steps"):
        frame_module._least_squares(op, torch.ones(300, dtype=torch.float64), max_steps=5)


def test_a_lower_bound_that_has_not_converged_warns_and_says_so(monkeypatch):
    whole = frame_module.extreme_singular_values
    monkeypatch.setattr(frame_module, "known_singular_values", lambda op: None)
    monkeypatch.setattr(frame_module, "extreme_singular_values", lambda op, **k: whole(op, **k, max_vectors=20))
    op = LayerOperator.of(randomize(nn.Conv2d(8, 8, 3, padding=1)), (8, 8, 8))
    with pytest.warns(UserWarning, match="has not converged after .* vectors: it is at most"):
        bounds = op.frame_bounds()
    assert not bounds.converged
    assert bounds.rank is bounds.lost is None
    assert bounds.lower >= torch.linalg.svdvals(op.dense().detach())[-1].item() ** 2


def test_a_layer_too_large_for_its_dual_frame_can_still_be_inverted():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 64, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight)
    with torch.no_grad():
        conv.weight.add_(0.01 * torch.randn_like(conv.weight))
    op = LayerOperator.of(conv, (16, 32, 32))
    with pytest.raises(ValueError, match="too large for its dual frame as a matrix: use reconstruct"):
        op.dual_frame()
    z = torch.randn(2, 16, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounds = op.frame_bounds()
        found = op.reconstruct(conv(z))
    assert bounds.lost == 0
    assert bounds.condition < 20
    torch.testing.assert_close(found, z, rtol=0, atol=1e-4)  # float32: 1e-7 times the condition, and its iterations
