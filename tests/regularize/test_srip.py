"""SRIP against the eigenvalues of the dense G - I and against the published script, transcribed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thalweg.regularize import SRIP, srip, srip_table

shapes = given(m=st.integers(1, 7), n=st.integers(1, 7), seed=st.integers(0, 1000))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(m, n, seed):
    return torch.randn(m, n, generator=draw(seed), dtype=torch.float64)


def sigma_squared(W):
    """The square of the spectral norm of the smaller Gram matrix minus I."""
    return (torch.linalg.svdvals(W).square() - 1).square().max()


@shapes
def test_two_products_as_in_the_published_script(m, n, seed):
    W = matrix(m, n, seed).requires_grad_()
    v = matrix(min(m, n), 1, seed + 1)
    G = W @ W.T if m < n else W.T @ W
    D = G - torch.eye(min(m, n), dtype=torch.float64)
    u = D @ v
    published = torch.linalg.vector_norm(D @ (u / torch.linalg.vector_norm(u))) ** 2
    (expected,) = torch.autograd.grad(published, W)
    value = srip(W, start=v.squeeze(1))
    (gradient,) = torch.autograd.grad(value, W)
    # the same products, G not formed: only rounding differs, amplified where D v is small
    torch.testing.assert_close(value, published, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


@shapes
def test_it_is_a_lower_estimate_that_more_iterations_raise(m, n, seed):
    W = matrix(m, n, seed)
    values = [srip(W, iterations=k, generator=draw(seed)) for k in (1, 2, 4, 8, 64)]
    slack = 1 + 1e-9  # rounding
    for less, more in zip(values, [*values[1:], sigma_squared(W)], strict=True):
        assert less <= more * slack


def test_many_iterations_give_the_spectral_norm():
    for seed in range(10):
        W = matrix(6, 4, seed)
        # the two largest |λ| of these ten differ by 3% or more: (1 / 1.03)^(2·1000) is below rounding
        torch.testing.assert_close(srip(W, iterations=1000, generator=draw()), sigma_squared(W), rtol=1e-9, atol=0)


@shapes
def test_filters_in_another_order_with_the_start_that_follows(m, n, seed):
    W, order = matrix(m, n, seed), torch.randperm(m, generator=draw(seed))
    v = matrix(min(m, n), 1, seed + 1).squeeze(1)
    torch.testing.assert_close(srip(W[order], start=v[order] if m < n else v), srip(W, start=v), rtol=1e-9, atol=1e-12)


@shapes
def test_orthogonal_factors_with_the_start_that_follows(m, n, seed):
    W, Q = matrix(m, n, seed), torch.linalg.qr(matrix(n, n, seed + 1)).Q
    v = matrix(min(m, n), 1, seed + 2).squeeze(1)
    torch.testing.assert_close(srip(W @ Q, start=v if m < n else Q.T @ v), srip(W, start=v), rtol=1e-8, atol=1e-11)


def test_groups_are_one_block_diagonal_operator():
    blocks = torch.stack([matrix(5, 3, seed) for seed in range(4)])
    dense = torch.block_diag(*blocks)
    v = matrix(4, 3, 9)
    torch.testing.assert_close(srip(blocks, start=v), srip(dense, start=v.flatten()), rtol=1e-12, atol=0)


def test_the_larger_gram_matrix_could_never_be_the_identity():
    W = torch.eye(5, dtype=torch.float64)[:3]  # orthonormal rows
    assert srip(W, generator=draw()) == 0
    assert torch.linalg.matrix_norm(W.T @ W - torch.eye(5), 2) == 1  # what the SVHN and ImageNet scripts minimize


def test_starts_are_drawn_anew_and_resume_with_the_state():
    model = nn.Linear(6, 4).double()
    penalty = SRIP(generator=draw())
    first, second = penalty(model), penalty(model)
    assert first != second
    table, state = penalty.per_layer(model), penalty.state_dict()
    third = penalty(model)
    assert table.total == pytest.approx(third.item(), rel=1e-12)  # the table draws the same and takes nothing away
    resumed = SRIP(generator=draw(5))
    resumed.load_state_dict(state)
    assert torch.equal(resumed(model), third)


def test_the_published_schedule_ends_the_penalty():
    model = nn.Linear(6, 4)
    penalty = SRIP(schedule=srip_table(10), generator=draw())
    penalty.advance(1200)
    assert penalty(model) == 0


def test_errors():
    with pytest.raises(ValueError, match="iterations=0"):
        SRIP(iterations=0)
    with pytest.raises(ValueError, match="iterations=0"):
        srip(torch.eye(2), iterations=0)
    with pytest.raises(ValueError, match=r"start of shape \(2,\) expected for W \(2, 3\), got \(3,\)"):
        srip(torch.ones(2, 3), start=torch.ones(3))
