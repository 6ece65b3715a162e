"""`spectrum_growth` against dense Hessians of every prefix of the data, and Weyl's inequality between them."""

import numpy as np
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


def test_an_eigenvector_that_new_samples_bring_is_found():
    """Inputs with nothing in common: the old eigenvectors are those of an invariant space of the new Hessian."""
    x = torch.zeros(4, 12, dtype=torch.float64)
    x[0, 0], x[1, 1], x[2, 2], x[3, 3] = 1.0, 1.5, 4.0, 6.0
    model = nn.Linear(12, 1, bias=False).double()

    def make(part):
        return CurvatureOperator(model, mse_loss, part)

    found = spectrum_growth(make, (x, torch.zeros(4, 1).double()), [2, 3, 4], k=1, tol=1e-8)
    torch.testing.assert_close(found.values.flatten(), torch.tensor([2.25, 32 / 3, 18.0]).double())


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


@pytest.mark.parametrize(
    "sizes", [np.array([2, 20]), torch.tensor([2, 20]), range(2, 21, 18)], ids=["np", "torch", "range"]
)
def test_sizes_of_any_kind(sizes):
    model, data = network(), classes()
    found = spectrum_growth(lambda part: CurvatureOperator(model, cross_entropy, part), data, sizes, k=1)
    assert found.sizes == (2, 20)
    assert found.values.shape == (2, 1)


@pytest.mark.parametrize(
    ("data", "sizes", "error", "message"),
    [
        (classes(), [2.5, 7], TypeError, "integer"),
        ([classes()], [2, 7], TypeError, "pair of tensors .* got list: join its batches"),
        ((classes()[0], classes()[1][:5]), [2, 7], ValueError, "20 inputs and 5 targets"),
    ],
)
def test_errors(data, sizes, error, message):
    with pytest.raises(error, match=message):
        spectrum_growth(lambda part: CurvatureOperator(network(), cross_entropy, part), data, sizes)
