"""Layer blocks and H = H_O + H_F against the dense matrices."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.curvature import CurvatureOperator
from thalweg.curvature.blocks import decompose, layer_blocks, layer_curvature, spectral_norm


def operator(activation=nn.Tanh):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 3), activation(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.randn(9, 1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return CurvatureOperator(model, cross_entropy, (x, torch.arange(9) % 3))


def test_blocks_are_those_of_the_dense_matrix():
    op = operator()
    H = op.dense()
    blocks = layer_blocks(op)
    assert list(blocks) == ["0", "3"]
    torch.testing.assert_close(blocks["0"].dense(), H[:12, :12], rtol=0, atol=1e-12)
    torch.testing.assert_close(blocks["3"].dense(), H[12:, 12:], rtol=0, atol=1e-12)
    assert layer_blocks(op.with_kind("ggn"))["3"].kind == "ggn"


def test_norms_are_those_of_the_dense_matrices():
    op = operator()
    norms = [float(torch.linalg.matrix_norm(op.with_kind(k).dense(), 2)) for k in ("hessian", "ggn", "remainder")]
    found = decompose(op, tol=1e-8)
    assert found[:3] == pytest.approx(norms, rel=1e-8)
    assert found.ratio == pytest.approx(norms[2] / norms[1], rel=1e-8)
    rows = layer_curvature(op, tol=1e-8)
    F = op.with_kind("remainder").dense()
    assert [row.remainder for row in rows] == pytest.approx(
        [float(torch.linalg.matrix_norm(F[part, part], 2)) for part in (slice(12), slice(12, None))],
        rel=1e-8,
        abs=1e-14,
    )
    assert [row.parameters for row in rows] == [12, 39]


def test_the_remainder_of_a_relu_network_has_no_diagonal_blocks():
    op = operator(nn.ReLU)
    assert decompose(op).remainder > 0.01
    assert all(row.remainder <= 1e-14 < row.gauss_newton for row in layer_curvature(op))


def test_the_norm_looks_at_both_ends():
    class Scalar:
        shape, dtype, device = (1, 1), torch.float64, torch.device("cpu")

        def matvec(self, v):
            return -3 * v

    assert spectral_norm(Scalar()) == pytest.approx(3.0)
