"""AdaGrad, AdaDelta, RMSprop, Adam, AdamW against torch's optimizers, and the lecture's prints against closed forms."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.lecture import adadelta, adagrad, adam, adamw, descend, gradient_descent, momentum, nesterov, rmsprop
from thalweg.lecture.comparisons import torch_path

DOUBLE = torch.float64

# rule, its options, torch's optimizer with the same
RULES = {
    "gradient descent": (partial(gradient_descent, eta=0.05), partial(torch.optim.SGD, lr=0.05)),
    "momentum": (partial(momentum, alpha=0.8, eta=0.02), partial(torch.optim.SGD, lr=0.02, momentum=0.8)),
    "Nesterov": (
        partial(nesterov, alpha=0.8, eta=0.02),
        partial(torch.optim.SGD, lr=0.02, momentum=0.8, nesterov=True),
    ),
    "AdaGrad": (partial(adagrad, eta=0.1, eps=1e-3), partial(torch.optim.Adagrad, lr=0.1, eps=1e-3)),
    "AdaDelta, idea 1": (partial(rmsprop, eta=0.01, alpha=0.9), partial(torch.optim.RMSprop, lr=0.01, alpha=0.9)),
    "AdaDelta": (partial(adadelta, eta=0.5, rho=0.8), partial(torch.optim.Adadelta, lr=0.5, rho=0.8)),
    "RMSprop": (partial(rmsprop, eta=0.01, eps=1e-4), partial(torch.optim.RMSprop, lr=0.01, eps=1e-4)),
    "Adam": (
        partial(adam, eta=0.03, beta1=0.8, beta2=0.95, eps=1e-5),
        partial(torch.optim.Adam, lr=0.03, betas=(0.8, 0.95), eps=1e-5),
    ),
    "AdamW": (partial(adamw, eta=0.03, omega=0.2), partial(torch.optim.AdamW, lr=0.03, weight_decay=0.2)),
    **{
        f"{rule.__name__}, defaults": (partial(rule, eta=optimizer([torch.zeros(1)]).defaults["lr"]), optimizer)
        for rule, optimizer in [
            (adagrad, torch.optim.Adagrad),
            (adadelta, torch.optim.Adadelta),
            (rmsprop, torch.optim.RMSprop),
            (adam, torch.optim.Adam),
            (adamw, torch.optim.AdamW),
        ]
    },
}


def problem(seed, d=4, device=None):
    """Logistic regression: its gradient, and a start."""
    g = torch.Generator().manual_seed(seed)
    X, w = torch.randn(12, d, generator=g, dtype=DOUBLE), torch.randn(d, generator=g, dtype=DOUBLE)
    y = torch.randint(2, (12,), generator=g).to(DOUBLE)
    X, y, w = X.to(device), y.to(device), w.to(device)
    return lambda w: X.mT @ (torch.sigmoid(X @ w) - y) / 12, w


def path(rule, gradient, w, **options):
    """`descend` with the rule's own learning rate."""
    return descend(rule, gradient, w, eta=rule.keywords["eta"], steps=100, **options).w


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_torch_form_equals_torch(name, seed):
    rule, optimizer = RULES[name]
    gradient, w = problem(seed)
    ours, theirs = path(rule, gradient, w), torch_path(optimizer, gradient, w, steps=100)
    # the same operations in the same order: what is left is the rounding of a few scalars
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not torch.equal(ours[-1], w)


@pytest.mark.parametrize("name", RULES)
def test_rules_leave_their_arguments_alone(name):
    rule, _ = RULES[name]
    gradient, w = problem(0)
    before = w.clone()
    _, state = rule(w, gradient, ())
    kept = [s.clone() for s in state]
    rule(w, gradient, state, k=2)
    assert torch.equal(w, before)
    assert all(torch.equal(s, k) for s, k in zip(state, kept, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_rules_keep_dtype_and_shape(name):
    rule, _ = RULES[name]
    w = torch.ones(2, 3, dtype=torch.float32)
    new, state = rule(w, lambda w: 2 * w, ())
    assert {(t.dtype, t.shape) for t in (new, *state)} == {(w.dtype, w.shape)}


def steps_along_one(rule, form, steps, **options):
    """Steps along the constant gradient 1, over η."""
    w = descend(rule, torch.ones_like, torch.zeros(1, dtype=DOUBLE), eta=1e-3, steps=steps, form=form, **options).w
    return -w.diff(dim=0).flatten() / 1e-3


@pytest.mark.parametrize("rule", [adam, partial(adamw, omega=0.0)])
def test_printed_adam_is_too_fast_at_first(rule):
    k = torch.arange(1, 1001, dtype=DOUBLE)
    expected = (1 - 0.9**k) / (1 - 0.999**k + 1e-8).sqrt()  # m and v of a constant gradient, in closed form
    printed = steps_along_one(rule, "printed", 1000)
    torch.testing.assert_close(printed, expected, rtol=1e-9, atol=0)  # weights of order 1 carry 1e-16/1e-3
    # the first step is 3.16 times too long, the longest is the twelfth; the excess is not gone after 1000
    assert printed[0] == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-4)
    assert int(printed.argmax()) + 1 == 12
    assert [round(float(printed[i]), 2) for i in (11, 99, 999)] == [6.57, 3.24, 1.26]
    torch.testing.assert_close(steps_along_one(rule, "torch", 1000), torch.ones_like(k), rtol=1e-7, atol=0)  # eps


def test_adadelta_as_printed_never_moves():
    gradient, w = problem(3)
    assert torch.equal(path(partial(adadelta, eta=1.0), gradient, w, form="printed")[-1], w)
    moved = path(partial(adadelta, eta=1.0), gradient, w)[-1] - w
    assert float(moved.norm()) > 0.1


@pytest.mark.parametrize("rule", [adagrad, rmsprop, adam])
def test_the_place_of_epsilon(rule):
    """The forms part where the gradient is small beside √ε, and there only."""

    def first_steps(g):
        w = torch.zeros(1, dtype=DOUBLE)
        return [rule(w, lambda w: torch.full_like(w, g), (), eta=1.0, form=form)[0] for form in ("printed", "torch")]

    large, small = first_steps(1.0), first_steps(1e-9)
    if rule is not adam:  # the missing bias correction hides the place of ε
        torch.testing.assert_close(large[0], large[1], rtol=1e-5, atol=0)
    assert abs(small[0]) < 0.05 * abs(small[1])


def test_adagrad_slows_down_like_one_over_root_k():
    k = torch.arange(1, 101, dtype=DOUBLE)
    torch.testing.assert_close(steps_along_one(adagrad, "torch", 100), k.rsqrt(), rtol=1e-9, atol=0)


def test_rmsprop_does_not_slow_down():
    """The reason for idea 1: the step tends to η instead of 0."""
    assert float(steps_along_one(rmsprop, "torch", 1000)[-1]) == pytest.approx(1.0, rel=1e-4)  # 0.99^1000 = 4e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", RULES)
def test_an_accelerator_gives_the_same_steps(name):
    rule, _ = RULES[name]
    device = torch.accelerator.current_accelerator()
    here, there = (path(rule, *problem(0, device=d)) for d in ("cpu", device))
    assert there.device.type == device.type
    torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-9)  # sums in another order
