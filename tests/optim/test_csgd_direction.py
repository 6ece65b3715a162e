"""The direction of CSGD against the factorizations it stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.optim import reparam_direction

SHAPES = [(3, 5), (5, 3), (4, 4)]
SIDES = ["right", "left", "both", "balanced"]
LR = 0.05
# Entries are of order one and a step is a chain of at most a dozen products: its float64 rounding stays below 1e-13.
EXACT = {"atol": 1e-12, "rtol": 0.0}

matrices = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(n, seed=0):
    return torch.linalg.qr(randn(n, n, seed=seed))[0]


def pair(m, n, seed=0):
    return randn(m, n, seed=seed) / max(m, n) ** 0.5, randn(m, n, seed=seed + 1)


def product(factors):
    return factors[0] if len(factors) == 1 else torch.linalg.multi_dot(factors)


def sgd_on_factors(factors, G, lr):
    """One SGD step on every factor by autograd, for a loss whose gradient at the product is G."""
    factors = [f.clone().requires_grad_() for f in factors]
    grads = torch.autograd.grad((product(factors) * G).sum(), factors)
    return product([f - lr * g for f, g in zip(factors, grads, strict=True)]).detach()


def anchored(A, side, depth):
    """A as a product with depth - 1 random orthogonal factors on the given side(s)."""
    m, n = A.shape
    left = [orthogonal(m, seed=10 + i) for i in range(depth - 1)] if side in ("right", "both") else []
    right = [orthogonal(n, seed=20 + i) for i in range(depth - 1)] if side in ("left", "both") else []
    middle = A
    for Q in left:
        middle = Q.T @ middle
    for Q in reversed(right):
        middle = middle @ Q.T
    return [*left, middle, *right]


def balanced_factors(A, N):
    """N factors with equal singular values s^{1/N}: the square ones in the middle."""
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    root = torch.diag(s ** (1 / N))
    return [A] if N == 1 else [U @ root, *[root] * (N - 2), root @ Vh]


def psd_power(M, exponent):
    """M^exponent of a symmetric positive semidefinite matrix by eigenvalues, those below 1e-12 being zeros; M⁰ = I."""
    values, vectors = torch.linalg.eigh(M)
    powers = torch.where(values > 1e-12, values, 0.0) ** exponent
    return vectors @ torch.diag(powers) @ vectors.T


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_step_is_sgd_on_the_factors_whatever_the_orthogonal_ones_are(shape, side, depth):
    A, G = pair(*shape)
    step = A - LR * reparam_direction(A, G, side=side, depth=depth, lr=LR)
    torch.testing.assert_close(step, sgd_on_factors(anchored(A, side, depth), G, LR), **EXACT)


def test_exact_pair_in_the_seeds_letters():
    A, G = pair(3, 5)
    step = (torch.eye(3, dtype=A.dtype) - LR * G @ A.T) @ (A - LR * G)
    torch.testing.assert_close(A - LR * reparam_direction(A, G, lr=LR), step, **EXACT)
    assert (A - LR * reparam_direction(A, G) - step).abs().max() > 1e-4  # the lr² term is not rounding


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("shape", SHAPES)
def test_first_order_direction_is_the_limit_of_the_exact_one(shape, side, depth):
    A, G = pair(*shape)
    first = reparam_direction(A, G, side=side, depth=depth)
    errors = [(reparam_direction(A, G, side=side, depth=depth, lr=lr) - first).norm() for lr in (1e-4, 1e-5)]
    # The difference is lr·(second order) + lr²·(third order): dividing lr by 10 divides it by 10 up to O(lr) = 0.1 %.
    assert errors[0] / errors[1] == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize("lr", [1e-2, 1e-3, 1e-4])
def test_theorem_of_the_seed_misses_by_lr_squared_g_at_g(lr):
    alpha, beta = 0.3, 0.7  # α + β = 1: both factors are multiples of orthogonal matrices
    W1, W2 = beta**0.5 * orthogonal(6, seed=1), alpha**0.5 * orthogonal(6, seed=2)
    A, G = W1 @ W2, randn(6, 6, seed=3)
    error = (sgd_on_factors([W1, W2], G, lr) - (A - lr * G)).norm() / lr**2
    # Cancellation leaves 1e-16 / lr² of ||A||: 1e-8 at the smallest lr.
    assert error.item() == pytest.approx((G @ A.T @ G).norm().item(), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(matrices, st.integers(1, 4), st.sampled_from([0.0, LR]))
def test_left_is_right_transposed(size, depth, lr):
    A, G = pair(*size)
    left = reparam_direction(A, G, side="left", depth=depth, lr=lr)
    torch.testing.assert_close(left, reparam_direction(A.T, G.T, side="right", depth=depth, lr=lr).T, **EXACT)


@settings(max_examples=40, deadline=None)
@given(matrices, st.sampled_from(SIDES), st.integers(1, 4))
def test_orthogonal_changes_of_basis_commute_with_the_direction(size, side, depth):
    (m, n, seed), (A, G) = size, pair(*size)
    P, R = orthogonal(m, seed=seed + 2), orthogonal(n, seed=seed + 3)
    moved = reparam_direction(P @ A @ R, P @ G @ R, side=side, depth=depth)
    # Entries are drawn without a bound: direction entries can reach a hundred or so, hence the relative part.
    torch.testing.assert_close(moved, P @ reparam_direction(A, G, side=side, depth=depth) @ R, atol=1e-10, rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(matrices, st.sampled_from(SIDES), st.integers(1, 4))
def test_every_direction_descends(size, side, depth):
    A, G = pair(*size)
    slope = (G * reparam_direction(A, G, side=side, depth=depth)).sum()
    least = 0.0 if side == "balanced" else (G * G).sum()
    assert slope >= least - 1e-12 * (G * G).sum()  # equality holds at depth 1: allow the rounding of one sum


@pytest.mark.parametrize("side", SIDES)
def test_depth_one_is_the_gradient(side):
    A, G = pair(3, 5)
    assert torch.equal(reparam_direction(A, G, side=side, depth=1), G)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_balanced_is_the_definition_in_matrix_powers(shape, depth):
    A, G = pair(*shape)
    expected = sum(
        psd_power(A @ A.T, (depth - j) / depth) @ G @ psd_power(A.T @ A, (j - 1) / depth) for j in range(1, depth + 1)
    )
    # The eigenvalues are squared singular values: their roots lose half of float64's sixteen digits when one is small.
    torch.testing.assert_close(reparam_direction(A, G, side="balanced", depth=depth), expected, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_balanced_is_the_first_order_of_sgd_on_balanced_factors(depth):
    A, G = pair(4, 4)
    D = reparam_direction(A, G, side="balanced", depth=depth)
    factors = balanced_factors(A, depth)
    residuals = [((A - sgd_on_factors(factors, G, lr)) / lr - D).norm() for lr in (1e-4, 1e-5)]
    assert residuals[0] / residuals[1] == pytest.approx(10.0, rel=0.01)  # O(lr), next order 0.1 %


@pytest.mark.parametrize("side", SIDES)
def test_a_stack_is_its_matrices(side):
    A, G = randn(3, 4, 5, seed=1), randn(3, 4, 5, seed=2)
    for lr in [0.0] if side == "balanced" else [0.0, LR]:
        options = {"side": side, "depth": 3, "lr": lr}
        each = torch.stack([reparam_direction(a, g, **options) for a, g in zip(A, G, strict=True)])
        # Batched kernels may order their sums differently; entries reach 1e3.
        torch.testing.assert_close(reparam_direction(A, G, **options), each, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "up"}, "Invalid side"),
        ({"depth": 0}, "Invalid depth"),
        ({"depth": 1.5}, "Invalid depth"),
        ({"side": "balanced", "lr": 0.1}, "no exact step"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        reparam_direction(*pair(3, 5), **options)


@pytest.mark.parametrize(("weight", "grad"), [((3,), (3,)), ((3, 5), (5, 3)), ((4, 2, 3, 3), (4, 2, 3, 3))])
def test_wrong_shapes_are_named(weight, grad):
    with pytest.raises(ValueError, match=r"needs \(m, n\)"):
        reparam_direction(torch.zeros(weight), torch.zeros(grad))
