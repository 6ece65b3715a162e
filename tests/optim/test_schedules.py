"""Schedules against torch's schedulers, at their ends and knots, for monotonicity and continuity, and the adapter."""

import math
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler

from thalweg.optim.schedules import (
    LECTURE_SHAPES,
    Schedule,
    constant,
    exponential,
    linear,
    repeat,
    sigmoid,
    stair,
    trapezoid,
    warmup,
)

ETA0 = 0.1
LENGTHS = st.integers(2, 200)


def optimizer(lr=ETA0):
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, count):
    """Learning rates of a torch scheduler at k = 0, 1, ..., count."""
    found = [float(scheduler.optimizer.param_groups[0]["lr"])]
    for _ in range(count):
        scheduler.optimizer.step()
        scheduler.step()
        found.append(float(scheduler.optimizer.param_groups[0]["lr"]))
    return found


# ours and torch's for K steps
PAIRS = {
    "constant": (lambda K: constant(ETA0), lambda o, K: lr_scheduler.ConstantLR(o, factor=1.0)),
    "linear": (lambda K: linear(ETA0, K), lambda o, K: lr_scheduler.LinearLR(o, 1.0, 0.0, K)),
    "linear to a tenth": (
        lambda K: linear(ETA0, K, eta_end=ETA0 / 10),
        lambda o, K: lr_scheduler.LinearLR(o, 1.0, 0.1, K),
    ),
    "polynomial of power 1": (lambda K: linear(ETA0, K), lambda o, K: lr_scheduler.PolynomialLR(o, K, 1.0)),
    "exponential": (lambda K: exponential(ETA0, K), lambda o, K: lr_scheduler.ExponentialLR(o, math.exp(-1 / K))),
    "stair": (
        lambda K: stair(ETA0, 5 * K, steps=5, gamma=0.3),
        lambda o, K: lr_scheduler.StepLR(o, step_size=K, gamma=0.3),
    ),
    "cosine restarts": (
        lambda K: repeat(Schedule(lambda k: ETA0 * (1 + math.cos(math.pi * k / K)) / 2, K), 9),
        lambda o, K: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=K),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@given(K=st.integers(2, 60))
def test_equal_torchs(name, K):
    ours, theirs = PAIRS[name]
    count = 5 * K if name == "stair" else 2 * K  # torch's stair goes on falling beyond the last step
    schedule = ours(K)
    # torch multiplies rates step by step: 120 roundings
    found = [schedule(k) for k in range(count + 1)]
    assert found == pytest.approx(rates(theirs(optimizer(), K), count), rel=1e-12, abs=1e-15)


@given(steps=st.integers(2, 30), K=st.integers(2, 30), start=st.floats(0.01, 1))
def test_warmup_equals_sequential_lr(steps, K, start):
    o = optimizer()
    parts = [lr_scheduler.LinearLR(o, start, 1.0, steps), lr_scheduler.LinearLR(o, 1.0, 0.0, K)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own SequentialLR steps with a number
        theirs = rates(lr_scheduler.SequentialLR(o, parts, [steps]), steps + K)
    ours = warmup(linear(ETA0, K), steps, start=start)
    assert [ours(k) for k in range(steps + K + 1)] == pytest.approx(
        theirs, rel=1e-12, abs=1e-15
    )  # roundings of products


@given(up=st.integers(1, 20), flat=st.integers(1, 20), down=st.integers(1, 20))
def test_trapezoid_equals_three_schedulers(up, flat, down):
    o, K = optimizer(), up + flat + down
    parts = [
        lr_scheduler.LinearLR(o, 0.1, 1.0, up),
        lr_scheduler.ConstantLR(o, factor=1.0),
        lr_scheduler.LinearLR(o, 1.0, 0.0, down),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = rates(lr_scheduler.SequentialLR(o, parts, [up, up + flat]), K)
    ours = trapezoid(ETA0, K, up=up / K, down=down / K, eta_start=ETA0 / 10)
    assert [ours(k) for k in range(K + 1)] == pytest.approx(theirs, rel=1e-11, abs=1e-15)  # shares of K are rounded


# name -> schedule over K steps, its first and last value over η₀, whether it only falls, whether it is continuous
FAMILY = {
    "constant": (lambda K: constant(ETA0), 1, 1, True, True),
    "linear": (lambda K: linear(ETA0, K), 1, 0, True, True),
    "linear to a fifth": (lambda K: linear(ETA0, K, eta_end=ETA0 / 5), 1, 1 / 5, True, True),
    "exponential": (lambda K: exponential(ETA0, K), 1, math.exp(-1), True, True),
    "stair": (lambda K: stair(ETA0, K), 1, 1 / 16, True, False),
    "sigmoid": (lambda K: sigmoid(ETA0, K), 1, 0, True, True),
    "steep sigmoid": (lambda K: sigmoid(ETA0, K, c=40.0, t0=0.7, eta_end=ETA0 / 4), 1, 1 / 4, True, True),
    "trapezoid": (lambda K: trapezoid(ETA0, K), 0, 0, False, True),
    "plateau and decay": (lambda K: trapezoid(ETA0, K, up=0.0, eta_end=ETA0 / 2), 1, 1 / 2, True, True),
    "saw": (lambda K: repeat(linear(ETA0, K / 4), 4), 1, 0, False, False),
    "repeated trapezoid": (lambda K: repeat(trapezoid(ETA0, K / 3), 3), 0, 0, False, True),
    "warm linear": (lambda K: warmup(linear(ETA0, 0.75 * K), 0.25 * K), 0, 0, False, True),
    "warm sigmoid": (lambda K: warmup(sigmoid(ETA0, 0.75 * K), 0.25 * K, start=0.1), 0.1, 0, False, True),
    "warm, repeated": (lambda K: repeat(warmup(linear(ETA0, 0.25 * K), 0.25 * K), 2), 0, 0, False, True),
}
NAMES = pytest.mark.parametrize("name", FAMILY)


@NAMES
@given(K=LENGTHS)
def test_first_and_last_value(name, K):
    build, first, last, _, _ = FAMILY[name]
    schedule = build(K)
    # sums of shares of K are rounded: a few units of 1e-16 of K steps, times slopes of order c/K
    assert schedule(0) == pytest.approx(first * ETA0, abs=1e-14)
    assert schedule(K) == pytest.approx(last * ETA0, abs=1e-14)
    if name != "exponential":
        assert schedule(3 * K) == schedule(1e9) == pytest.approx(schedule(K), abs=1e-14)


@NAMES
@given(K=LENGTHS, s=st.floats(0, 1), t=st.floats(0, 1))
def test_monotonicity_and_bounds(name, K, s, t):
    build, _, last, falls, _ = FAMILY[name]
    schedule = build(K)
    early, late = schedule(min(s, t) * K), schedule(max(s, t) * K)
    lowest = last * ETA0 if falls else 0.0
    # one rounding of numbers of order η₀
    assert early >= late - 1e-16 or not falls
    assert all(lowest - 1e-15 <= rate <= ETA0 + 1e-15 for rate in (early, late))


def jump(schedule, k, h):
    return abs(schedule(k + h) - schedule(k - h))


@NAMES
@given(K=LENGTHS, t=st.floats(0.001, 0.999))
def test_continuity(name, K, t):
    """Everywhere for continuous shapes; for the others away from their knots."""
    build, _, _, _, continuous = FAMILY[name]
    schedule, h = build(K), 1e-7 * K
    near_knot = any(abs(t * K - knot) <= 2 * h for knot in schedule.knots)
    if continuous or not near_knot:
        # the steepest slope here, of the steep sigmoid and of short ramps, is 30 η₀/K
        assert jump(schedule, t * K, h) <= 31 * ETA0 / K * 2 * h


@NAMES
@given(K=LENGTHS)
def test_knots(name, K):
    """Knots lie inside; there a continuous schedule has no jump, and every other one has them there only."""
    build, _, _, _, continuous = FAMILY[name]
    schedule, h = build(K), 1e-9 * K
    assert list(schedule.knots) == sorted(schedule.knots)
    assert all(0 < knot < K for knot in schedule.knots)
    jumps = [jump(schedule, knot, h) for knot in schedule.knots]
    if continuous:
        assert all(size <= 1e-6 * ETA0 for size in jumps)  # 30 · 2e-9
    else:
        assert jumps
        assert all(size > 0.05 * ETA0 for size in jumps)


@given(K=LENGTHS, steps=st.integers(1, 99))
@example(K=7, steps=49)  # 1/49 · 49 < 1 in floating point
def test_a_stair_drops_on_time(K, steps):
    """On whole steps the rounding of k/K makes no drop late."""
    schedule = stair(1.0, K * steps, steps=steps)
    for i in range(steps):
        assert schedule(i * K) == 0.5**i
        assert schedule((i + 1) * K - 1) == 0.5**i


def test_knots_move_with_the_schedule():
    assert warmup(stair(1.0, 40), 10).knots == (10, 20, 30, 40)
    assert repeat(stair(1.0, 40, steps=2), 2).knots == (20, 40, 60)
    assert trapezoid(1.0, 40, up=0.25, down=0.5).knots == (10, 20)


@given(c=st.floats(0.5, 60), t0=st.floats(0.2, 0.8), t=st.floats(0, 1))
def test_a_sigmoid_is_a_scaled_logistic_curve(c, t0, t):
    first, here, last = torch.sigmoid(-c * (torch.tensor([0.0, t, 1.0], dtype=torch.float64) - t0)).tolist()
    # (1 - tanh)/2 against 1/(1 + exp): rounding of numbers of order 1, divided by first - last > 0.1
    assert sigmoid(1.0, 50, c=c, t0=t0)(50 * t) == pytest.approx((here - last) / (first - last), abs=1e-13)


@pytest.mark.parametrize("c", [1e-3, 1.0, 2000.0])
def test_a_sigmoid_of_any_steepness(c):
    """A flat one is linear, a steep one a step: no overflow, and the ends are met."""
    schedule = sigmoid(1.0, 100, c=c)
    assert (schedule(0), schedule(50), schedule(100)) == pytest.approx((1, 0.5, 0), abs=1e-12)
    if c == 1e-3:
        assert schedule(20) == pytest.approx(0.8, abs=1e-6)  # c²/48


def test_the_lectures_formulas():
    K = -1 / math.log(0.9)
    assert pytest.approx(9.49, abs=0.005) == K
    assert exponential(0.01, K)(20) == pytest.approx(0.01 * 0.9**20, rel=1e-12)  # rounding
    assert exponential(1.0, 7)(7) == pytest.approx(0.368, abs=5e-4)  # K is a time constant, not the end
    assert linear(1.0, 7)(7) == 0


@pytest.mark.parametrize("K", [40, 100])
def test_the_lectures_names(K):
    assert list(LECTURE_SHAPES) == ["constant", "exp", "str", "sig", "rep", "trap", "str+", "sig+"]
    curves = {name: [shape(ETA0, K)(k) for k in range(K + 1)] for name, shape in LECTURE_SHAPES.items()}
    assert all(max(curve) == pytest.approx(ETA0) for curve in curves.values())
    ends = {"constant": ETA0, "exp": ETA0 / math.e}
    assert all(curve[-1] == pytest.approx(ends.get(name, 0), abs=1e-14) for name, curve in curves.items())
    warm = round(0.1 * K)
    for name in ("str", "sig"):
        base = LECTURE_SHAPES[name](ETA0, 0.9 * K)
        assert curves[f"{name}+"][: warm + 1] == pytest.approx([ETA0 * k / warm for k in range(warm + 1)], abs=1e-14)
        assert curves[f"{name}+"][warm:] == pytest.approx([base(k) for k in range(K - warm + 1)], abs=1e-14)
    assert sum(a < b for a, b in zip(curves["rep"], curves["rep"][1:], strict=False)) == 3  # restarts


# The adapter


@NAMES
def test_the_adapter_follows_the_schedule(name):
    schedule = FAMILY[name][0](20)
    assert rates(schedule.scheduler(optimizer()), 30) == [schedule(k) for k in range(31)]


def test_groups_keep_their_ratio_to_the_optimizers_own_rate():
    params = [{"params": [torch.nn.Parameter(torch.zeros(1))], **extra} for extra in ({}, {"lr": 0.01}, {"lr": 0.0})]
    o = SGD(params, lr=0.1)
    scheduler = linear(0.4, 4).scheduler(o)
    assert scheduler.get_last_lr() == pytest.approx([0.4, 0.04, 0.0])
    o.step()
    scheduler.step()
    assert [group["lr"] for group in o.param_groups] == pytest.approx([0.3, 0.03, 0.0])


def test_a_tensor_rate_is_filled_in_place():
    rate = torch.tensor(0.1)
    o = optimizer(rate)
    scheduler = linear(0.1, 4).scheduler(o)
    for expected in (0.075, 0.05):
        o.step()
        scheduler.step()
        assert o.param_groups[0]["lr"] is rate
        assert float(rate) == pytest.approx(expected)


def test_a_run_continues_from_its_state(tmp_path):
    schedule = warmup(sigmoid(ETA0, 20), 5)
    expected = rates(schedule.scheduler(optimizer()), 25)
    o = optimizer()
    first = schedule.scheduler(o)
    assert rates(first, 10) == expected[:11]
    torch.save({"scheduler": first.state_dict(), "optimizer": o.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    o = optimizer()
    second = schedule.scheduler(o)
    o.load_state_dict(state["optimizer"])
    second.load_state_dict(state["scheduler"])
    assert rates(second, 15) == expected[10:]
    o = optimizer()
    o.load_state_dict(state["optimizer"])
    assert schedule.scheduler(o, last_epoch=9).get_last_lr() == [expected[10]]  # torch's other way to resume


def test_adapters_work_inside_sequential_lr():
    o = optimizer()
    parts = [linear(ETA0, 5, eta_end=ETA0 / 2).scheduler(o), exponential(ETA0, 3).scheduler(o)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = rates(lr_scheduler.SequentialLR(o, parts, [5]), 10)
    expected = [ETA0 * (1 - k / 10) for k in range(5)] + [ETA0 * math.exp(-k / 3) for k in range(6)]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(0.1, 0), "positive number of steps"),
        (lambda: exponential(0.1, -1), "positive number of steps"),
        (lambda: stair(0.1, 10, steps=0), "at least 1"),
        (lambda: sigmoid(0.1, 10, c=0.0), "must be positive"),
        (lambda: trapezoid(0.1, 10, up=0.6, down=0.6), "at most 1 together"),
        (lambda: repeat(constant(0.1), 2), "without end"),
        (lambda: repeat(linear(0.1, 5), 0), "at least 1"),
        (lambda: warmup(linear(0.1, 5), 0), "positive number of steps"),
        (lambda: linear(0.1, 5)(-1), "starts at step 0"),
        (lambda: linear(0.1, 5)(math.nan), "starts at step 0"),
        (lambda: linear(0.1, 5).scheduler(SGD([{"params": [torch.zeros(1)], "lr": 0.1}], lr=0.0)), "no ratio"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
