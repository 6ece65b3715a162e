"""`spectral_density` against dense eigenvalues, and its error bars over 200 draws."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.curvature import CurvatureOperator, Krylov, eigsh, spectral_density
from thalweg.curvature.trace import SHARE

DRAWS = 200


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Matrix:
    def __init__(self, values):
        self.values, self.products = values, 0
        self.shape, self.dtype, self.device = (len(values),) * 2, values.dtype, values.device
        self.Q, _ = torch.linalg.qr(torch.randn(self.shape, generator=draw(), dtype=values.dtype))

    def matvec(self, v):
        self.products += 1
        return self.Q @ (self.values * (self.Q.mT @ v))


def hessian_like(P=150):
    """Most eigenvalues close to zero, a few outliers."""
    bulk = 0.1 * torch.randn(P - 6, generator=draw(4), dtype=torch.float64)
    return torch.cat([bulk, torch.tensor([20.0, 12, 8, 5, 3, -1]).double()])


def network_eigenvalues():
    """43 of them, few and skewed, with squared error at random weights: λ from -4 to 17."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    return torch.linalg.eigvalsh(CurvatureOperator(model, mse_loss, (x, y)).dense())


def square(t):
    return t.square()


def bump(t):
    return torch.exp(-t.square() / 0.02)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("case", ["outliers", "network"])
def test_error_bars_hold_in_the_stated_share_of_draws(case, known):
    H = Matrix(hessian_like() if case == "outliers" else network_eigenvalues())
    total = float(H.values.sum()) if known else None
    found = [
        spectral_density(H, deflate=4, vectors=5, steps=12, trace=total, generator=draw(seed)) for seed in range(DRAWS)
    ]
    for f in (square, bump, torch.tanh):
        truth = float(f(H.values).mean())
        estimates = [density.expect(f) for density in found]
        assert sum(abs(e.value - truth) <= e.error for e in estimates) >= SHARE * DRAWS


def test_the_trace_and_the_mass_are_exact_where_the_trace_is_known():
    H = Matrix(hessian_like())
    density = spectral_density(H, trace=float(H.values.sum()))
    assert density.normalized
    assert density.expect(lambda t: t).value == pytest.approx(float(H.values.mean()), abs=1e-10)
    assert density.expect(torch.ones_like).value == pytest.approx(1.0, abs=1e-12)
    t = torch.linspace(-3, 25, 4000, dtype=torch.float64)
    assert float(torch.trapezoid(density(t, 0.1), t)) == pytest.approx(1.0, abs=1e-6)
    rough = spectral_density(H)
    assert not rough.normalized
    assert rough.expect(torch.ones_like).value == pytest.approx(1.0, abs=1e-12)


def test_the_curve_is_that_of_the_eigenvalues():
    H = Matrix(hessian_like())
    t, width = torch.linspace(-2, 21, 500, dtype=torch.float64), 0.3
    exact = torch.exp(-0.5 * ((t.unsqueeze(1) - H.values) / width).square()).mean(1) / (width * (2 * torch.pi) ** 0.5)
    density = spectral_density(H, vectors=16)
    # 16 vectors see a bulk of 144 eigenvalues: 1/√(16·144) = 2% of the peak, five times that at most
    assert float((density(t, width) - exact).abs().max()) <= 0.1 * float(exact.max())
    outlier = t > 2.5  # these are taken out: no error at all
    torch.testing.assert_close(density(t, width)[outlier], exact[outlier], rtol=1e-4, atol=1e-8)


def test_one_run_serves_eigenvalues_and_density():
    H = Matrix(hessian_like())
    run = Krylov(H)
    eigsh(run, 4)
    before = H.products
    density = spectral_density(run, deflate=4, vectors=5, steps=20)
    assert H.products - before == max(0, 20 - before) + 4 * 20  # the run is the first of the five vectors
    assert len(density.nodes) == 5
    # all default generators: no other vector is the run's own once more, which would narrow the error bar
    plain = spectral_density(Krylov(H), deflate=0, vectors=5, steps=20).nodes
    assert not any(torch.allclose(plain[0], other, atol=1e-6) for other in plain[1:])
    assert bool(torch.isin(torch.tensor([20.0, 12, 8, 5]).double(), density.outliers.round(decimals=6)).all())
    warm = Krylov(H, start=torch.ones(150, dtype=torch.float64))
    assert len(spectral_density(warm, deflate=4, vectors=5, steps=20).nodes) == 5


def test_a_network_brings_its_exact_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    data = torch.randn(10, 6, generator=draw(1), dtype=torch.float64), torch.arange(10) % 3
    op = CurvatureOperator(model, cross_entropy, data)
    density = spectral_density(op, deflate=2, steps=15)
    assert density.normalized
    exact = torch.linalg.eigvalsh(op.dense())
    assert density.expect(lambda t: t).value == pytest.approx(float(exact.mean()), abs=1e-8)
    second = density.expect(square)
    assert abs(second.value - float(exact.square().mean())) <= second.error


def test_a_space_that_is_small_is_exact():
    H = Matrix(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    density = spectral_density(H)
    torch.testing.assert_close(density.outliers, H.values, rtol=0, atol=1e-12)
    assert density.expect(square).exact
    assert density.expect(square).value == pytest.approx(10.0)


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match="at least 4 vectors, 1 step and 0 to deflate"):
        spectral_density(Matrix(hessian_like()), vectors=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"deflate": -1}, "0 to deflate are needed"), ({"trace": float("nan")}, "the trace must be finite, got nan")],
    ids=["deflate", "trace"],
)
def test_numbers_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        spectral_density(Matrix(hessian_like()), **options)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_a_width_must_be_positive(width):
    density = spectral_density(Matrix(torch.ones(5, dtype=torch.float64)))
    with pytest.raises(ValueError, match="width must be positive"):
        density(torch.zeros(1), width)


def test_equal_eigenvalues_have_no_error():
    identity = Matrix(torch.full((60,), 0.1, dtype=torch.float64))
    identity.matvec = lambda v: 0.1 * v  # the space is exhausted at every step
    found = spectral_density(identity, trace=6.0).expect(square)
    assert found.value == pytest.approx(0.01)
    assert found.error <= 1e-12  # a slope through points that differ by rounding alone made it 1e-3
