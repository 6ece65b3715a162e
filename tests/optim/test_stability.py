"""step_stability against dense Hessians and dense P, in float64, and against what the step then does."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from thalweg.optim import CSGD, reparam_direction, reparam_groups, step_stability

IMAGES = torch.linspace(-1, 1, 6 * 2 * 3 * 3, dtype=torch.float64).view(6, 2, 3, 3).mul(7).sin()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, scale=1.0):
    """A grouped convolution and a linear layer: 38 parameters, smooth, so that there is a Hessian."""
    model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(scale * torch.randn(param.shape, dtype=torch.float64, generator=generator(seed)))
    return model


def loss_of(model):
    return (model(IMAGES) - 0.3).square().mean()


def groups_of(model, **options):
    """The two layers at different learning rates."""
    return [
        {"params": model[0].parameters(), "lr": 0.02, **options},
        {"params": model[3].parameters(), "lr": 0.11},
    ]


MAKERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "sgd, groups": lambda model: torch.optim.SGD(groups_of(model), lr=9.0),
    "right": lambda model: CSGD(model.parameters(), lr=0.1),
    "left": lambda model: CSGD(model.parameters(), lr=0.1, side="left"),
    "both": lambda model: CSGD(model.parameters(), lr=0.1, side="both"),
    "both, depth 3": lambda model: CSGD(model.parameters(), lr=0.1, side="both", depth=3),
    "balanced, depth 3": lambda model: CSGD(model.parameters(), lr=0.1, side="balanced", depth=3),
    "exact": lambda model: CSGD(model.parameters(), lr=0.1, exact=True),  # stability is a first-order matter
    "right, groups": lambda model: CSGD(groups_of(model), lr=9.0),
    "right, blocks": lambda model: CSGD(reparam_groups(model), lr=0.1),
    "left, groups, blocks": lambda model: CSGD(groups_of(model, blocks=2), lr=9.0, side="left"),
}


def owners_of(optimizer):
    return [(param, group) for group in optimizer.param_groups for param in group["params"]]


def dense_hessian(model, params):
    """By autograd over the flattened parameters, in the optimizer's order."""
    names = {param: name for name, param in model.named_parameters()}
    sizes = [param.numel() for param in params]

    def loss(flat):
        parts = zip(params, flat.split(sizes), strict=True)
        weights = {names[param]: part.view_as(param) for param, part in parts}
        return (functional_call(model, weights, (IMAGES,)) - 0.3).square().mean()

    return torch.autograd.functional.hessian(loss, torch.cat([param.detach().reshape(-1) for param in params]))


def dense_gain(param, group):
    """P of one parameter: reparam_direction applied to every unit matrix."""
    if "side" not in group or param.ndim < 2:
        return torch.eye(param.numel(), dtype=torch.float64)
    A = param.detach().reshape(group["blocks"], param.shape[0] // group["blocks"], -1)
    units = torch.eye(A.numel(), dtype=torch.float64).view(-1, *A.shape)
    columns = [reparam_direction(A, unit, side=group["side"], depth=group["depth"]).reshape(-1) for unit in units]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_against_dense_matrices(make):
    model = network()
    optimizer = make(model)
    owners = owners_of(optimizer)
    H = dense_hessian(model, [param for param, _ in owners]).numpy()
    P = [dense_gain(*owner) for owner in owners]
    lr_P = torch.block_diag(*[group["lr"] * gain for gain, (_, group) in zip(P, owners, strict=True)]).numpy()
    found = step_stability(loss_of(model), optimizer, generator=generator(), steps=60)
    # Each product shrinks the error of a quotient by the squared ratio of the two largest eigenvalues; 60 products
    # leave rounding alone up to a ratio of 0.75, and the largest here is 0.69.
    assert found.curvature == pytest.approx(np.linalg.eigvalsh(H).max(), rel=1e-9)
    assert found.sharpness == pytest.approx(np.linalg.eigvals(lr_P @ H).real.max(), rel=1e-9)
    matrices = [param.detach().flatten(1) for param, _ in owners if param.ndim > 1]
    assert found.s_max == pytest.approx([torch.linalg.svdvals(A)[0].item() for A in matrices], rel=1e-12)
    exact_bound = np.linalg.eigvalsh(lr_P).max() * found.curvature
    if any(group.get("blocks", 1) > 1 for _, group in owners):
        # s_max is taken of the blocks stacked, which is at least each block's: the bound stays one, but is not sharp.
        assert exact_bound <= found.bound * (1 + 1e-9)
    else:
        assert found.bound == pytest.approx(exact_bound, rel=1e-9)  # both exact up to rounding
    assert found.sharpness <= found.bound * (1 + 1e-12)  # equal for SGD, up to rounding


def test_plain_sgd_has_no_gain():
    model = network()
    found = step_stability(loss_of(model), MAKERS["sgd"](model), generator=generator(), steps=40)
    assert found.sharpness == pytest.approx(0.1 * found.curvature, rel=1e-12)  # the same iteration, rounded otherwise
    assert found.bound == pytest.approx(found.sharpness, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    scale=st.floats(0.1, 3.0),
    steps=st.integers(1, 12),
    make=st.sampled_from(sorted(MAKERS)),
)
def test_the_bound_is_a_bound_however_few_the_products(seed, scale, steps, make):
    model = network(seed, scale)
    optimizer = MAKERS[make](model)
    found = step_stability(loss_of(model), optimizer, generator=generator(seed), steps=steps)
    assert found.sharpness <= found.bound * (1 + 1e-12)  # equal for SGD, up to rounding
    assert found.bound >= 0
    H = dense_hessian(model, [param for param, _ in owners_of(optimizer)])
    # A Rayleigh quotient of a self-adjoint operator never exceeds its largest eigenvalue but by rounding.
    h = torch.linalg.eigvalsh(H)
    assert found.curvature <= h[-1] + 1e-12 * h.abs().max()


def test_a_loss_that_bends_down_more_than_up():
    x = nn.Parameter(torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64))
    bends = torch.tensor([-10.0, 1.0, 2.0], dtype=torch.float64)
    found = step_stability(
        (bends * x.square()).sum() / 2, torch.optim.SGD([x], lr=0.5), generator=generator(), steps=200
    )
    # Shifted by -10 the eigenvalues are 12, 11 and 0: (11/12)^(2·200) = 1e-15 of the second is left.
    assert (found.curvature, found.sharpness, found.bound) == pytest.approx((2.0, 1.0, 1.0), rel=1e-9)


def test_a_loss_that_only_bends_down_bounds_nothing():
    A = nn.Parameter(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    found = step_stability(-A.square().sum() / 2, CSGD([A], lr=0.1), generator=generator(), steps=50)
    assert found.curvature == pytest.approx(-1.0, rel=1e-12)  # H = -I exactly
    assert -0.1 * (1 + 2**2) <= found.sharpness < 0  # an eigenvalue quotient of -0.1 (I + AᵀA)
    assert found.bound == 0.0


def test_a_learning_rate_of_zero_moves_nothing():
    model = network()
    found = step_stability(loss_of(model), CSGD(model.parameters(), lr=0.0), generator=generator())
    assert (found.sharpness, found.bound) == (0.0, 0.0)
    assert found.curvature > 0


def test_a_huge_learning_rate_does_not_overflow():
    model = network().float()
    optimizer = CSGD(model.parameters(), lr=1e30)
    loss = (model(IMAGES.float()) - 0.3).square().mean()
    found = step_stability(loss, optimizer, generator=generator(), steps=40)
    assert 0 < found.sharpness <= found.bound < math.inf


def test_weights_that_are_not_finite_have_no_stability():
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    found = step_stability(loss_of(model), CSGD(model.parameters(), lr=0.1), generator=generator())
    assert math.isnan(found.curvature)
    assert math.isnan(found.sharpness)
    assert math.isnan(found.s_max[1])
    assert not found.bound < 2


@pytest.mark.parametrize("side", ["right", "left", "both", "balanced"])
@pytest.mark.parametrize(("aim", "contracts"), [(1.98, True), (2.02, False)])
def test_two_is_where_a_step_turns_from_contracting_to_expanding(side, aim, contracts):
    U, V = (torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator(seed)))[0] for seed in (1, 2))
    M = U @ torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)) @ V.T
    A = nn.Parameter(M + 1e-6 * torch.outer(U[:, 0], V[:, 0]))  # off by the least stable mode

    def loss():
        return (A - M).square().sum() / 2

    unit = step_stability(loss(), CSGD([A], lr=1.0, side=side), generator=generator(), steps=100).sharpness
    optimizer = CSGD([A], lr=aim / unit, side=side)
    found = step_stability(loss(), optimizer, generator=generator(), steps=100)
    assert found.sharpness == pytest.approx(aim, rel=1e-12)  # linear in lr
    before = (A - M).norm().item()
    loss().backward()
    optimizer.step()
    factor = (A - M).norm().item() / before
    assert (factor < 1) == contracts
    # The error is multiplied by |1 - sharpness|, up to the second order: the error's size, 1e-6, in weights of 2.
    assert factor == pytest.approx(abs(1 - aim), abs=1e-5)


def test_the_generator_decides():
    model = network()

    def found(seed):
        return step_stability(loss_of(model), CSGD(model.parameters(), lr=0.1), generator=generator(seed), steps=2)

    state = torch.get_rng_state()
    assert found(0) == found(0)
    assert found(0) != found(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_and_gradients_are_left_alone():
    model = network()
    before = [param.detach().clone() for param in model.parameters()]
    step_stability(loss_of(model), CSGD(model.parameters(), lr=0.1), generator=generator(), steps=2)
    assert all(torch.equal(old, param) for old, param in zip(before, model.parameters(), strict=True))
    assert all(param.grad is None for param in model.parameters())


def test_another_optimizer_is_refused():
    model = network()
    with pytest.raises(TypeError, match="step_stability knows CSGD and torch.optim.SGD, not Adam"):
        step_stability(loss_of(model), torch.optim.Adam(model.parameters()))
