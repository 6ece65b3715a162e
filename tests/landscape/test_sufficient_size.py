"""`sufficient_size` against its definition on explicit curves."""

import itertools

import pytest
import torch

from thalweg.landscape import expected_increments, loss_increments, sufficient_size


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def by_definition(curve, threshold):
    """inf{k : curve_k' < threshold for all k' >= k}; one more than the curve's length where there is none."""
    enough = [k for k in range(1, len(curve) + 1) if all(value < threshold for value in curve[k - 1 :])]
    return min(enough, default=len(curve) + 1)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("threshold", [1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_expected_size_is_the_definition(power, threshold):
    losses = torch.rand(80, generator=draw(), dtype=torch.float64) ** 4
    curve = expected_increments(losses, power=power).mean.tolist()
    size = sufficient_size(losses, threshold, permutations=10, power=power, generator=draw()).expected
    truth = by_definition(curve, threshold)
    assert size == truth or (truth == 80 and size >= 80)  # what lies beyond the data is extrapolated


def test_every_order_of_few_losses():
    losses = torch.tensor([0.0, 0.1, 0.3, 1.0, 5.0], dtype=torch.float64)
    sizes = sorted(
        by_definition(loss_increments(losses[list(o)]).mean.tolist(), 0.3) for o in itertools.permutations(range(5))
    )
    found = sufficient_size(losses, 0.3, confidence=0.5, permutations=20_000, generator=draw())
    # 20,000 orders tell shares to 0.004, and the median lies further than that from the next size
    assert found.confident == sizes[60]


def test_confidence_covers_the_orders_it_promises():
    losses = torch.rand(200, generator=draw(), dtype=torch.float64) ** 6
    found = sufficient_size(losses, 5e-3, confidence=0.9, permutations=2000, generator=draw(1))
    fresh = [
        by_definition(loss_increments(losses[torch.randperm(200, generator=g)]).mean.tolist(), 5e-3)
        for g in [draw(2)]
        for _ in range(500)
    ]
    share = sum(size <= found.confident for size in fresh) / 500
    assert abs(share - 0.9) < 0.07  # 4 standard errors of 500 orders and of 2000
    low, high = found.interval
    assert low <= found.confident <= high
    assert found.confident > found.expected  # an order scatters about the expected curve


def test_more_samples_than_there_are():
    losses = torch.rand(50, generator=draw(), dtype=torch.float64)
    for power, threshold, rate in [(1, 1e-4, 1), (2, 1e-7, 2)]:
        found = sufficient_size(losses, threshold, permutations=100, power=power, generator=draw())
        assert found.confident is None
        assert found.interval[1] is None
        deviation = (losses - losses.mean()).abs().mean() * 50 / 49 if power == 1 else losses.var()
        # d_k = MAD / (k + 1) and Δ_k = S² / (k (k + 1)): k* is where they meet the threshold, rounded up
        assert found.expected == pytest.approx((deviation.item() / threshold) ** (1 / rate), abs=1.01)


def test_equal_losses_need_one_sample():
    found = sufficient_size(torch.ones(20), 1e-6, permutations=10)
    assert (found.expected, found.confident) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": 1.0, "confidence": 1.0}, "confidence=1.0"),
        ({"threshold": 1.0, "permutations": 0}, "permutations=0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sufficient_size(torch.rand(5), **options)
