"""The norm of the whole Hessian of single samples, against the dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.curvature import CurvatureOperator, hessian_bounds
from thalweg.curvature.bound_terms import hessian_norms
from thalweg.nn import MatricizedNet


def network(**options):
    return MatricizedNet((1, 6, 6), 4, filters=3, generator=torch.Generator().manual_seed(0), **options).double().eval()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0])  # H_F, then both, then H_O; at 1e-3 both ends are ±λ
@pytest.mark.parametrize(
    "options", [{"head": "average"}, {"pooling": "max", "hidden": (5,)}, {"kernel": 1, "head": "average"}]
)
def test_hessian_norms_are_those_of_the_dense_matrices(options, scale):
    draw = torch.Generator().manual_seed(1)
    model, x = network(**options), torch.randn(3, 1, 6, 6, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    y = torch.tensor([0, 1, 3])
    dense = [CurvatureOperator(model, cross_entropy, (x[i : i + 1], y[i : i + 1])).dense() for i in range(3)]
    expected = torch.stack([torch.linalg.matrix_norm(H, 2) for H in dense])
    found = hessian_norms(model, x, y)
    # the error of a Ritz value is at most its residual, 1e-10 of the norm
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_a_saturated_softmax_costs_no_digits():
    """Curvatures of e^-370 beside slopes of 1: eigenvalue routines that square entries are off by 2e-9 here."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(10.0)
        model[1].weight.copy_(torch.tensor([[-9.0], [-46.0]]))
    found = hessian_norms(model, torch.ones(1, 1, dtype=torch.float64), torch.tensor([1]))
    # all that is left is H_F, the slopes (1, -1) of the loss by the outputs: norm √2, to a few roundings
    torch.testing.assert_close(found, torch.tensor([2**0.5], dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_dead_network_has_norm_zero():
    model, x = network(), torch.ones(2, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert hessian_norms(model, x, torch.tensor([0, 1])).tolist() == [0.0, 0.0]


def test_the_norm_of_a_large_network_takes_a_share_of_its_parameters_in_products(monkeypatch):
    counts = []

    class Counted(CurvatureOperator):
        def matvec(self, v):
            counts.append(self.shape[0])
            return super().matvec(v)

    monkeypatch.setattr("thalweg.curvature.bound_terms.CurvatureOperator", Counted)
    model, x = network(convolutions=4, head="average"), torch.ones(1, 1, 6, 6, dtype=torch.float64)
    hessian_bounds(model, x, torch.tensor([0]))
    assert len(counts) < counts[0] / 4
