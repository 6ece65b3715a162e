"""`spectrum_growth` against dense Hessians of every prefix of the data, and Weyl's inequality between them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.curvature import CurvatureOperator
from thalweg.landscape import spectrum_growth


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def classes(n=20):
    return torch.randn(n, 4, generator=draw(), dtype=torch.float64), torch.arange(n) % 3


# not the smallest ones of the Gauss-Newton matrix: many are 0, and one start vector sees one of them
@pytest.mark.parametrize(
    ("kind", "which"), [("hessian", "LA"), ("hessian", "SA"), ("hessian", "BE"), ("ggn", "LA"), ("ggn", "BE")]
)
def test_dense_prefixes(kind, which):
    model, (x, y) = network(), classes()

    def make(part):
        return CurvatureOperator(model, cross_entropy, part, kind=kind)

    sizes = [2, 5, 11, 20]
    found = spectrum_growth(make, (x, y), sizes, k=2, which=which, tol=1e-9)
    assert found.sizes == tuple(sizes)
    for size, values, residuals in zip(sizes, found.values, found.residuals, strict=True):
        dense = torch.linalg.eigvalsh(make((x[:size], y[:size])).dense())
        expected = {"LA": dense[[-1, -2]], "SA": dense[[0, 1]], "BE": dense[[-1, 0]]}[which]
        # the residual bounds the distance to an eigenvalue
        assert ((values - expected).abs() <= residuals + 1e-9).all()


def test_one_more_sample_moves_eigenvalues_by_weyl():
    model, (x, y) = network(), classes()

    def make(part):
        return CurvatureOperator(model, cross_entropy, part)

    found = spectrum_growth(make, (x, y), [8, 9], k=3, tol=1e-9)
    last, before = make((x[8:9], y[8:9])).dense(), make((x[:8], y[:8])).dense()
    bound = torch.linalg.matrix_norm(last - before, 2) / 9
    assert (found.values[1] - found.values[0]).abs().max() <= bound + 1e-9


def test_a_drawn_order_is_the_same_data_in_the_end():
    model, data = network(), classes()

    def make(part):
        return CurvatureOperator(model, cross_entropy, part)

    given, drawn = (spectrum_growth(make, data, [5, 20], k=2, tol=1e-9, generator=g) for g in (None, draw(1)))
    torch.testing.assert_close(given.values[1], drawn.values[1], rtol=1e-7, atol=1e-9)
    assert not torch.allclose(given.values[0], drawn.values[0], rtol=1e-3)


@pytest.mark.parametrize("sizes", [[], [0, 3], [3, 3], [4, 2], [21]])
def test_sizes(sizes):
    with pytest.raises(ValueError, match="at most 20 samples"):
        spectrum_growth(lambda part: CurvatureOperator(nn.Linear(4, 3), mse_loss, part), classes(), sizes)
