"""Equations (1)-(9), propositions 1 and 2, theorem 1, against vectors in space and against the recursion itself."""

import math
import random

import pytest
import torch

from thalweg.invariance import equilibrium as eq

CASES = 1000


def cases(seed, *ranges, log=True):
    """Random tuples, uniform in the logarithm of each range."""
    draw = random.Random(seed)
    for _ in range(CASES):
        yield tuple(math.exp(draw.uniform(math.log(a), math.log(b))) if log else draw.uniform(a, b) for a, b in ranges)


def iterate(lr, wd, squared, g, steps):
    for _ in range(steps):
        squared = eq.next_squared_norm(lr, wd, math.sqrt(squared), g)
    return squared


# ---- one step, in space: f(w) = <c, w>/|w| has the gradient (c - <c, u>u)/|w|, u = w/|w| ----


@pytest.fixture
def step_in_space():
    generator = torch.Generator().manual_seed(0)
    lr, wd = 0.3, 0.2
    w = torch.randn(CASES, 7, generator=generator, dtype=torch.float64)
    c = torch.randn(CASES, 7, generator=generator, dtype=torch.float64)
    u = w / w.norm(dim=-1, keepdim=True)
    gradient = (c - (c * u).sum(-1, keepdim=True) * u) / w.norm(dim=-1, keepdim=True)
    moved = (1 - lr * wd) * w - lr * gradient
    return lr, wd, w, c, gradient, moved


def close(a, b):  # a dozen roundings of float64
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_norm_recursion_and_its_inverse(step_in_space):
    lr, wd, w, _, gradient, moved = step_in_space
    rho = w.norm(dim=-1)
    g = eq.effective_grad_norm(rho, gradient.norm(dim=-1))
    close(eq.next_squared_norm(lr, wd, rho, g), moved.norm(dim=-1) ** 2)
    # the difference of squares loses digits where the step is short: 1e-12 of ρ² in g² at the least
    torch.testing.assert_close(
        eq.implied_effective_grad_norm(lr, wd, rho, moved.norm(dim=-1)) ** 2, g**2, rtol=1e-12, atol=1e-11
    )


def test_effective_gradient_is_the_gradient_on_the_unit_sphere(step_in_space):
    _, _, w, c, gradient, _ = step_in_space
    rho = w.norm(dim=-1)
    unit = (w / rho.unsqueeze(-1)).requires_grad_()
    ((c * unit).sum(-1) / unit.norm(dim=-1)).sum().backward()
    close(eq.effective_grad_norm(rho, gradient.norm(dim=-1)), unit.grad.norm(dim=-1))


def test_step_angle(step_in_space):
    lr, wd, w, _, gradient, moved = step_in_space
    rho = w.norm(dim=-1)
    tangent = eq.step_tangent(lr, wd, rho, rho * gradient.norm(dim=-1))
    # half the squared chord of unit vectors: the other form without cancellation
    chord = w / rho.unsqueeze(-1) - moved / moved.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(eq.cosine_distance(tangent), chord.pow(2).sum(-1) / 2, rtol=1e-12, atol=1e-15)
    close(eq.effective_step_size(lr, rho, rho * gradient.norm(dim=-1)), tangent * (1 - lr * wd))


def test_cosine_distance_of_short_steps():
    for (tangent,) in cases(1, (1e-12, 1e-3)):
        # Taylor: t²/2 - 3t⁴/8 + 5t⁶/16; the next term is below 1e-18 relative
        expected = tangent**2 / 2 * (1 - 0.75 * tangent**2 + 0.625 * tangent**4)
        assert eq.cosine_distance(tangent) == pytest.approx(expected, rel=1e-14)


# ---- groups: equations (7)-(9) on a sphere ----


def test_group_equations_against_a_step_of_the_sphere():
    generator = torch.Generator().manual_seed(1)
    rho = torch.rand(CASES, 5, generator=generator, dtype=torch.float64) + 0.01
    gradient = torch.rand(CASES, 5, generator=generator, dtype=torch.float64)  # norms, orthogonal to their groups
    lr = 0.7
    whole_rho, whole_gradient = rho.norm(dim=-1), gradient.norm(dim=-1)
    elrs, ess = eq.effective_lr(lr, rho), eq.effective_step_size(lr, rho, eq.effective_grad_norm(rho, gradient))
    close(eq.total_elr(elrs), eq.effective_lr(lr, whole_rho))
    close(eq.total_ess(elrs, ess), eq.effective_step_size(lr, whole_rho, whole_rho * whole_gradient))
    close(eq.norm_shares(rho), eq.total_elr(elrs).unsqueeze(-1) / elrs)
    close(eq.norm_shares(rho).sum(-1), torch.ones(CASES, dtype=torch.float64))
    moved = rho**2 + lr**2 * gradient**2
    rescaled = moved * (whole_rho**2 / moved.sum(-1)).unsqueeze(-1)
    close(eq.next_group_elrs(elrs, ess), lr / rescaled)


# ---- jumps ----


def test_exact_thresholds_are_the_places_where_the_step_makes_a_jump():
    for lr, el, g, delta in cases(2, (1e-3, 1.0), (1e-5, 0.5), (1e-2, 1e2), (1e-6, 0.9)):
        wd = el / lr
        bound = eq.jump_bounds(lr, wd, g, g, delta)
        assert bound.possible == bound.guaranteed
        distance = eq.cosine_distance(eq.step_tangent(lr, wd, math.sqrt(bound.possible), g))
        assert distance == pytest.approx(delta, rel=1e-12)


def test_no_jump_above_the_upper_threshold_and_none_missed_below_the_lower():
    for lr, el, low, ratio, delta, place, where in cases(
        3, (1e-3, 1.0), (1e-5, 0.5), (1e-2, 1e2), (1.0, 100.0), (1e-5, 0.9), (0.01, 100.0), (1e-3, 1.0)
    ):
        wd, high, g = el / lr, low * ratio, low * ratio**where
        bound = eq.jump_bounds(lr, wd, low, high, delta)
        squared = place * math.sqrt(bound.possible * bound.guaranteed)
        jumps = eq.cosine_distance(eq.step_tangent(lr, wd, math.sqrt(squared), g)) > delta
        assert not (jumps and squared > bound.possible * (1 + 1e-12))
        assert not (not jumps and squared < bound.guaranteed * (1 - 1e-12))


@pytest.mark.parametrize(("delta", "ratio"), [(1e-4, 0.9999), (0.01, 0.993), (0.1, 0.923), (0.3, 0.76), (0.6, 0.48)])
def test_printed_threshold_is_off_by_a_known_factor(delta, ratio):
    bound = eq.jump_bounds(1.0, 0.0, 1.0, 1.0, delta)
    assert bound.possible / bound.possible_printed == pytest.approx((1 - delta) / math.sqrt(1 - delta / 2), rel=1e-12)
    assert bound.possible / bound.possible_printed == pytest.approx(ratio, abs=0.005)  # the digits it is given with


def random_jump_setting(case):
    el, delta_share, ratio, rise = case
    lr, g_min = 0.1, 1.0
    wd, g_max = el / lr, ratio
    delta = delta_share * el / ratio**2  # below el (l/L)²: both of the seed's conditions
    start = rise * eq.jump_bounds(lr, wd, g_min, g_max, delta).possible
    return lr, wd, math.sqrt(start), g_min, g_max, delta


def test_time_bounds_hold_for_gradients_that_do_what_they_like():
    draw, tightest = random.Random(4), [math.inf, math.inf]
    for case in cases(5, (3e-3, 0.05), (0.05, 0.9), (1.0, 1.5), (1.01, 30.0)):
        lr, wd, rho, g_min, g_max, delta = random_jump_setting(case)
        time = eq.time_to_jump(lr, wd, rho, g_min, g_max, delta)
        habit = draw.choice(["lowest", "highest", "random"])
        squared, t = rho**2, 0
        while True:
            g = {"lowest": g_min, "highest": g_max, "random": draw.uniform(g_min, g_max)}[habit]
            if eq.cosine_distance(eq.step_tangent(lr, wd, math.sqrt(squared), g)) > delta:
                break
            squared = eq.next_squared_norm(lr, wd, math.sqrt(squared), g)
            t += 1
            assert t <= time.latest
        assert t >= time.earliest - 1e-9
        tightest = [min(tightest[0], (t + 1) / (time.earliest + 1)), min(tightest[1], (time.latest + 1) / (t + 1))]
    assert max(tightest) < 1.3  # bounds that hold by being far away would say nothing


def test_time_with_a_constant_gradient():
    for case in cases(6, (3e-3, 0.05), (0.05, 0.9), (1.0, 1.0 + 1e-9), (1.01, 30.0)):
        lr, wd, rho, g, _, delta = random_jump_setting(case)
        squared, t, el = rho**2, 0, lr * wd
        threshold = eq.jump_bounds(lr, wd, g, g, delta).possible
        while squared >= threshold:
            squared, t = eq.next_squared_norm(lr, wd, math.sqrt(squared), g), t + 1
        predicted = eq.time_to_jump(lr, wd, rho, g, g, delta).predicted
        # O(el) relative; near the resting norm the threshold itself lies O(el) from where the time becomes infinite
        assert t == pytest.approx(predicted, abs=1 + 4 * el * predicted / (1 - case[1]))


def test_decay_time_of_the_specification():
    # kg = 10 and thr = 50 from ρ₀² = 1e5: ln[(1e10 - 100)/(2500 - 100)]/4el
    lr, wd = 0.1, 0.01
    g = 10 / math.sqrt(lr / (2 * wd))
    squared, t = 1e5, 0
    while squared >= 50:
        squared, t = eq.next_squared_norm(lr, wd, math.sqrt(squared), g), t + 1
    assert t == pytest.approx(eq.decay_time(lr, wd, math.sqrt(1e5), math.sqrt(50), g=g), rel=2e-3)  # O(el) = 1e-3
    assert eq.decay_time(lr, wd, 3.0, 2.0) == pytest.approx(math.log(9 / 4) / (2 * lr * wd), rel=1e-12)
    assert eq.decay_time(lr, wd, 10.0, 3.0, g=g) == math.inf  # comes to rest at ρ² = 10
    # corollary 1: inverse proportion
    assert eq.decay_time(lr, wd / 5, 3.0, 2.0) == pytest.approx(5 * eq.decay_time(lr, wd, 3.0, 2.0), rel=1e-12)


def test_jumps_that_never_or_always_come():
    never = eq.time_to_jump(0.1, 0.1, 10.0, 1.0, 1.0, 0.5)
    assert (never.earliest, never.latest, never.predicted) == (math.inf, math.inf, math.inf)
    now = eq.time_to_jump(0.1, 0.1, 0.1, 1.0, 1.0, 0.5)
    assert (now.earliest, now.latest, now.predicted) == (0, 0, 0)
    perhaps = eq.time_to_jump(0.1, 1e-3, 5.0, 0.0, 1.0, 1e-3)
    assert 0 < perhaps.earliest < perhaps.latest == math.inf
    assert perhaps.earliest_printed == pytest.approx(2500)
    assert perhaps.latest_printed == pytest.approx(5000)


# ---- equilibrium ----


def test_resting_norm_ess_and_angle():
    for lr, el, g in cases(7, (1e-3, 1.0), (1e-6, 0.9), (1e-2, 1e2)):
        wd = el / lr
        rest = eq.equilibrium_squared_norm(lr, wd, g)
        assert iterate(lr, wd, rest, g, 1) == pytest.approx(rest, rel=1e-12)
        ess = eq.effective_step_size(lr, math.sqrt(rest), g)
        assert ess == pytest.approx(eq.equilibrium_ess(lr, wd), rel=1e-12)
        assert ess == pytest.approx(math.sqrt(2 * el), rel=el)  # the usual form; off by √(1 - el/2)
        distance = eq.cosine_distance(eq.step_tangent(lr, wd, math.sqrt(rest), g))
        assert distance == pytest.approx(el, rel=1e-12)


def test_interval_is_never_left_exactly_where_its_condition_says_so():
    held = 0
    for lr, el, low, ratio, place, where in cases(
        8, (1e-3, 1.0), (1e-4, 0.4), (0.1, 10.0), (1.0, 300.0), (1e-4, 1.0), (1e-4, 1.0)
    ):
        wd = el / lr
        interval = eq.equilibrium_interval(lr, wd, low, low * ratio)
        inside = interval.lower + place * (interval.upper - interval.lower)
        after = iterate(lr, wd, inside, low * (1 + where * (ratio - 1)), 1)
        if interval.holds:
            held += 1
            assert interval.lower * (1 - 1e-12) <= after <= interval.upper * (1 + 1e-12)
        else:  # the condition is necessary, too
            assert iterate(lr, wd, interval.lower, low * ratio, 1) > interval.upper * (1 - 1e-12)
    assert 200 < held < 800


@pytest.mark.parametrize(("el", "excess"), [(0.01, 1.0025), (0.05, 1.013)])
def test_printed_upper_bound_is_exceeded_by_its_known_factor(el, excess):
    interval = eq.equilibrium_interval(0.1, el / 0.1, 1.0, 1.5)
    settled = iterate(0.1, el / 0.1, 50.0, 1.5, 5000)
    assert settled == pytest.approx(interval.upper, rel=1e-12)
    assert settled / interval.upper_printed == pytest.approx(excess, abs=5e-4)  # the digits it is given with
    assert interval.lower_printed < interval.lower


@pytest.mark.parametrize(("el", "excess"), [(0.01, 1.02), (0.05, 1.09)])
def test_printed_condition_lets_the_norm_out(el, excess):
    interval = eq.equilibrium_interval(0.1, el / 0.1, 1.0, 1 / (2 * el) * (1 - 1e-12))
    assert interval.holds_printed
    assert not interval.holds
    reached = iterate(0.1, el / 0.1, interval.lower_printed, 1 / (2 * el), 1)
    assert reached / interval.upper_printed == pytest.approx(excess, abs=0.01)


def test_convergence_from_above_is_linear():
    for el, ratio, rise in cases(9, (1e-3, 0.2), (1.0, 3.0), (1.001, 100.0)):
        lr, wd, c = 0.1, el / 0.1, el * (2 - el)
        upper = eq.equilibrium_interval(lr, wd, 1.0, ratio).upper
        excess = iterate(lr, wd, rise * upper, ratio, 1) - upper
        shrunk = excess / ((rise - 1) * upper)
        assert 1 - 2 * c - 1e-10 <= shrunk <= 1 - c + 1e-10  # 1e-10: excess of 1e-3, known to 1e-13


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="lr\\*wd < 1"):
        eq.equilibrium_interval(2.0, 0.5, 1.0, 1.0)
    with pytest.raises(ValueError, match="wd > 0"):
        eq.decay_time(0.1, 0.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="g_min <= g_max"):
        eq.jump_bounds(0.1, 0.0, 2.0, 1.0, 0.1)
    with pytest.raises(ValueError, match="0 < delta < 1"):
        eq.jump_bounds(0.1, 0.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="smaller rho_end"):
        eq.decay_time(0.1, 0.1, 1.0, 2.0)
