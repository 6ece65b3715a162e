"""`eigsh` against dense eigenvalues: of matrices made for the purpose, and of Hessians."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.curvature import CurvatureOperator, Krylov, eigsh, spectral_density, trace


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Matrix:
    def __init__(self, dense):
        self.dense, self.products = dense, 0
        self.shape, self.dtype, self.device = dense.shape, dense.dtype, dense.device

    def matvec(self, v):
        self.products += 1
        return self.dense @ v


def with_spectrum(values, seed=0):
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=draw(seed), dtype=torch.float64))
    return Matrix(Q @ torch.diag(values) @ Q.mT)


def outliers(P=200):
    """A bulk around zero, ten outliers above and three below, as Hessians have."""
    bulk = 0.1 * torch.randn(P - 13, generator=draw(), dtype=torch.float64)
    return torch.cat([bulk, torch.linspace(2, 20, 10, dtype=torch.float64), -torch.tensor([1.5, 1.0, 0.8]).double()])


@pytest.mark.parametrize("basis", [None, 24])
@pytest.mark.parametrize(("which", "k"), [("LA", 5), ("SA", 3), ("BE", 5), ("LA", 1)])
def test_both_ends_with_and_without_restarts(which, k, basis):
    values = outliers()
    H = with_spectrum(values)
    pairs = eigsh(Krylov(H, basis=basis), k, which, tol=1e-9)
    down, up = values.sort(descending=True).values, values.sort().values
    expected = {"LA": down[:k], "SA": up[:k], "BE": torch.cat([down[:3], up[:2].flip(0)])}[which]
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=1e-8)  # the promise
    true = (H.dense @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    # certificates: rounding adds a few eps ||H||
    torch.testing.assert_close(pairs.residuals, true, rtol=1e-2, atol=1e-12)
    assert bool((true <= 1e-9 * 20 * 1.01).all())
    torch.testing.assert_close(pairs.vectors.mT @ pairs.vectors, torch.eye(k).double(), rtol=0, atol=1e-12)


def test_it_stops_as_soon_as_residuals_allow():
    H = with_spectrum(outliers())
    loose, count = eigsh(H, 5, tol=1e-3), H.products
    eigsh(H, 5, tol=1e-8)
    assert count < H.products - count
    assert float(loose.residuals.max()) <= 1e-3 * 20


def test_a_warm_start_takes_few_products():
    H = with_spectrum(outliers())
    before = eigsh(H, 1, tol=1e-6)
    moved = Matrix(H.dense + 1e-4 * torch.diag(torch.randn(200, generator=draw(3), dtype=torch.float64)))
    after = eigsh(moved, 1, tol=1e-4, start=before.vectors)
    assert moved.products <= 3  # the matrix has moved by 1e-4 of its norm
    assert abs(float(after.values - torch.linalg.eigvalsh(moved.dense)[-1])) < 1e-6
    many = eigsh(H, 3, tol=1e-6)
    cold, warm = Matrix(moved.dense), Matrix(moved.dense)
    eigsh(cold, 3, tol=1e-3)
    eigsh(warm, 3, tol=1e-3, start=many.vectors)
    assert warm.products < cold.products


def test_equal_calls_have_equal_results():
    H = with_spectrum(outliers())
    a, b = eigsh(H, 3), eigsh(H, 3)
    assert torch.equal(a.vectors, b.vectors)
    c = eigsh(H, 3, generator=draw(7))
    assert not torch.equal(a.vectors, c.vectors)
    torch.testing.assert_close(a.values, c.values, rtol=0, atol=1e-5)  # residual² / gap


def test_a_run_is_continued_not_repeated():
    H = with_spectrum(outliers())
    run = Krylov(H)
    eigsh(run, 3, tol=1e-4)
    first = H.products
    eigsh(run, 3, tol=1e-4)
    assert H.products == first
    eigsh(run, 5, "SA", tol=1e-4)
    assert run.size == H.products > first


def test_invariant_subspaces_are_left_for_new_ones():
    low_rank = with_spectrum(torch.cat([torch.zeros(40), torch.tensor([1.0, 2.0, 3.0])]).double())
    values = eigsh(low_rank, 6, tol=1e-8).values
    torch.testing.assert_close(values, torch.tensor([3.0, 2, 1, 0, 0, 0]).double(), rtol=0, atol=1e-12)
    zero = eigsh(Matrix(torch.zeros(5, 5)), 2)
    assert zero.values.tolist() == [0.0, 0.0]
    assert eigsh(Matrix(torch.eye(3)), 3, "BE").values.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    everything = with_spectrum(outliers(30))
    torch.testing.assert_close(
        eigsh(everything, 30, "SA", tol=1e-12).values, outliers(30).sort().values, rtol=0, atol=1e-10
    )


def test_the_hessian_of_a_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    x, y = torch.randn(20, 1, 8, 8, generator=draw(), dtype=torch.float64), torch.arange(20) % 3
    for kind in ("hessian", "ggn", "remainder"):
        op = CurvatureOperator(model, cross_entropy, (x, y), kind=kind)
        exact = torch.linalg.eigvalsh(op.dense())
        low = 0 if kind == "ggn" else 3  # its lower end is zero many times over, of which a Krylov space sees one
        pairs = eigsh(op, 3 + low, "BE" if low else "LA", tol=1e-7)
        expected = torch.cat([exact[-3:].flip(0), exact[:low].flip(0)])
        torch.testing.assert_close(pairs.values, expected, rtol=0, atol=1e-8)  # the promise


def test_a_warm_start_with_a_random_column_sees_what_has_come_up_elsewhere():
    """An eigenvector as the start of a diagonal matrix is an invariant space: residual 0, and yet not the largest."""
    moved = Matrix(torch.diag(torch.tensor([2.0, 5.0] + [0.1] * 50, dtype=torch.float64)))
    old = torch.eye(52, dtype=torch.float64)[:, :1]
    blind = eigsh(moved, 1, start=old)
    assert (float(blind.values), float(blind.residuals)) == (2.0, 0.0)
    fresh = torch.randn(52, 1, generator=draw(), dtype=torch.float64)
    assert float(eigsh(moved, 1, start=torch.cat([old, fresh], 1)).values) == pytest.approx(5.0, abs=1e-6)


def test_a_run_beside_given_vectors_has_fewer_dimensions():
    H = with_spectrum(outliers(30))
    top = torch.linalg.eigh(H.dense).eigenvectors[:, -2:]
    rest = eigsh(Krylov(H, against=top), 28, tol=1e-9)
    torch.testing.assert_close(rest.values, outliers(30).sort(descending=True).values[2:], rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="between 1 and the 28 rows"):
        eigsh(Krylov(H, against=top), 29)


@pytest.mark.parametrize("size", [8, 60])  # the trace of the small one is taken column by column
@pytest.mark.parametrize("run", [eigsh, trace, spectral_density], ids=lambda run: run.__name__)
def test_a_matrix_that_is_not_finite_is_refused(run, size):
    dense = torch.eye(size, dtype=torch.float64)
    dense[3, 3] = float("nan")
    with pytest.raises(ValueError, match="a product with the operator is not finite"):
        run(Matrix(dense))


def test_what_cannot_be_done_is_refused():
    H = Matrix(torch.eye(4, dtype=torch.float64))
    for options, message in (
        ({"k": 5}, "between 1 and the 4 rows"),
        ({"k": 0}, "between 1 and the 4 rows"),
        ({"which": "LM"}, "which must be"),
        ({"tol": 1e-16}, "tol must be at least"),
        ({"start": torch.ones(3)}, r"start must have shape \(4,\)"),
        ({"start": torch.zeros(4)}, "start vector has the norm 0.0"),
        ({"start": torch.full((4,), torch.nan)}, "start vector has the norm nan"),
    ):
        with pytest.raises(ValueError, match=message):
            eigsh(H, **options)
    slow = with_spectrum(torch.linspace(0, 1, 200, dtype=torch.float64))
    with pytest.warns(RuntimeWarning, match="after 20 products the residual is"):
        eigsh(slow, 5, tol=1e-8, max_products=20)


@pytest.mark.parametrize("P", [2, 3, 20, 50, 57])
def test_all_but_one_eigenvalue(P):
    """No check of convergence may lie beyond the whole space: the search would not end."""
    values = torch.randn(P, generator=draw(), dtype=torch.float64)
    found = eigsh(with_spectrum(values), P - 1, "SA", tol=1e-12).values
    torch.testing.assert_close(found, values.sort().values[:-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_matrices_whose_squares_are_beyond_the_range_of_float32(scale):
    values = torch.linspace(-1, 3, 40, dtype=torch.float64)
    H = Matrix((scale * with_spectrum(values).dense).float())
    found = eigsh(H, 3, tol=1e-5).values.double() / scale
    torch.testing.assert_close(found, values[-3:].flip(0), rtol=0, atol=1e-5)  # some dozens of roundings


def test_a_tolerance_that_is_no_number_and_a_second_start_are_refused():
    H = with_spectrum(outliers(30))
    with pytest.raises(ValueError, match="tol must be at least"):
        eigsh(H, tol=float("nan"))
    with pytest.raises(ValueError, match="a Krylov run has its start already"):
        eigsh(Krylov(H), start=torch.ones(30))
