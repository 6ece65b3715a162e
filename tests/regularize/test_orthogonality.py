"""Soft orthogonality against numpy's dense Gram matrices, and the identities that the file states."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import block_diag
from torch import nn

from thalweg.regularize import (
    MutualCoherence,
    SoftOrthogonality,
    double_soft_orthogonality,
    hyperspherical_energy,
    mutual_coherence,
    soft_orthogonality,
    srip,
)

shapes = given(m=st.integers(1, 7), n=st.integers(1, 7), seed=st.integers(0, 1000))


def matrix(m, n, seed):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defects(W):
    W = W.numpy()
    return W.T @ W - np.eye(W.shape[1]), W @ W.T - np.eye(W.shape[0])


@shapes
def test_definitions(m, n, seed):
    W = matrix(m, n, seed)
    columns, rows = defects(W)
    smaller = rows if m < n else columns
    # a few dozen float64 products
    np.testing.assert_allclose(soft_orthogonality(W), np.linalg.norm(smaller) ** 2, rtol=1e-12)
    np.testing.assert_allclose(mutual_coherence(W), abs(smaller).max(), rtol=1e-12)
    np.testing.assert_allclose(
        double_soft_orthogonality(W), np.linalg.norm(columns) ** 2 + np.linalg.norm(rows) ** 2, rtol=1e-12
    )


@shapes
def test_orthogonal_factors_on_either_side_do_not_matter_to_so(m, n, seed):
    W = matrix(m, n, seed)
    Q, P = (torch.linalg.qr(matrix(k, k, seed + 1)).Q for k in (n, m))
    torch.testing.assert_close(soft_orthogonality(P @ W @ Q), soft_orthogonality(W), rtol=1e-10, atol=1e-10)


@shapes
def test_the_side_of_the_gram_matrix_is_a_constant(m, n, seed):
    W = matrix(m, n, seed).requires_grad_()
    (so,) = torch.autograd.grad(soft_orthogonality(W), W)
    (dso,) = torch.autograd.grad(double_soft_orthogonality(W), W)
    torch.testing.assert_close(dso, 2 * so, rtol=1e-12, atol=1e-12)
    columns, rows = defects(W.detach())
    np.testing.assert_allclose(np.linalg.norm(columns) ** 2, np.linalg.norm(rows) ** 2 + n - m, rtol=1e-10)
    np.testing.assert_allclose(so.numpy(), 4 * W.detach().numpy() @ columns, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("m", [2, 5])
def test_groups_are_blocks_on_the_diagonal(m):
    blocks = torch.stack([matrix(m, 3, seed) for seed in range(4)])
    dense = torch.from_numpy(block_diag(*blocks.numpy()))
    for function in (soft_orthogonality, double_soft_orthogonality, mutual_coherence):
        torch.testing.assert_close(function(blocks), function(dense), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "function", [soft_orthogonality, double_soft_orthogonality, mutual_coherence, srip, hyperspherical_energy]
)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 3, 3), (0, 3)])
def test_what_is_no_matrix_is_refused(function, shape):
    with pytest.raises(ValueError, match=r"a matrix \(m, n\) or blocks \(b, m, n\) expected, got shape"):
        function(torch.ones(shape))


def test_the_rows_of_a_transposed_convolution_are_its_output_channels():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False).double()
    blocks = [
        w.transpose(0, 1).flatten(1) for w in layer.weight.detach().chunk(2)
    ]  # (out / groups, in / groups · taps)
    assert blocks[0].shape == (3, 18)
    expected = sum(soft_orthogonality(block) for block in blocks)
    torch.testing.assert_close(SoftOrthogonality(1.0)(layer).detach(), expected, rtol=1e-12, atol=0)


def test_minimizing_reaches_orthonormal_rows():
    layer = nn.Conv2d(3, 8, 3, bias=False).double()
    penalty, lr = SoftOrthogonality(1.0), 0.02
    for _ in range(300):
        penalty.step_(layer, lr)
    singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    # the flow ds/dt = -4 s (s² - 1) contracts by exp(-8 · 0.02 · 300) near 1
    torch.testing.assert_close(singular, torch.ones_like(singular), rtol=1e-9, atol=0)


def test_mutual_coherence_moves_only_the_worst_pair():
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    MutualCoherence(1.0)(layer).backward()
    assert layer.weight.grad[:, 2].abs().sum() == 0
