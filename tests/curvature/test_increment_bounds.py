"""What one sample changes in the loss, against bounds that hold and bounds that do not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

from thalweg.curvature.increment_bounds import increment_bounds

K = 3


def draw(seed):
    return torch.Generator().manual_seed(seed)


def softmax_with_one_mistake():
    """Two classes, logit gap 6.9: nine samples right, the last one wrong. Its gradient is not zero."""
    model = nn.Linear(1, 2, bias=False).double()
    model.weight.data = torch.tensor([[3.45], [-3.45]], dtype=torch.float64)
    return model, torch.ones(10, 1, dtype=torch.float64), torch.tensor([0] * 9 + [1])


@pytest.mark.parametrize(("R", "ratio"), [(1, 0.602), (5, 1.005), (10, 1.481), (20, 2.283)])
def test_the_printed_bound_is_exceeded_on_a_linear_softmax(R, ratio):
    """Printed in seed 003 under its assumption 1, which says that the gradient of every sample vanishes."""
    model, x, y = softmax_with_one_mistake()
    displacement = R * torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5
    bounds = increment_bounds(model, cross_entropy, x, y, displacement)
    assert bounds.exact / bounds.printed == pytest.approx(ratio, abs=1e-3)
    assert bounds.exact > bounds.tight
    assert bounds.exact <= bounds.first_order + bounds.remainder


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), radius=st.sampled_from([1e-3, 0.1, 1.0, 5.0]), n=st.integers(2, 6))
def test_with_the_first_order_and_the_remainder_it_always_holds(seed, radius, n):
    g = draw(seed)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, K)).double()
    for param in model.parameters():
        param.data = torch.randn(param.shape, generator=g, dtype=torch.float64)
    x, y = torch.randn(n, 3, generator=g, dtype=torch.float64), torch.randint(K, (n,), generator=g)
    direction = torch.randn(sum(p.numel() for p in model.parameters()), generator=g, dtype=torch.float64)
    displacement = radius * direction / direction.norm()
    bounds = increment_bounds(model, cross_entropy, x, y, displacement)
    assert bounds.exact <= (bounds.first_order + bounds.remainder) * (1 + 1e-12)

    at = dict(
        zip(dict(model.named_parameters()), displacement.split([p.numel() for p in model.parameters()]), strict=True)
    )
    moved = {name: param.detach() + at[name].view_as(param) for name, param in model.named_parameters()}
    z = functional_call(model, moved, (x,))
    increment = cross_entropy(z, y) - cross_entropy(z[:-1], y[:-1])
    assert bounds.exact == pytest.approx(abs(increment.item()), rel=1e-9, abs=1e-12)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), radius=st.sampled_from([0.1, 1.0, 10.0]))
def test_under_the_seed_s_own_assumptions_all_forms_hold(seed, radius):
    """Linear regression without noise: quadratic, H_i >= 0, every gradient zero at θ*."""
    g = draw(seed)
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = torch.randn(2, 3, generator=g, dtype=torch.float64)
    x = torch.randn(5, 3, generator=g, dtype=torch.float64)
    displacement = radius * torch.randn(6, generator=g, dtype=torch.float64)
    bounds = increment_bounds(model, mse_loss, x, model(x).detach(), displacement)
    assert bounds.exact <= bounds.tight * (1 + 1e-12)
    assert bounds.printed == pytest.approx(4 * bounds.tight)  # l_i = 0: only the second terms are left
    assert bounds.exact <= bounds.first_order * (1 + 1e-12)
    assert bounds.remainder <= 1e-12 * max(1.0, bounds.exact)


def broken():
    model = nn.Linear(2, 2, bias=False)
    model.weight.data.fill_(torch.nan)
    return model


@pytest.mark.parametrize(
    ("model", "loss_fn", "message"),
    [
        (nn.Linear(2, 2, bias=False).requires_grad_(False), mse_loss, "no trainable parameter"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), mse_loss, "layer '1' .Dropout. is in training mode"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), mse_loss, "layer '1' .BatchNorm1d. normalizes by"),
        (broken(), mse_loss, "the loss is nan"),
        (nn.Linear(2, 2, bias=False), l1_loss, "not twice differentiable"),
    ],
    ids=["frozen", "dropout", "batch norm", "nan", "kinks"],
)
def test_models_and_losses_that_are_refused(model, loss_fn, message):
    P = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=message):
        increment_bounds(model, loss_fn, torch.ones(3, 2), torch.ones(3, 2), torch.zeros(P))


@pytest.mark.parametrize(
    ("n", "size", "message"), [(1, 4, "at least two"), (3, 5, "as many numbers"), (3, (4, 1), "as many numbers")]
)
def test_what_is_refused(n, size, message):
    with pytest.raises(ValueError, match=message):
        increment_bounds(nn.Linear(2, 2, bias=False), mse_loss, torch.ones(n, 2), torch.ones(n, 2), torch.zeros(size))


def test_second_derivatives_are_right_where_autograd_s_are_not():
    """Those of torch's weight normalization are wrong; a Taylor remainder of third order tells."""
    torch.manual_seed(0)
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    x, y = torch.randn(4, 3, generator=draw(1), dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    P = sum(p.numel() for p in model.parameters())
    direction = torch.randn(P, generator=draw(2), dtype=torch.float64)
    far, near = (increment_bounds(model, cross_entropy, x, y, t * direction).remainder / t**3 for t in (1e-2, 1e-3))
    assert near == pytest.approx(far, rel=0.1)  # 10 times as much if the second order were wrong


def test_a_displacement_of_another_type_and_a_loss_for_each_sample():
    model = nn.Linear(2, 2).double()
    x, y = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    expected = increment_bounds(model, cross_entropy, x, y, torch.ones(6, dtype=torch.float64))
    assert increment_bounds(model, nn.CrossEntropyLoss(reduction="none"), x, y, torch.ones(6)) == expected


def test_negative_losses_are_refused():
    with pytest.raises(ValueError, match="a loss is negative"):
        increment_bounds(nn.Linear(2, 2), lambda z, y: z.square().mean() - 5, torch.eye(2), torch.eye(2), torch.ones(6))
