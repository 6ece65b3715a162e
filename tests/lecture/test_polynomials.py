"""Polynomial fits against NumPy, and the lecture's printed tables against its own polynomial."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.lecture import (
    PRINTED_FITS,
    PRINTED_RIDGE,
    corrected_fits,
    evaluate,
    fit_polynomial,
    noisy_sample,
    polynomial_features,
    ridge,
)
from thalweg.lecture.polynomials import F

DOUBLE = torch.float64


def sample(count=25, seed=0, **options):
    return noisy_sample(count, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE, **options)


def value(w, x):
    return float(evaluate(torch.tensor(w, dtype=DOUBLE), torch.tensor([x], dtype=DOUBLE)))


@given(degree=st.integers(0, 7), seed=st.integers(0, 1000))
def test_fits_are_numpys(degree, seed):
    x, y = sample(seed=seed)
    expected = np.polynomial.polynomial.polyfit(x.numpy(), y.numpy(), degree)
    # the Vandermonde matrix of degree 7 on (-1/2, 1) has a condition number of about 1e4
    assert fit_polynomial(x, y, degree).numpy() == pytest.approx(expected, rel=1e-8, abs=1e-8)
    assert torch.equal(polynomial_features(x, degree), torch.vander(x, degree + 1, increasing=True)) or degree > 1


def test_features_are_numpys():
    x, _ = sample()
    expected = np.polynomial.polynomial.polyvander(x.numpy(), 9)
    assert polynomial_features(x, 9).numpy() == pytest.approx(expected, rel=1e-13)  # a power against products


def test_a_noise_free_fit_finds_the_polynomial():
    x, y = sample(sigma=0.0)
    assert fit_polynomial(x, y, 3).tolist() == pytest.approx(F, abs=1e-12)  # condition number 10
    assert value(F, 1.0) == -2


def test_the_noise_has_the_standard_deviation_asked_for():
    x, y = sample(20_000, sigma=0.25)
    noise = y - evaluate(torch.tensor(F, dtype=DOUBLE), x)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.025)  # five times √(1/40000)
    assert -0.5 <= float(x.min()) < float(x.max()) <= 1
    assert bool((x.diff() >= 0).all())


def test_higher_degrees_fit_the_sample_better_and_have_larger_coefficients():
    x, y = sample()
    fits = [fit_polynomial(x, y, degree) for degree in (1, 3, 5, 7, 9)]
    errors = [float((evaluate(w, x) - y).square().mean()) for w in fits]
    assert errors == sorted(errors, reverse=True)
    assert float(fits[-1].abs().max()) > 10 * float(fits[1].abs().max())


@pytest.mark.parametrize("degree", [1, 3, 5, 7])
def test_the_other_rows_pass_through_f(degree):
    # coefficients printed to one digit: eight roundings of 0.05; degree 1 cannot follow f
    assert value(PRINTED_FITS[degree], 1.0) == pytest.approx(-2, abs=1.2 if degree == 1 else 0.5)


def test_the_degree_nine_row_has_lost_a_minus():
    assert value(PRINTED_FITS[9], 1.0) == pytest.approx(370.5, abs=1e-9)
    assert value(corrected_fits()[9], 1.0) == pytest.approx(-1.7, abs=1e-9)
    # of all flips of up to three signs this one alone brings the row nearest to f on (-1/2, 1)
    x = torch.linspace(-0.5, 1, 2001, dtype=DOUBLE)
    f, features = evaluate(torch.tensor(F, dtype=DOUBLE), x), polynomial_features(x, 9)
    flips = [flip for count in range(4) for flip in itertools.combinations(range(10), count)]
    rows = torch.tensor(PRINTED_FITS[9], dtype=DOUBLE).repeat(len(flips), 1)
    for row, flip in zip(rows, flips, strict=True):
        row[list(flip)] *= -1
    distances = (features @ rows.mT - f[:, None]).square().mean(0).sqrt()
    assert flips[int(distances.argmin())] == (6,)
    assert float(distances[0]) == pytest.approx(84.6, abs=0.1)  # root mean square
    assert float(distances.min()) == pytest.approx(0.27, abs=0.01)


def test_the_ridge_table_starts_with_the_fit_of_degree_seven():
    assert PRINTED_RIDGE[0.0] == PRINTED_FITS[7]


def test_ridge_shrinks_like_the_printed_table():
    """Norms without the intercept fall from row to row, in print and in a sample with the inferred settings."""
    x, y = sample()
    X = polynomial_features(x, 7)[:, 1:]
    ours = [float(ridge(X, y, alpha)[0].norm()) for alpha in PRINTED_RIDGE]
    printed = [float(np.linalg.norm(row[1:])) for row in PRINTED_RIDGE.values()]
    for norms in (ours, printed):
        assert norms == sorted(norms, reverse=True)
    # from α = 0.1 on the penalty rules and the sample matters little
    assert ours[2:] == pytest.approx(printed[2:], rel=0.35)


def test_an_undetermined_fit_is_refused():
    with pytest.raises(ValueError, match="take 4 or more"):
        fit_polynomial(torch.ones(3), torch.ones(3), 3)
    with pytest.raises(ValueError, match="0 or more"):
        polynomial_features(torch.ones(3), -1)
