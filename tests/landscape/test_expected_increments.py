"""`expected_increments` against all orders of few losses, and 10,000 random orders of many."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom, norm

from thalweg.landscape import expected, expected_increments, loss_increments
from thalweg.landscape.increments import order_increments

RANDOM = np.random.default_rng(0)
LAWS = {
    "normal": lambda n: RANDOM.standard_normal(n),
    "exponential": lambda n: RANDOM.exponential(size=n),
    "trained": lambda n: -np.log1p(-np.clip(RANDOM.beta(0.05, 3, n), 0, 0.9999)),  # cross-entropy, nearly all right
    "few wrong": lambda n: np.where(np.arange(n) < max(2, n // 50), 5.0, 1e-3 * RANDOM.random(n)),
    "tied": lambda n: RANDOM.integers(0, 3, n).astype(float),
}


def tensor(law, n):
    return torch.as_tensor(LAWS[law](n))


def assert_quantiles(d, curve, levels, *, tolerance, skip):
    """Shares of the increments d: (orders, sizes) below the band are its levels; an atom may lie on either side.

    Between k = ``skip`` and n - ``skip`` the law of the mean is smooth, where that of five wrong samples has atoms.
    """
    slack = 2e-3 * d.max(dim=0).values  # the grid spreads atoms by cells
    for level, band in zip(levels, (curve.lower, curve.upper), strict=True):
        below, up_to = (d < band - slack).double().mean(dim=0), (d <= band + slack).double().mean(dim=0)
        for wrong in (below - level, level - up_to):
            assert (wrong[:skip] <= tolerance).all(), (level, wrong.max())
            assert (wrong[len(wrong) - skip :] <= tolerance).all(), (level, wrong.max())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_every_order_of_few_losses(law, power, n):
    losses = tensor(law, n)
    rows = torch.stack([loss_increments(losses[list(o)], power=power).mean for o in itertools.permutations(range(n))])
    curve = expected_increments(losses, power=power, levels=(0.25, 0.75))
    # both are sums of doubles; 5040 orders
    torch.testing.assert_close(curve.mean, rows.mean(dim=0), rtol=1e-11, atol=1e-13)
    # at k = n - 1 there are n values only, and a quantile between two of them may be either
    assert_quantiles(rows, curve, (0.25, 0.75), tolerance=1 / n, skip=n)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [8, 12])
def test_subsets_agree_with_the_definition_at_twelve(law, n):
    """All 12! orders at once: a sample outside meets each subset equally often."""
    losses = tensor(law, n)
    x, curve = losses.numpy(), expected_increments(losses).mean
    for k in range(1, n):
        values = [
            abs(x[i] - x[list(S)].mean()) / (k + 1)
            for S in itertools.combinations(range(n), k)
            for i in set(range(n)) - set(S)
        ]
        assert curve[k - 1].item() == pytest.approx(np.mean(values), rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [4, 9, 16])
def test_the_grid_is_the_enumeration(law, n, monkeypatch):
    losses = tensor(law, n)
    exact = expected_increments(losses).mean
    monkeypatch.setattr(expected, "ENUMERATED", 1)
    grid = expected_increments(losses).mean
    # cells of 2^-14 of the range; a mean absolute deviation of a hundredth of it leaves 1e-3
    torch.testing.assert_close(grid, exact, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [60, 250])
def test_ten_thousand_orders(law, n):
    losses = tensor(law, n)
    orders = loss_increments(losses, permutations=10_000, generator=torch.Generator().manual_seed(1))
    curve = expected_increments(losses)
    deviation = ((curve.mean - orders.mean) / orders.error).numpy()
    # neighbouring k share their samples only in part, so these are up to 249 nearly independent normal numbers:
    # 4.5 is passed by one of them with probability 0.002
    assert np.abs(deviation).max() < 4.5
    assert deviation.std() < 1.2
    d = order_increments(losses.reshape(1, -1), permutations=2000, power=1, generator=torch.Generator().manual_seed(2))
    # 3 standard errors of 2000 orders and the quantiles the band is made of; the sample's membership at n = 60
    assert_quantiles(d, curve, (0.05, 0.95), tolerance=0.02 + 2 / n, skip=63 if law == "few wrong" else n)


@pytest.mark.parametrize(("n", "wrong"), [(3000, 1), (3000, 2), (3000, 20), (10_000, 5), (10_000, 100)])
def test_few_samples_unlike_all_others(n, wrong):
    """A fitted network: losses of 0 and 1, so that how many 1 are in the mean has the hypergeometric law."""
    losses = (torch.arange(n) < wrong).double()
    sizes = [2, 5, 9, 70, 200, 300, 900, n // 2, n - 300, n - 5]
    curve = expected_increments(losses, sizes=sizes)
    for k, found in zip(sizes, curve.mean.tolist(), strict=True):
        inside = np.arange(max(0, k + wrong - n), min(wrong, k) + 1)
        m, outside = inside / k, (wrong - inside) / (n - k)
        deviation = hypergeom(n, wrong, k).pmf(inside) @ (outside * (1 - m) + (1 - outside) * m)
        # of 100 far losses 64 are kept apart, which leaves 1.3e-3 just beyond the exact part; the others are exact
        assert found == pytest.approx(deviation / (k + 1), rel=1.5e-3 if wrong == 100 else 5e-5), k


@pytest.mark.parametrize("law", ["few wrong", "trained", "pareto", "lognormal", "two signs"])
def test_pairs_of_losses_with_a_long_tail(law):
    """k = 2 against all pairs: the largest loss is up to a thousand mean deviations away."""
    random, n = np.random.default_rng(1), 1200
    x = {
        "few wrong": lambda: np.where(np.arange(n) < 3, 5.0, 1e-3 * random.random(n)),
        "trained": lambda: -np.log1p(-np.clip(random.beta(0.01, 3, n), 0, 0.9999)),
        "pareto": lambda: random.random(n) ** -1.5,
        "lognormal": lambda: np.exp(4 * random.standard_normal(n)),
        "two signs": lambda: random.standard_t(1.2, n),
    }[law]()
    a, b = np.triu_indices(n, 1)
    means, total = (x[a] + x[b]) / 2, 0.0
    for value in x:
        total += np.abs(value - means).sum()
    total -= np.abs(x[a] - x[b]).sum()  # both are inside
    truth = total / len(a) / (n - 2) / 3
    # the bulk of "few wrong" lies within a quarter of a cell
    assert expected_increments(torch.as_tensor(x), sizes=[2]).mean.item() == pytest.approx(truth, rel=3e-3)


@pytest.mark.parametrize("k", [150, 400, 1000])
def test_a_long_tail_in_the_middle(k):
    """Where the law is that of independent terms: against orders, far losses included."""
    random, n = np.random.default_rng(2), 1200
    for x in (np.exp(3 * random.standard_normal(n)), np.where(np.arange(n) < 4, 5.0, random.random(n))):
        losses = torch.as_tensor(x)
        d = order_increments(
            losses.reshape(1, -1), permutations=20_000, power=1, generator=torch.Generator().manual_seed(3)
        )[:, k - 1]
        found = expected_increments(losses, sizes=[k]).mean[0]
        assert abs(found - d.mean()) < 4 * d.std() / 20_000**0.5


def test_folded_normal_is_wrong_where_the_losses_have_a_long_tail():
    """The formula this module does not use, and by how much (its docstring's numbers)."""

    def folded(x, k):
        n = len(x) - 1
        s = np.sqrt(x.var(ddof=1) * (1 / k - 1 / n))
        z = (x - x.mean()) * (n + 1) / n / s
        return (s * (2 * norm.pdf(z) + z * (2 * norm.cdf(z) - 1))).mean() / (k + 1)

    for law, k, low, high in [
        ("exponential", 2, 0.03, 0.06), ("exponential", 20, -0.01, 0.01),
        ("trained", 2, 0.4, 1.2), ("trained", 10, 0.1, 0.4), ("trained", 1000, -0.01, 0.01),
    ]:  # fmt: skip
        losses = tensor(law, 4000)
        excess = folded(losses.numpy(), k) / expected_increments(losses, sizes=[k]).mean.item() - 1
        assert low < excess < high, (law, k, excess)


@given(st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=2, max_size=40), st.integers(1, 39))
@settings(max_examples=30)
def test_squared_increments_are_the_variance(values, k):
    """E (L_{k+1} - L_k)² = S² / (k (k + 1)), from the covariance -S² / N of two samples without replacement."""
    losses = torch.tensor(values, dtype=torch.float64)
    n, k = len(values), min(k, len(values) - 1)
    mean_square = losses.var() * ((1 - 1 / n) + (1 / k - 1 / n) + 2 / n)  # Var l_i + Var m_k - 2 Cov
    found = expected_increments(losses, sizes=[k], power=2).mean.item()
    assert found == pytest.approx(mean_square.item() / (k + 1) ** 2, rel=1e-9, abs=1e-15)


def test_gini_at_one_and_the_mean_absolute_deviation_at_the_end():
    losses = tensor("trained", 300)
    x = losses.numpy()
    curve = expected_increments(losses)
    gini = np.abs(x[:, None] - x).sum() / (300 * 299)
    assert curve.mean[0].item() == pytest.approx(gini / 2, rel=1e-12)
    assert curve.mean[-1].item() == pytest.approx(np.abs(x - x.mean()).mean() * 300 / 299 / 300, rel=1e-12)


def test_points_are_averaged_and_have_no_band():
    losses = torch.stack([tensor("exponential", 30), tensor("normal", 30)])
    for power in (1, 2):
        apart = torch.stack([expected_increments(row, power=power).mean for row in losses])
        together = expected_increments(losses, power=power)
        torch.testing.assert_close(together.mean, apart.mean(dim=0))
        assert together.lower.isnan().all()


def test_equal_losses_never_move():
    curve = expected_increments(torch.full((100,), 0.7))
    assert curve.mean.dtype == torch.float32
    assert not curve.mean.any()
    assert not curve.upper.any()


def test_default_sizes_end_at_the_last_increment():
    sizes = expected_increments(tensor("normal", 1500), power=2).sizes
    assert sizes[0] == 1
    assert sizes[-1] == 1499
    assert len(sizes) <= 200


@pytest.mark.parametrize("sizes", [[0], [10], []])
def test_sizes_out_of_range(sizes):
    with pytest.raises(ValueError, match="between 1 and N - 1 = 9"):
        expected_increments(torch.rand(10), sizes=sizes)


def test_levels_out_of_order():
    with pytest.raises(ValueError, match="increasing"):
        expected_increments(torch.rand(10), levels=(0.9, 0.1))
