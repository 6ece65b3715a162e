"""ScaleMonitor against loops by hand on a small scale-invariant network in float64."""

import math
import warnings
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from thalweg.invariance.monitor import ScaleMonitor
from thalweg.invariance.norm import joint_norm, row_norms
from thalweg.invariance.variance import VarianceWatch, pre_normalization_variance
from thalweg.optim.sphere import SphereSGD

X = torch.linspace(-1, 1, 32 * 5, dtype=torch.float64).view(32, 5).mul(7).sin()
Y = torch.arange(32) % 3
WD = 0.05


def network(eps=1e-13, norm=nn.BatchNorm1d):
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(5, 8, bias=False), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)]
    model = nn.Sequential(
        layers[0], norm(8, eps=eps, affine=False), nn.Tanh(), layers[1], norm(6, eps=eps, affine=False), layers[2]
    ).double()
    with torch.no_grad():
        for w in model.parameters():
            w.copy_(torch.randn(w.shape, generator=generator, dtype=torch.float64))
    layers[2].requires_grad_(False)
    return model


def trained(model):
    return [w for w in model.parameters() if w.requires_grad]


def groups(*names):
    return [SimpleNamespace(names=(name,) if isinstance(name, str) else name) for name in names]


def backward(model, optimizer, x=X):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), Y[: len(x)])
    loss.backward()
    return loss


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors]).clone()


OPTIMIZERS = {
    "SGD": lambda w: torch.optim.SGD(w, lr=0.3, weight_decay=WD),
    "momentum": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=WD),
    "Adam": lambda w: torch.optim.Adam(w, lr=0.01),
    "SphereSGD": lambda w: SphereSGD(w, elr=0.1),
    "spheres": lambda w: SphereSGD([{"params": [p]} for p in w], elr=0.1, mode="group"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_are_the_numbers_of_a_loop_by_hand(name):
    model = network()
    weights = trained(model)
    optimizer = OPTIMIZERS[name](weights)
    monitor = ScaleMonitor(model, optimizer, groups("0.weight", "3.weight")).attach()
    for _ in range(4):
        backward(model, optimizer)
        old, grads = [flat([w]) for w in weights], [flat([w.grad]) for w in weights]
        optimizer.step()
        parts = {"": (torch.cat(old), torch.cat(grads), flat(weights))}
        for label, w, g, p in zip(monitor.labels, old, grads, weights, strict=True):
            parts[f"{label}/"] = (w, g, flat([p]))
        for prefix, (w, g, new) in parts.items():
            row = {key.removeprefix(prefix): value for key, value in monitor.last.items() if key.startswith(prefix)}
            rho, lr = float(w.norm()), optimizer.param_groups[0]["lr"]
            if name == "SphereSGD":
                lr *= float(torch.cat(old).norm()) ** 2
            if name == "spheres":
                lr = lr * rho**2 if prefix else math.nan  # every sphere has its own
            expected = {
                "rho": rho,
                "grad_norm": float(g.norm()),
                "effective_grad_norm": rho * float(g.norm()),
                "elr": lr / rho**2,
                "effective_step_size": lr / rho * float(g.norm()),
                "cosine_distance": 1 - float(w @ new / (w.norm() * new.norm())),
            }
            for key, value in expected.items():
                assert row[key] == pytest.approx(value, rel=1e-10, abs=1e-15, nan_ok=True), key
            assert abs(row["radial_cosine"]) < 1e-10  # (2a)
    assert monitor.labels == ("0.weight", "3.weight")
    assert [row["step"] for row in monitor.rows] == [0, 1, 2, 3]


def test_residuals_vanish_for_plain_sgd():
    model = network()
    optimizer = OPTIMIZERS["SGD"](trained(model))
    with ScaleMonitor(model, optimizer, groups("0.weight", "3.weight")) as monitor:
        for _ in range(20):
            backward(model, optimizer)
            optimizer.step()
    for row in monitor.rows:
        for key in ("norm_residual", "0.weight/norm_residual", "3.weight/norm_residual"):
            assert abs(row[key]) < 1e-10  # (4)
        for key in ("0.weight/elr_residual", "3.weight/elr_residual"):
            assert abs(row[key]) < 1e-10  # (9)
        # (7) and (8) tie the groups to the total
        assert 1 / row["0.weight/elr"] + 1 / row["3.weight/elr"] == pytest.approx(1 / row["elr"], rel=1e-12)
    assert monitor.rows[0]["rho"] != pytest.approx(monitor.last["rho"], rel=1e-3)


def test_residuals_on_the_sphere():
    model = network()
    optimizer = OPTIMIZERS["SphereSGD"](trained(model))
    with ScaleMonitor(model, optimizer, groups("0.weight", "3.weight")) as monitor:
        for _ in range(20):
            backward(model, optimizer)
            optimizer.step()
    for before, after in zip(monitor.rows, monitor.rows[1:], strict=False):
        assert before["rho"] == pytest.approx(after["rho"], rel=1e-12)
        assert before["elr"] == pytest.approx(0.1, rel=1e-12)
        assert math.isnan(before["norm_residual"])
        for label in monitor.labels:
            assert abs(before[f"{label}/elr_residual"]) < 1e-10
            # equation (9) as printed, from one row to the next
            gain = (1 + before["effective_step_size"] ** 2) / (1 + before[f"{label}/effective_step_size"] ** 2)
            assert after[f"{label}/elr"] == pytest.approx(before[f"{label}/elr"] * gain, rel=1e-10)


def test_effective_gradient_does_not_depend_on_the_scale():
    """(2b): weights times α have gradients over α."""
    found = []
    for alpha in (1.0, 7.0):
        model = network()
        with torch.no_grad():
            for w in trained(model):
                w.mul_(alpha)
        optimizer = torch.optim.SGD(trained(model), lr=0.1)
        with ScaleMonitor(model, optimizer) as monitor:
            backward(model, optimizer)
            optimizer.step()
        found.append(monitor.last)
    assert found[1]["grad_norm"] == pytest.approx(found[0]["grad_norm"] / 7, rel=1e-10)
    assert found[1]["effective_grad_norm"] == pytest.approx(found[0]["effective_grad_norm"], rel=1e-10)
    assert found[1]["elr"] == pytest.approx(found[0]["elr"] / 49, rel=1e-12)


@pytest.mark.parametrize("name", ["momentum", "Adam", "spheres"])
def test_residuals_of_other_optimizers_are_nan(name):
    model = network()
    optimizer = OPTIMIZERS[name](trained(model))
    with ScaleMonitor(model, optimizer, groups("0.weight", "3.weight")) as monitor:
        backward(model, optimizer)
        optimizer.step()
    assert math.isnan(monitor.last["norm_residual"])
    assert math.isnan(monitor.last["0.weight/elr_residual"])
    assert monitor.last["cosine_distance"] > 0


def test_a_loss_that_is_not_invariant_shows_in_the_residuals():
    model = nn.Linear(5, 3, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with ScaleMonitor(model, optimizer) as monitor:
        backward(model, optimizer)
        w, g = model.weight.detach().clone(), model.weight.grad.clone()
        optimizer.step()
    radial = float((w * g).sum())
    assert monitor.last["radial_cosine"] == pytest.approx(radial / float(w.norm() * g.norm()), rel=1e-10)
    predicted = float(w.square().sum() + 0.3**2 * g.square().sum())
    # ρ'² = |w - ηg|² has the term -2η<w, g> that (4) leaves out
    assert monitor.last["norm_residual"] == pytest.approx(-2 * 0.3 * radial / predicted, abs=1e-14)
    assert radial != 0


def test_cosine_distance_survives_single_precision():
    w = nn.Parameter(torch.randn(200, 500, generator=torch.Generator().manual_seed(0)))
    model = nn.Module()
    model.w = w
    optimizer = torch.optim.SGD([w], lr=1.0)
    g = torch.randn(200, 500, generator=torch.Generator().manual_seed(1))
    w.grad = (g - w.detach() * (g * w.detach()).sum() / w.detach().square().sum()) * 1e-4
    old = flat([w]).double()
    with ScaleMonitor(model, optimizer) as monitor:
        optimizer.step()
    new = flat([w]).double()
    expected = float((old / old.norm() - new / new.norm()).square().sum()) / 2
    assert expected < 1e-8
    assert 1 - float(old.float() @ new.float() / (old.float().norm() * new.float().norm())) != pytest.approx(
        expected, rel=0.1
    )  # what the formula is for
    assert monitor.last["cosine_distance"] == pytest.approx(expected, rel=1e-3)


def test_jump_bounds_are_those_of_proposition_1_over_the_window():
    model, delta = network(), 0.02
    optimizer = torch.optim.SGD(trained(model), lr=0.3)
    with ScaleMonitor(model, optimizer, delta=delta, window=3) as monitor:
        for _ in range(6):
            backward(model, optimizer)
            optimizer.step()
    for k, row in enumerate(monitor.rows):
        recent = [r["effective_grad_norm"] for r in monitor.rows[max(0, k - 2) : k + 1]]
        assert row["jump_possible"] == pytest.approx(0.3 * max(recent) / math.sqrt(2 * delta), rel=1e-12)
        assert row["jump_certain"] == pytest.approx(0.3 * min(recent) / math.sqrt(2 * delta), rel=1e-12)
    assert row["jump_possible"] > row["jump_certain"]


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (lambda k: k in (1, 2), [1, 2])]
)
def test_every(every, steps):
    model = network()
    optimizer = OPTIMIZERS["SGD"](trained(model))
    with ScaleMonitor(model, optimizer, every=every) as monitor:
        assert monitor.last == {}
        for _ in range(7):
            backward(model, optimizer)
            optimizer.step()
    assert [row["step"] for row in monitor.rows] == steps
    assert all("variance_over_eps" in row for row in monitor.rows)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_same_bit_for_bit(name):
    models = [network(eps=1e-5) for _ in range(2)]
    states = []
    for model, watched in zip(models, (True, False), strict=True):
        optimizer = OPTIMIZERS[name](trained(model))
        monitor = ScaleMonitor(model, optimizer, delta=0.1)
        if watched:
            monitor.attach()
        torch.manual_seed(0)
        for _ in range(10):
            backward(model, optimizer)
            optimizer.step()
        states.append((model.state_dict(), torch.get_rng_state()))
    assert len(monitor.rows) == 0
    assert torch.equal(states[0][1], states[1][1])
    assert all(torch.equal(a, b) for a, b in zip(states[0][0].values(), states[1][0].values(), strict=True))


def test_detach_leaves_no_hooks():
    model = network()
    optimizer = OPTIMIZERS["SGD"](trained(model))

    def hooks():
        tables = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
        for module in model.modules():
            tables += [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
        return sum(len(table) for table in tables)

    assert hooks() == 0
    monitor = ScaleMonitor(model, optimizer)
    with monitor:
        assert hooks() == 2 + 2 * 2  # around the step and around both normalizations
        with pytest.raises(RuntimeError, match="attached already"):
            monitor.attach()
    assert hooks() == 0
    with pytest.raises(ZeroDivisionError), monitor:
        raise ZeroDivisionError
    assert hooks() == 0
    with ScaleMonitor(model, optimizer, alarm=0):
        assert hooks() == 2
    backward(model, optimizer)
    optimizer.step()
    assert monitor.rows == []


def test_gradients_made_by_a_closure_are_seen():
    model = network()
    optimizer = OPTIMIZERS["SGD"](trained(model))
    with ScaleMonitor(model, optimizer) as monitor:
        optimizer.step(lambda: backward(model, optimizer))
    expected = joint_norm([w.grad for w in trained(model)])
    assert monitor.last["grad_norm"] == pytest.approx(float(expected), rel=1e-12)
    assert abs(monitor.last["norm_residual"]) < 1e-10


def test_parameters_without_gradient_count_as_zero():
    model = network()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    with ScaleMonitor(model, optimizer, groups("0.weight", "3.weight")) as monitor:
        backward(model, optimizer)
        model[0].weight.grad = None
        optimizer.step()
    assert monitor.last["0.weight/grad_norm"] == 0
    assert monitor.last["0.weight/cosine_distance"] == 0
    assert math.isnan(monitor.last["0.weight/radial_cosine"])
    assert monitor.last["grad_norm"] == monitor.last["3.weight/grad_norm"] > 0


def test_labels_join_names_and_groups_span_tensors():
    model = network()
    optimizer = OPTIMIZERS["SGD"](trained(model))
    with ScaleMonitor(model, optimizer, groups(("0.weight", "3.weight"))) as monitor:
        backward(model, optimizer)
        optimizer.step()
    assert monitor.labels == ("0.weight+1",)
    for key in ("rho", "elr", "cosine_distance", "grad_norm"):
        assert monitor.last[f"0.weight+1/{key}"] == pytest.approx(monitor.last[key], rel=1e-12)


def test_a_divergence_is_recorded_and_does_not_stop_training():
    model = network()
    optimizer = OPTIMIZERS["SGD"](trained(model))
    with ScaleMonitor(model, optimizer, alarm=0) as monitor:
        backward(model, optimizer)
        model[0].weight.grad[0, 0] = float("nan")
        optimizer.step()
        with torch.no_grad():
            for w in trained(model):
                w.zero_()
        optimizer.step()
    assert math.isnan(monitor.rows[0]["grad_norm"])
    assert math.isfinite(monitor.rows[0]["rho"])
    assert monitor.rows[1]["rho"] == 0
    assert math.isnan(monitor.rows[1]["elr"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "groups is empty"),
        (groups(()), "group 0 has no weights"),
        (groups("1.weight"), "group 0 names '1.weight', which the model has not got"),
        (groups("5.weight"), "group 0 names '5.weight', which the optimizer does not train"),
        (groups("0.weight", ("3.weight", "0.weight")), "'0.weight' is named twice"),
    ],
)
def test_wrong_groups_are_refused(given, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        ScaleMonitor(model, OPTIMIZERS["SGD"](trained(model)), given)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_without_direction_are_refused(value):
    model = network()
    with torch.no_grad():
        model[3].weight.fill_(value)
    with pytest.raises(ValueError, match="group 1 has norm"):
        ScaleMonitor(model, torch.optim.SGD(trained(model), lr=0.1), groups("0.weight", "3.weight"))


@pytest.mark.parametrize("options", [{"every": 0}, {"delta": 0.0}, {"delta": 3.0}, {"window": 0}, {"alarm": -1.0}])
def test_wrong_options_are_refused(options):
    model = network()
    with pytest.raises(ValueError, match="Invalid"):
        ScaleMonitor(model, OPTIMIZERS["SGD"](trained(model)), **options)


def test_alarm_names_the_collapsed_layer_once():
    model = network(eps=1e-5)
    optimizer = torch.optim.SGD(trained(model), lr=1e-9)
    with ScaleMonitor(model, optimizer) as monitor:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            backward(model, optimizer)
            optimizer.step()
        assert monitor.last["alarms"] == 0
        with torch.no_grad():
            model[3].weight.mul_(1e-3)
        backward(model, optimizer)
        with pytest.warns(RuntimeWarning, match=r"step 1: the variance before '4' is .* times its eps"):
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            backward(model, optimizer)
            optimizer.step()
    assert monitor.last["alarms"] == 1
    hidden = model[2](model[1](model[0](X)))
    expected = float(model[3](hidden).var(0, unbiased=False).median()) / 1e-5
    assert expected < 10
    assert monitor.last["4/variance_over_eps"] == monitor.last["variance_over_eps"]
    assert monitor.last["variance_over_eps"] == pytest.approx(expected, rel=1e-4)  # through a running variance of 1


IMAGES = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("layer", "dims", "x"),
    [
        (nn.BatchNorm2d(4), (0, 2, 3), IMAGES),
        (nn.BatchNorm2d(4, momentum=None), (0, 2, 3), IMAGES),
        (nn.BatchNorm2d(4, momentum=0.0), (0, 2, 3), IMAGES),
        (nn.BatchNorm2d(4, track_running_stats=False), (0, 2, 3), IMAGES),
        (nn.BatchNorm1d(4), (0,), IMAGES[:, :, 0, 0]),
        (nn.InstanceNorm2d(4), (2, 3), IMAGES),
        (nn.InstanceNorm2d(4), (1, 2), IMAGES[0]),
        (nn.LayerNorm([5, 5]), (2, 3), IMAGES),
        (nn.GroupNorm(2, 4), None, IMAGES),
    ],
)
def test_variances_of_every_normalization(layer, dims, x):
    layer = layer.double()
    grouped = x.reshape(6, 2, -1) if dims is None else x
    expected = grouped.var(dims or (2,), unbiased=False)
    torch.testing.assert_close(pre_normalization_variance(layer, x), expected, rtol=1e-12, atol=0)
    watch = VarianceWatch(nn.Sequential(layer), lambda: True)
    for _ in range(3):
        layer(x)
    watch.remove()
    found = float(watch.ratios["0"])
    assert found == pytest.approx(float(expected.median()) / layer.eps, rel=1e-12)
    normalized = (grouped - grouped.mean(dims or (2,), keepdim=True)) / (
        grouped.var(dims or (2,), unbiased=False, keepdim=True) + layer.eps
    ).sqrt()
    torch.testing.assert_close(layer(x).reshape(normalized.shape), normalized)  # these are the layer's own variances
    assert float(watch.ratios["0"]) == found  # removed


def test_the_watch_skips_evaluation_and_passes_without_gradients_and_keeps_the_least():
    layer = nn.BatchNorm2d(4).double()
    model = nn.Sequential(layer)
    watch = VarianceWatch(model, lambda: True)
    with torch.no_grad():
        model(IMAGES)
    model.eval()
    model(IMAGES)
    assert watch.ratios == {}
    model.train()
    for scale in (1.0, 0.1, 2.0):
        model(scale * IMAGES)
    expected = float(IMAGES.var((0, 2, 3), unbiased=False).median()) * 0.01 / layer.eps
    assert float(watch.ratios["0"]) == pytest.approx(expected, rel=1e-10)
    assert pre_normalization_variance(nn.ReLU(), IMAGES) is None


def test_norms_are_right_in_single_and_half_precision():
    w = torch.randn(512, 4608, generator=torch.Generator().manual_seed(0))
    exact = float(w.double().norm())
    assert abs(float(joint_norm([w, w[0]])) / math.hypot(exact, float(w[0].double().norm())) - 1) < 1e-7
    assert abs(float(w.norm()) / exact - 1) > 1e-6  # why joint_norm exists
    torch.testing.assert_close(row_norms(w.bfloat16()), w.bfloat16().float().norm(dim=1))
    assert row_norms(torch.tensor(-3.0)).tolist() == [3.0]


def test_steps_of_the_same_model_can_be_watched_by_two_monitors():
    model = network()
    optimizer = OPTIMIZERS["SGD"](trained(model))
    with ScaleMonitor(model, optimizer) as first, ScaleMonitor(deepcopy(model), optimizer) as second:
        backward(model, optimizer)
        optimizer.step()
    shared = {key for key in second.last if "variance" not in key and key != "alarms"}
    assert {key: first.last[key] for key in shared} == {key: second.last[key] for key in shared}
