"""Power iteration and spectral norms against torch.linalg, in float64."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.operators import LayerOperator, largest_singular_value, power_iteration, spectrum

seeds = st.integers(0, 2**31)
unhurried = settings(deadline=None)  # the machine may be busy with something else


def randn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_spectrum(top, n, seed):
    """A symmetric matrix whose eigenvalue of largest modulus is ``top``, the others at most half of it."""
    Q = torch.linalg.qr(randn(n, n, seed=seed))[0]
    values = torch.cat([torch.tensor([top], dtype=torch.float64), torch.linspace(-0.5, 0.5, n - 1).double() * abs(top)])
    return Q @ torch.diag(values) @ Q.T


@unhurried
@given(seed=seeds, n=st.integers(2, 7), top=st.floats(0.1, 10.0), sign=st.sampled_from([1, -1]))
def test_the_eigenvalue_of_largest_modulus_with_its_sign(seed, n, top, sign):
    M = with_spectrum(sign * top, n, seed)
    value, v = power_iteration(M.mv, randn(n, seed=seed + 1), steps=80)
    # Each product halves the share of the others; even a start with 1e-8 of the eigenvector leaves 1e8·2^-80 < 1e-15.
    assert value == pytest.approx(sign * top, rel=1e-9)
    assert v.norm().item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(M @ v, sign * top * v, rtol=0, atol=1e-9 * top)


@unhurried
@given(seed=seeds, n=st.integers(2, 5), top=st.floats(0.5, 2.0))
def test_symmetry_is_not_needed(seed, n, top):
    basis = torch.eye(n, dtype=torch.float64) + 0.3 / n * randn(n, n, seed=seed).clamp(-2, 2)  # well conditioned
    M = basis @ with_spectrum(top, n, seed + 1) @ torch.linalg.inv(basis)
    oracle = torch.linalg.eigvals(M).abs().max().item()
    value, _ = power_iteration(M.mv, randn(n, seed=seed + 2), steps=80)
    assert value == pytest.approx(oracle, rel=1e-7)  # as above; eigvals itself errs by 1e-15 times the condition


@unhurried
@given(seed=seeds, n=st.integers(1, 7), steps=st.integers(1, 5))
def test_an_unfinished_iteration_never_exceeds_the_modulus_of_a_symmetric_operator(seed, n, steps):
    M = randn(n, n, seed=seed)
    M = M + M.T
    value, _ = power_iteration(M.mv, randn(n, seed=seed + 1), steps=steps)
    assert abs(value) <= torch.linalg.matrix_norm(M, 2).item() * (1 + 1e-12)  # rounding of n products


def test_the_vector_of_an_earlier_call_continues_it():
    M, start = with_spectrum(2.0, 6, seed=0), randn(6, seed=1)
    _, half = power_iteration(M.mv, start, steps=3)
    warm, _ = power_iteration(M.mv, half, steps=4)
    whole, _ = power_iteration(M.mv, start, steps=7)
    assert warm == pytest.approx(whole, rel=1e-14)  # half is normalized once more
    assert warm > power_iteration(M.mv, start, steps=3)[0]


def test_any_shape_of_vector():
    A = randn(3, 4, seed=0)
    value, v = power_iteration(lambda X: A @ A.T @ X, randn(3, 2, seed=1), steps=200)
    assert v.shape == (3, 2)
    assert value == pytest.approx(torch.linalg.svdvals(A)[0].item() ** 2, rel=1e-9)  # a gap of 0.8 to the power 400


def test_the_zero_operator():
    start = randn(4, seed=0)
    value, v = power_iteration(torch.zeros_like, start, steps=10)
    assert value == 0.0
    assert torch.equal(v, start / start.norm())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_operator_that_is_not_finite_stops_at_once(bad):
    calls = []

    def matvec(v):
        calls.append(v)
        return v * bad

    value, v = power_iteration(matvec, torch.ones(3, dtype=torch.float64), steps=10)
    assert not math.isfinite(value)
    assert torch.isfinite(v).all()
    assert len(calls) == 1


@unhurried
@given(seed=seeds, m=st.integers(1, 6), n=st.integers(1, 6))
def test_largest_singular_value_is_the_spectral_norm(seed, m, n):
    A = randn(m, n, seed=seed)
    # Both are backward stable: a few units of 2^-52 relative to the norm itself.
    assert largest_singular_value(A) == pytest.approx(torch.linalg.svdvals(A)[0].item(), rel=1e-13)


def test_a_convolution_is_seen_as_one_matrix_and_a_parameter_may_need_a_gradient():
    weight = torch.nn.Parameter(randn(4, 3, 2, 2, seed=0))
    assert largest_singular_value(weight) == pytest.approx(
        torch.linalg.svdvals(weight.view(4, 12))[0].item(), rel=1e-13
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_has_no_singular_values(bad):
    A = randn(3, 3, seed=0)
    A[1, 2] = bad
    assert math.isnan(largest_singular_value(A))


def test_zero_has_norm_zero():
    assert largest_singular_value(torch.zeros(2, 3)) == 0.0


@pytest.fixture
def only_products(monkeypatch):
    """As if every layer were too large for a dense SVD."""
    monkeypatch.setattr(spectrum, "FEW", 0)
    monkeypatch.setattr(spectrum, "MANY", 0)


@pytest.mark.usefixtures("only_products")
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_extremes_of_a_layer_too_large_for_a_dense_svd(shape):
    A = randn(*shape, seed=0)
    op, oracle = LayerOperator.of(A), torch.linalg.svdvals(A)
    # the tolerance of the products is 4e-11 of the largest, which is below 11
    torch.testing.assert_close(op.singular_values(3), oracle[:3], rtol=0, atol=1e-9)
    torch.testing.assert_close(op.singular_values(3, which="smallest"), oracle[-3:], rtol=0, atol=1e-9)
    assert op.spectral_norm() == pytest.approx(oracle[0].item(), rel=1e-10)
    with pytest.raises(ValueError, match="ask for the k largest or smallest"):
        op.singular_values()


@pytest.mark.usefixtures("only_products")
def test_values_that_have_not_converged_come_with_a_warning(monkeypatch):
    few = partial(spectrum.extreme_singular_values, max_vectors=10)
    monkeypatch.setattr(spectrum, "extreme_singular_values", few)
    A = randn(60, 60, seed=0)
    with pytest.warns(
        UserWarning, match="smallest singular values of .* have not converged after 10 vectors: .* at most"
    ):
        value = LayerOperator.of(A).singular_values(1, which="smallest")
    assert value.item() >= torch.linalg.svdvals(A)[-1].item()
