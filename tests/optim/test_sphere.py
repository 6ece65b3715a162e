"""SphereSGD against the formulas of seed 001, a loop over rows, and what PyTorch expects of an optimizer."""

import io
import math
import pickle
import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from thalweg.optim.sphere import SphereSGD, elr_to_lr, lr_to_elr, sphere_step

MODES = ("whole", "group", "filter")
EXACT = {"rtol": 0, "atol": 1e-12}  # float64, a few dozen roundings


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(scale * torch.randn(*shape, generator=generator)) for shape in ((4, 2, 3, 3), (5, 4), (3, 5))]


def invariant_loss(params):
    """Scale-invariant in every row of every parameter, hence in every larger group too."""
    total = torch.zeros(())
    for k, w in enumerate(params):
        rows = w.flatten(1)
        rows = rows / rows.norm(dim=1, keepdim=True)
        total = total + (rows * torch.linspace(0, 2, rows.shape[1])).cos().sum() * (k + 1)
    return total


def groups_of(params):
    return [{"params": params[:2]}, {"params": params[2:]}]


def train(optimizer, params, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        invariant_loss(params).backward()
        optimizer.step()


def flat(params):
    return torch.cat([w.detach().flatten() for w in params])


def through_disk(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_pure_step_turns_by_the_exact_angle_and_keeps_the_norm():
    w = torch.tensor([3.0, 4.0, 0.0])
    g = torch.tensor([-4.0, 3.0, 5.0])
    for elr in (1e-3, 0.1, 10.0):
        moved = sphere_step(w, g, elr, 5.0)
        tangent = elr * g.norm() * 5.0
        assert math.isclose(-(moved @ g / g.norm()) / (moved @ w / 5.0), tangent, rel_tol=1e-12)
        assert math.isclose(moved.norm(), 5.0, rel_tol=1e-12)


@pytest.mark.parametrize("radius", [None, 0.3, 7.0])
def test_whole_is_the_pure_step_of_the_joint_vector(radius):
    params = weights()
    start = flat(params)
    rho = radius or float(start.norm())
    optimizer = SphereSGD(params, elr=0.05, radius=radius)
    assert optimizer.param_groups[0]["radius"] == pytest.approx(rho, rel=1e-12)
    expected = start * (rho / start.norm())
    for _ in range(20):
        optimizer.zero_grad()
        invariant_loss(params).backward()
        expected = sphere_step(expected, torch.cat([w.grad.flatten() for w in params]), 0.05, rho)
        optimizer.step()
        torch.testing.assert_close(flat(params), expected, **EXACT)
        assert abs(float(flat(params).norm()) - rho) < 1e-12 * rho
    assert optimizer.euclidean_lr(optimizer.param_groups[0]) == pytest.approx(0.05 * rho**2)


@pytest.mark.parametrize("radius", [None, 2.0])
def test_groups_are_spheres_of_their_own(radius):
    params = weights()
    groups = groups_of(params)
    groups[1]["lr"] = 0.2
    optimizer = SphereSGD(groups, elr=0.05, radius=radius, mode="group")
    expected = [flat(params[:2]), flat(params[2:])]
    rhos = [radius or float(v.norm()) for v in expected]
    invariant_loss(params).backward()
    grads = [torch.cat([w.grad.flatten() for w in part]) for part in (params[:2], params[2:])]
    optimizer.step()
    for part, v, g, elr, rho in zip((params[:2], params[2:]), expected, grads, (0.05, 0.2), rhos, strict=True):
        torch.testing.assert_close(flat(part), sphere_step(v, g, elr, rho), **EXACT)


def test_filters_are_equal_spheres_with_n_times_the_elr():
    params = weights()
    total, count = float(flat(params).norm()), sum(len(w) for w in params)
    optimizer = SphereSGD(params, elr=0.01, mode="filter")
    each = total / math.sqrt(count)
    for _ in range(3):
        optimizer.zero_grad()
        invariant_loss(params).backward()
        expected = [
            # the authors' lr is ELR·ρ_total², so a row's own ELR is ELR·N
            torch.stack(
                [sphere_step(w[r], w.grad[r], lr_to_elr(elr_to_lr(0.01, total), each), each) for r in range(len(w))]
            )
            for w in params
        ]
        optimizer.step()
        for w, rows in zip(params, expected, strict=True):
            torch.testing.assert_close(w.detach(), rows.detach(), **EXACT)
            torch.testing.assert_close(w.detach().flatten(1).norm(dim=1), torch.full((len(w),), each), **EXACT)
    assert lr_to_elr(elr_to_lr(0.01, total), each) == pytest.approx(0.01 * count, rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_start_and_radius_times_alpha_give_the_same_directions(mode):
    paths = []
    for alpha in (1.0, 1e-3, 50.0):
        params = weights(alpha)
        optimizer = SphereSGD(groups_of(params), elr=0.02, mode=mode)
        train(optimizer, params, steps=30)
        paths.append(flat(params) / alpha)
    # 30 steps of a curved loss amplify the roundings of the scaled start
    torch.testing.assert_close(paths[1], paths[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(paths[2], paths[0], rtol=0, atol=1e-10)
    assert (paths[0] - flat(weights())).norm() > 0.1  # and they went somewhere


def test_small_steps_are_those_of_sgd_to_first_order():
    """On the toy f = x²/(x² + y²) of equation (10): the difference of one step shrinks as ELR²."""
    gaps = []
    for elr in (1e-2, 1e-3):
        ours, sgd = (nn.Parameter(torch.tensor([0.6, 0.8])) for _ in range(2))
        for w, optimizer in ((ours, SphereSGD([ours], elr=elr)), (sgd, torch.optim.SGD([sgd], lr=elr))):
            (w[0] ** 2 / w.square().sum()).backward()
            optimizer.step()
        gaps.append(float((ours - sgd).detach().norm()))
    assert math.isclose(gaps[0] / gaps[1], 100.0, rel_tol=0.01)


def test_toy_follows_the_closed_angle_map():
    """Seed 001, proposition 3: phi -> phi - arctan(a sin 2 phi), a = ELR·alpha, here with alpha = 1 and any radius."""
    phi, a = 0.7, 0.3
    w = nn.Parameter(2.5 * torch.tensor([math.sin(phi), math.cos(phi)]))
    optimizer = SphereSGD([w], elr=a)
    for _ in range(5):
        optimizer.zero_grad()
        (w[0] ** 2 / w.square().sum()).backward()
        optimizer.step()
        phi -= math.atan(a * math.sin(2 * phi))
        assert math.isclose(math.atan2(*w.tolist()), phi, abs_tol=1e-13)


@pytest.mark.parametrize("mode", ["whole", "group"])
def test_parameters_without_gradient_share_the_sphere(mode):
    params = weights()
    optimizer = SphereSGD(params, elr=0.1, mode=mode)
    rho, still = float(flat(params).norm()), params[2].detach().clone()
    invariant_loss(params[:2]).backward()
    optimizer.step()
    assert abs(float(flat(params).norm()) - rho) < 1e-12 * rho
    factor = params[2].detach() / still
    assert factor.max() - factor.min() < 1e-15
    assert factor.max() < 1


@pytest.mark.parametrize("mode", MODES)
def test_without_gradients_nothing_moves_and_empty_parameters_are_ignored(mode):
    params = [*weights(), nn.Parameter(torch.empty(0, 3))]
    optimizer = SphereSGD(params, elr=0.1, mode=mode)
    before = deepcopy(params)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    for w in params:
        w.grad = torch.zeros_like(w)
    optimizer.step()
    torch.testing.assert_close(params, before, **EXACT)


def test_maximize_is_the_step_of_the_negative_gradient():
    up, down = nn.Parameter(torch.tensor([2.0, 0.0])), nn.Parameter(torch.tensor([2.0, 0.0]))
    up.grad, down.grad = torch.tensor([0.0, 1.0]), torch.tensor([0.0, -1.0])
    SphereSGD([up], elr=0.3, maximize=True).step()
    SphereSGD([down], elr=0.3).step()
    assert torch.equal(up, down)
    assert up[1] > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", [deepcopy, through_disk])
def test_state_dict_continues_bit_for_bit_and_keeps_the_radius(mode, transport):
    params = weights()
    optimizer = SphereSGD(groups_of(params), elr=0.03, radius=3.0, mode=mode)
    train(optimizer, params)
    copies = deepcopy(params)
    resumed = SphereSGD(groups_of(copies), elr=1.0, mode=mode)
    with torch.no_grad():
        for copy, param in zip(copies, params, strict=True):  # construction puts weights on the sphere again
            copy.copy_(param)
    resumed.load_state_dict(transport(optimizer.state_dict()))
    assert resumed.param_groups[0]["radius"] == optimizer.param_groups[0]["radius"] == 3.0
    train(optimizer, params)
    train(resumed, copies)
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("clone", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("mode", MODES)
def test_a_copy_trains_alike(mode, clone):
    params = weights()
    optimizer = SphereSGD(groups_of(params), elr=0.03, mode=mode)
    train(optimizer, params)
    copies, copied = clone((params, optimizer))
    train(optimizer, params)
    train(copied, copies)
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def test_older_state_dicts_get_missing_options_from_the_optimizer():
    optimizer = SphereSGD(weights(), elr=0.1, check_every=7)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["check_every"], group["maximize"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["check_every"] == 7
    assert optimizer.param_groups[0]["maximize"] is False


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: lr_scheduler.StepLR(opt, 1, 0.5),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
        lambda opt: lr_scheduler.OneCycleLR(opt, 0.2, total_steps=8, cycle_momentum=False),
        lambda opt: lr_scheduler.LambdaLR(opt, lambda k: 1 / (1 + k)),
    ],
)
def test_schedulers_drive_the_elr(make):
    w = nn.Parameter(torch.tensor([3.0, 0.0]))
    optimizer = SphereSGD([w], elr=0.1)
    scheduler = make(optimizer)
    seen = set()
    for _ in range(4):
        seen.add(elr := optimizer.param_groups[0]["lr"])
        expected = sphere_step(w.detach(), g := torch.stack([-w[1], w[0]]).detach(), elr, 3.0)
        w.grad = g
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(w.detach(), expected, **EXACT)
    assert len(seen) == 4


@pytest.mark.parametrize("mode", ["whole", "filter"])
def test_a_later_group_brings_its_norm_to_the_joint_sphere(mode):
    params = weights()
    optimizer = SphereSGD(params[:2], elr=0.1, radius=3.0, mode=mode)
    optimizer.add_param_group({"params": params[2:]})
    expected = math.hypot(3.0, float(flat(weights()[2:]).norm()))
    assert [group["radius"] for group in optimizer.param_groups] == pytest.approx([expected] * 2, rel=1e-12)
    assert float(flat(params).norm()) == pytest.approx(expected, rel=1e-12)
    train(optimizer, params)
    assert float(flat(params).norm()) == pytest.approx(expected, rel=1e-12)


def test_a_later_group_has_a_sphere_of_its_own_in_mode_group():
    params = weights()
    optimizer = SphereSGD([{"params": params[:1]}, {"params": params[1:2], "radius": 0.5}], elr=0.1, mode="group")
    optimizer.add_param_group({"params": params[2:], "radius": 4.0})
    train(optimizer, params)
    norms = [float(flat(weights()[:1]).norm()), 0.5, 4.0]
    assert [float(w.norm()) for w in params] == pytest.approx(norms, rel=1e-12)


def test_closure_runs_once_with_gradients_and_returns_the_loss():
    params = weights()
    optimizer, calls = SphereSGD(params, elr=1e-4), []

    def closure():
        optimizer.zero_grad()
        loss = invariant_loss(params)
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        second = optimizer.step(closure)
    assert calls == [True, True]
    assert second < first


def test_grad_scaler_skips_an_overflow():
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer, scaler = SphereSGD([w], elr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(float("inf") * w.sum()).backward()
    scaler.step(optimizer)
    assert w.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_not_invariant_is_reported(mode):
    def broken(**options):
        params = weights()
        optimizer = SphereSGD(params, elr=1e-3, mode=mode, **options)
        for w in params:
            w.grad = w.detach() + 1.0
        return optimizer, params

    optimizer, params = broken()
    with pytest.warns(RuntimeWarning, match=r"cos\(g, w\).*not scale-invariant"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):  # it is looked at twice more, but once said is enough
            optimizer.step()
    optimizer, params = broken(check="raise")
    before = flat(params)
    with pytest.raises(RuntimeError, match="not scale-invariant"):
        optimizer.step()
    assert torch.equal(flat(params), before)
    optimizer, params = broken(check="off")
    optimizer.step()
    assert not torch.equal(flat(params), before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", MODES)
def test_an_invariant_loss_passes_the_strictest_check(mode):
    params = weights()
    optimizer = SphereSGD(params, elr=0.05, mode=mode, check="raise", check_every=1, tolerance=1e-12)
    train(optimizer, params)
    assert optimizer.param_groups[0]["steps"] == 5


@pytest.mark.parametrize("mode", MODES)
def test_non_finite_gradients_are_found_by_the_check(mode):
    params = weights()
    optimizer = SphereSGD(params, elr=0.1, mode=mode)
    invariant_loss(params).backward()
    params[1].grad[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite weight or gradient at step 0"):
        optimizer.step()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_without_direction_are_refused(mode, value):
    with pytest.raises(ValueError, match="finite norm above 0"):
        SphereSGD([nn.Parameter(torch.full((2, 2), value))], elr=0.1, mode=mode)


def test_one_zero_filter_is_refused_in_mode_filter_only():
    w = nn.Parameter(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    SphereSGD([w], elr=0.1)
    with pytest.raises(ValueError, match="every filter needs weights of finite norm above 0, got 0.0"):
        SphereSGD([w], elr=0.1, mode="filter")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elr": -0.1}, "Invalid effective learning rate: -0.1"),
        ({"elr": float("nan")}, "Invalid effective learning rate"),
        ({"elr": torch.tensor([0.1, 0.2])}, "1-element"),
        ({"radius": 0.0}, "Invalid radius: 0.0"),
        ({"radius": float("inf")}, "Invalid radius"),
        ({"mode": "layer"}, "Invalid mode: 'layer'; expected one of whole, group, filter"),
        ({"check": "maybe"}, "Invalid check"),
        ({"tolerance": -1.0}, "Invalid tolerance"),
        ({"check_every": 0}, "Invalid check_every"),
        ({"momentum": 0.9}, "no momentum, got 0.9: a momentum buffer is not tangent"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SphereSGD([nn.Parameter(torch.ones(4, 2))], **{"elr": 0.1, **options})


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"momentum": 0.9}, "no momentum"),
        ({"weight_decay": 0.1}, "no weight_decay"),
        ({"lr": -1.0}, "Invalid effective learning rate"),
        ({"mode": "group"}, "cannot have their own"),
        ({"radius": 2.0}, "cannot have their own"),
        ({"params": [nn.Parameter(torch.full((2, 2), float("nan")))]}, "finite norm"),
    ],
)
def test_wrong_groups_are_refused_and_not_kept(group, message):
    first = nn.Parameter(torch.ones(2, 2))
    optimizer = SphereSGD([first], elr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4, 2))], **group})
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["radius"] == 2.0
    assert torch.equal(first, torch.ones(2, 2))


def test_one_sphere_has_one_elr():
    params = weights()
    optimizer = SphereSGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.0}], elr=0.1)
    invariant_loss(params).backward()
    with pytest.raises(ValueError, match=r"one ELR, but the groups' are \[0.1, 0.0\]: use mode='group'"):
        optimizer.step()


def test_vectors_complex_and_sparse_are_refused():
    with pytest.raises(ValueError, match=r"mode='filter' needs rows, got a parameter of shape \(3,\)"):
        SphereSGD([nn.Parameter(torch.ones(3))], elr=0.1, mode="filter")
    with pytest.raises(RuntimeError, match="complex"):
        SphereSGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))], elr=0.1)
    embedding = nn.Embedding(3, 2, sparse=True)
    optimizer = SphereSGD(embedding.parameters(), elr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_low_precision_stays_on_the_sphere(mode, dtype):
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(300, 2000, generator=generator, dtype=torch.float32).to(dtype))
    optimizer = SphereSGD([w], elr=1e-3, mode=mode, check="off")
    for _ in range(20):
        w.grad = torch.randn(300, 2000, generator=generator, dtype=torch.float32).to(dtype)
        optimizer.step()
    rho = optimizer.param_groups[0]["radius"]
    # A factor is rounded to the weights' precision: 2^-24 or 2^-9, and in bfloat16 so is every weight.
    assert abs(float(w.double().norm()) / rho - 1) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("mode", MODES)
def test_an_accelerator_gives_the_same_steps(mode):
    device = torch.accelerator.current_accelerator()
    ours, theirs = [w.detach().float() for w in weights()], [w.detach().float().to(device) for w in weights()]
    ours, theirs = ([nn.Parameter(w) for w in part] for part in (ours, theirs))
    for params in (ours, theirs):
        optimizer = SphereSGD(params, elr=0.01, mode=mode)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for w in params:
                g = torch.randn(w.shape, generator=generator, dtype=torch.float32).to(w.device)
                w.grad = g - w.detach() * (g * w.detach()).sum() / w.detach().square().sum()
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach().cpu(), rtol=0, atol=1e-5)
