"""CSGD as PyTorch expects an optimizer to behave: state, closures, hooks, errors."""

import io
import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from thalweg.optim import CSGD, reparam_groups

CONFIGS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "side": "both", "exact": True},
    {"side": "balanced", "depth": 3, "momentum": 0.5, "dampening": 0.1, "decoupled": True, "weight_decay": 0.1},
    {"lr": torch.tensor(0.02), "maximize": True},
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))


def optimizer_of(model, **options):
    return CSGD(reparam_groups(model, side=options.pop("side", "right")), **{"lr": 0.02, **options})


def train(model, optimizer, steps=3):
    images = torch.linspace(-1, 1, 5 * 2 * 4 * 4).view(5, 2, 4, 4).sin()
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def through_disk(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(first, second):
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("transport", [deepcopy, through_disk])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_training_continues_bit_for_bit_from_a_state_dict(config, transport):
    model = network()
    optimizer = optimizer_of(model, **config)
    train(model, optimizer)
    copy = deepcopy(model)
    resumed = optimizer_of(copy, lr=1.0)
    resumed.load_state_dict(transport(optimizer.state_dict()))
    train(model, optimizer)
    train(copy, resumed)
    assert_same(model, copy)
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("clone", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_copy_made_with_its_model_trains_alike(config, clone):
    model = network()
    optimizer = optimizer_of(model, **config)
    train(model, optimizer)
    copy, copied = clone((model, optimizer))
    train(model, optimizer)
    train(copy, copied)
    assert_same(model, copy)
    assert copied.defaults.items() >= optimizer.defaults.items()  # torch may add keys of its own


def test_an_older_state_dict_gets_the_new_options_from_the_optimizer_that_loads_it():
    model = network()
    old = CSGD(model.parameters(), lr=0.02, momentum=0.9).state_dict()
    for group in old["param_groups"]:
        for key in ("blocks", "depth", "exact", "decoupled", "maximize"):
            del group[key]
    optimizer = CSGD(model.parameters(), lr=1.0, exact=True)
    optimizer.load_state_dict(old)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["exact"], group["blocks"], group["depth"]) == (0.02, 0.9, True, 1, 2)
    train(model, optimizer, steps=1)
    assert len(optimizer.state) == len(list(model.parameters()))


def test_closure_runs_once_with_gradients_and_returns_the_loss():
    weight = nn.Parameter(torch.eye(2))
    optimizer, calls = CSGD([weight], lr=0.1), []

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == 2.0
    assert optimizer.step() is None
    assert weight[0, 0] < 1.0


def test_maximize_is_the_step_of_the_negative_gradient():
    up, down = nn.Parameter(torch.eye(3)), nn.Parameter(torch.eye(3))
    up.grad, down.grad = torch.ones(3, 3), -torch.ones(3, 3)
    CSGD([up], lr=0.1, maximize=True, exact=True).step()
    CSGD([down], lr=0.1, exact=True).step()
    assert torch.equal(up, down)


def test_schedulers_drive_the_exact_step():
    scheduled, by_hand = nn.Parameter(torch.eye(3)), nn.Parameter(torch.eye(3))
    optimizer = CSGD([scheduled], lr=0.4, exact=True)
    scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for lr in (0.4, 0.2, 0.1):
        scheduled.grad = by_hand.grad = torch.ones(3, 3)
        optimizer.step()
        scheduler.step()
        CSGD([by_hand], lr=lr, exact=True).step()
        assert torch.equal(scheduled, by_hand)


def test_hooks_run_around_the_step():
    weight, seen = nn.Parameter(torch.eye(2)), []
    weight.grad = torch.ones(2, 2)
    optimizer = CSGD([weight], lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append(weight.detach().clone()))
    optimizer.register_step_post_hook(lambda *_: seen.append(weight.detach().clone()))
    optimizer.step()
    assert torch.equal(seen[0], torch.eye(2))
    assert torch.equal(seen[1], weight)
    assert not torch.equal(seen[0], seen[1])


def test_grad_scaler_unscales_before_the_direction_and_skips_overflow():
    scaled, plain = nn.Parameter(torch.eye(2)), nn.Parameter(torch.eye(2))
    plain.grad = torch.full((2, 2), 2.0)
    CSGD([plain], lr=0.1).step()
    optimizer, scaler = CSGD([scaled], lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(2 * scaled.sum()).backward()
    assert scaled.grad[0, 0] == 2048.0
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(scaled, plain)  # the scale is a power of two: nothing is rounded
    optimizer.zero_grad()
    scaler.scale(float("inf") * scaled.sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(scaled, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": float("nan")}, "Invalid learning rate"),
        ({"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
        ({"momentum": -0.5}, "Invalid momentum value: -0.5"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"nesterov": True}, "Nesterov momentum requires"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "Nesterov momentum requires"),
        ({"side": "up"}, "Invalid side"),
        ({"depth": 0}, "Invalid depth"),
        ({"side": "balanced", "exact": True}, "no exact step"),
        ({"blocks": 0}, "Invalid blocks"),
        ({"blocks": 3}, r"blocks=3 does not divide .* \(4, 2\)"),
    ],
)
def test_wrong_options_are_refused_at_once_and_in_later_groups(options, message):
    with pytest.raises(ValueError, match=message):
        CSGD([nn.Parameter(torch.ones(4, 2))], **{"lr": 0.1, **options})
    optimizer = CSGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4, 2))], **options})
    assert len(optimizer.param_groups) == 1  # the refused group is not kept


def test_a_parameter_cannot_be_added_twice():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = CSGD([weight], lr=0.1)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [weight]})


def test_complex_and_sparse_are_refused():
    with pytest.raises(RuntimeError, match="complex"):
        CSGD([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))], lr=0.1)
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        CSGD(embedding.parameters(), lr=0.1).step()
