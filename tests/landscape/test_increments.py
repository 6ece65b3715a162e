"""`loss_increments` against the definition, and against everything known of |L_{k+1} - L_k|."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.landscape import expected_increments, loss_increments, sufficient_size

finite = st.floats(-10, 10, allow_subnormal=False)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def by_definition(losses):
    """|L_{k+1} - L_k| of one order, each mean from scratch."""
    means = [losses[:k].mean() for k in range(1, len(losses) + 1)]
    return torch.stack([(b - a).abs() for a, b in itertools.pairwise(means)])


@given(st.lists(finite, min_size=2, max_size=30))
def test_given_order_is_the_definition(values):
    losses = torch.tensor(values, dtype=torch.float64)
    curve = loss_increments(losses)
    # means of up to 30 numbers up to 10: rounding of 30 additions
    torch.testing.assert_close(curve.mean, by_definition(losses), rtol=0, atol=1e-13)
    assert torch.equal(curve.lower, curve.mean)
    assert torch.equal(curve.upper, curve.mean)
    assert not curve.error.any()


def test_random_orders_average_the_definition():
    losses = torch.randn(20, generator=draw(), dtype=torch.float64)
    curve = loss_increments(losses, permutations=64, levels=(0.25, 0.75), generator=draw(1))
    g = draw(1)
    rows = torch.stack([by_definition(losses[torch.randperm(20, generator=g)]) for _ in range(64)])
    torch.testing.assert_close(curve.mean, rows.mean(dim=0))
    torch.testing.assert_close(curve.lower, rows.quantile(0.25, dim=0))
    torch.testing.assert_close(curve.upper, rows.quantile(0.75, dim=0))
    torch.testing.assert_close(curve.error, rows.std(dim=0) / 8)


def test_several_points_share_their_orders_and_are_averaged():
    losses = torch.randn(3, 12, generator=draw(), dtype=torch.float64)
    together = loss_increments(losses, permutations=5, power=2, generator=draw(1)).mean
    apart = [loss_increments(row, permutations=5, power=2, generator=draw(1)).mean for row in losses]
    torch.testing.assert_close(together, torch.stack(apart).mean(dim=0))


def test_many_orders_are_handled_in_blocks(monkeypatch):
    losses = torch.randn(50, generator=draw(), dtype=torch.float64)
    whole = loss_increments(losses, permutations=40, generator=draw(1))
    monkeypatch.setattr("thalweg.landscape.increments.BLOCK", 333)
    parts = loss_increments(losses, permutations=40, generator=draw(1))
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.upper, parts.upper)


@given(st.lists(finite, min_size=2, max_size=15), st.floats(0.1, 10), finite)
def test_scaling_and_shifting_the_losses(values, scale, shift):
    losses = torch.tensor(values, dtype=torch.float64)
    base = loss_increments(losses, permutations=3, generator=draw()).mean
    moved = loss_increments(scale * losses + shift, permutations=3, generator=draw()).mean
    torch.testing.assert_close(moved, scale * base, rtol=1e-9, atol=1e-11)  # the shift costs digits


def test_float32_losses_are_summed_in_double_precision():
    losses = 1e3 + torch.rand(20_000, generator=draw())
    curve = loss_increments(losses)
    assert curve.mean.dtype == torch.float32
    exact = loss_increments(losses.double()).mean
    # float32 sums would be off by 1e3 * 20000 * 6e-8 ~ 1, times 1/k²: as large as the increment itself
    torch.testing.assert_close(curve.mean.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("curve", [loss_increments, expected_increments])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("power", [1, 2])
def test_losses_of_a_narrow_type_have_increments_all_the_same(curve, dtype, power):
    """0 or 1 for a right or a wrong sample, or half precision, whose smallest number is above most squares."""
    losses = (torch.arange(300) % 3 == 0).to(dtype)
    found, exact = (curve(part, power=power) for part in (losses, losses.double()))
    assert found.mean.dtype == torch.float32
    for ours, theirs in zip((found.mean, found.upper), (exact.mean, exact.upper), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)  # float32
    assert found.mean[-1] > 0


@pytest.mark.parametrize("function", [loss_increments, expected_increments, lambda x: sufficient_size(x, 0.1)])
@pytest.mark.parametrize("losses", [[1.0, 2.0], torch.ones(3).numpy()], ids=["list", "array"])
def test_losses_that_are_no_tensor(function, losses):
    with pytest.raises(TypeError, match=r"must be a tensor, got \w+: use torch.tensor"):
        function(losses)


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        (torch.ones(1), {}, "N >= 2"),
        (torch.ones(2, 2, 2), {}, "N >= 2"),
        (torch.tensor([1.0, float("nan"), float("inf")]), {}, "2 of 3 losses are not finite"),
        (torch.ones(3), {"permutations": 0}, "at least 1"),
        (torch.ones(3), {"power": 3}, "power=3"),
        (torch.ones(3), {"levels": (0.9, 0.1)}, "increasing"),
    ],
)
def test_errors(losses, options, message):
    with pytest.raises(ValueError, match=message):
        loss_increments(losses, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_gives_the_same_curve():
    losses = torch.rand(100, generator=draw())
    device = torch.accelerator.current_accelerator()
    ours = loss_increments(losses, permutations=10, generator=draw(1))
    theirs = loss_increments(losses.to(device), permutations=10, generator=draw(1))
    assert theirs.mean.device.type == device.type
    torch.testing.assert_close(ours.mean, theirs.mean.cpu())
