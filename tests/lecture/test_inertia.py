"""Momentum and Nesterov: what torch's form shares with the lecture's, and what it does not."""

from functools import partial

import pytest
import torch

from thalweg.lecture import descend, look_ahead, momentum, nesterov
from thalweg.lecture.comparisons import torch_path

DOUBLE = torch.float64


def quadratic(seed=0, d=5):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(20, d, generator=g, dtype=DOUBLE)
    y = torch.randn(20, generator=g, dtype=DOUBLE)
    return (lambda w: X.mT @ (X @ w - y) / 20), torch.randn(d, generator=g, dtype=DOUBLE)


def torchs(decay=1.0, **options):
    gradient, w = quadratic()
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=decay)
    return torch_path(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, **options), gradient, w, steps=100, schedule=schedule
    )


def ours(rule, form, decay=1.0):
    gradient, w = quadratic()
    return descend(rule, gradient, w, eta=lambda k: 0.1 * decay ** (k - 1), steps=100, form=form).w


def test_momentum_is_torchs_for_constant_rate_only():
    torch.testing.assert_close(ours(momentum, "printed"), torchs(), rtol=1e-12, atol=1e-12)  # rounding
    assert float((ours(momentum, "printed", 0.9) - torchs(0.9)).abs().max()) > 0.1


@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize(("rule", "options"), [(momentum, {}), (nesterov, {"nesterov": True})])
def test_torch_form_is_torchs_under_any_schedule(rule, options, decay):
    # ExponentialLR multiplies rate by rate, ours takes a power: equal to rounding
    torch.testing.assert_close(ours(rule, "torch", decay), torchs(decay, **options), rtol=1e-12, atol=1e-12)


def printed_nesterov(decay=1.0):
    """Points w and w - α h of the printed iteration."""
    gradient, w = quadratic()
    state, points, ahead = (), [w], [w]
    for k in range(1, 101):
        w, state = nesterov(w, gradient, state, eta=0.1 * decay ** (k - 1), form="printed")
        points.append(w)
        ahead.append(look_ahead(w, state))
    return torch.stack(points), torch.stack(ahead)


def test_torch_stores_the_look_ahead_point():
    theirs = torchs(nesterov=True)
    points, ahead = printed_nesterov()
    torch.testing.assert_close(ahead, theirs, rtol=1e-12, atol=1e-12)  # rounding
    assert float((points - theirs).abs().max()) > 0.1
    _, ahead = printed_nesterov(0.9)
    assert float((ahead - torchs(0.9, nesterov=True)).abs().max()) > 0.1  # under a schedule not even that


def test_h_is_a_sum_and_not_a_mean():
    """Along a constant gradient the step grows to η/(1 - α)."""
    w = descend(momentum, torch.ones_like, torch.zeros(1, dtype=DOUBLE), eta=0.1, steps=300, alpha=0.9).w
    assert float(w[-2] - w[-1]) == pytest.approx(0.1 / (1 - 0.9), rel=1e-10)  # 0.9^300 = 2e-14


def test_without_inertia_both_are_gradient_descent():
    gradient, w = quadratic()
    for form in ("printed", "torch"):
        for rule in (momentum, nesterov):
            new, _ = rule(w, gradient, (), eta=0.1, alpha=0.0, form=form)
            torch.testing.assert_close(new, w - 0.1 * gradient(w), rtol=0, atol=1e-16)  # one rounding
