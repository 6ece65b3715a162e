"""What a direction costs, and up to which learning rate it is stable."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from thalweg.optim import reparam_direction, stable_lr


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_singular_values(*values):
    U, V = (torch.linalg.qr(randn(len(values), len(values), seed=seed))[0] for seed in (1, 2))
    return U @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ V


def distance(M, lr, steps, *, exact=False, **options):
    """||A - M|| after CSGD on ||A - M||²/2 from nearby."""
    A = M + 1e-6 * randn(*M.shape, seed=3)
    for _ in range(steps):
        A = A - lr * reparam_direction(A, A - M, lr=lr if exact else 0.0, **options)
    return (A - M).norm().item()


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("side", ["right", "left", "both", "balanced"])
def test_stable_lr_is_sharp_on_a_quadratic(side, depth):
    M = with_singular_values(2.0, 1.0, 0.5, 0.25)
    options = {"side": side, "depth": depth}
    limit, start = stable_lr(1.0, 2.0, **options), distance(M, 0.0, steps=0)
    # At the limit a mode is multiplied by 1 - 2 = -1 a step, one per cent inside by -0.98, outside by -1.02; 400 steps
    # make that e^-8 and e^8 (the latter bends when the distance is no longer small, well above 100 times the start).
    assert distance(M, 0.99 * limit, 400, **options) < 0.01 * start
    assert distance(M, 1.01 * limit, 400, **options) > 100 * start


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_threshold_of_the_exact_step_is_the_same(s):
    M, limit = with_singular_values(s, s / 2, s / 4), 2 / (1 + s**2)
    assert stable_lr(1.0, s) == limit
    assert distance(M, 0.99 * limit, 400, exact=True) < 0.01 * distance(M, 0.0, 0)  # as above
    assert distance(M, 1.01 * limit, 400, exact=True) > 100 * distance(M, 0.0, 0)


@pytest.mark.parametrize("s", [0.5, 1.0, 4.0])
def test_stable_lr_in_closed_form(s):
    assert stable_lr(3.0, s) == stable_lr(3.0, s, side="left") == 2 / (3 * (1 + s**2))
    assert stable_lr(1.0, s, side="both", depth=3) == 2 / (1 + 4 * s**2)
    assert stable_lr(1.0, s, side="balanced") == 2 / (2 * s)
    assert stable_lr(1.0, s, depth=1) == stable_lr(1.0, s, side="balanced", depth=1) == 2.0  # SGD


def test_stable_lr_at_zero_and_with_a_wrong_side():
    assert stable_lr(1.0, 0.0) == 2.0
    assert stable_lr(1.0, 0.0, side="balanced") == float("inf")  # nothing moves
    with pytest.raises(ValueError, match="Invalid side"):
        stable_lr(1.0, 1.0, side="up")


@pytest.mark.parametrize("lr", [0.0, 0.1])
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize(("m", "n"), [(8, 64), (64, 8), (32, 32)])
def test_two_cheapest_products_per_side(m, n, side, lr):
    with FlopCounterMode(display=False) as counter:
        reparam_direction(randn(m, n, seed=1), randn(m, n, seed=2), side=side, lr=lr)
    # The counter sees products only, at two flops a multiply-add: the additions are O(mn) and not counted.
    assert counter.get_total_flops() == 4 * m * n * min(m, n) * (2 if side == "both" else 1)
    assert counter.get_total_flops() / 2 <= 4 * m * n * min(m, n)  # multiply-adds
