"""Stacked networks against the same networks one by one: ordinary autograd, real optimizers, attached monitors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.invariance import ScaleMonitor, find_scale_groups
from thalweg.lab.training.replicas import Program, Replicas, products, vmapped
from thalweg.nn import MLP, ConvNet
from thalweg.optim import SphereSGD

COUNT, SAMPLES, CLASSES = 3, 12, 4
RTOL = 1e-9  # of a float64 run of 30 steps: rounding, 1e-16 a step, grows by orders on the way
RATES = (0.003, 0.01, 0.03)


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    return mse_loss(logits, torch.nn.functional.one_hot(labels, CLASSES).to(logits))


def perceptrons(depth: int) -> list[nn.Module]:
    draw = torch.Generator().manual_seed(depth)
    return [MLP(6, (5, 7, 4)[:depth], CLASSES, generator=draw).double() for _ in range(COUNT)]


def conv_nets() -> list[nn.Module]:
    draw = torch.Generator().manual_seed(0)
    return [ConvNet(1, 2, CLASSES, generator=draw).double() for _ in range(COUNT)]


def data(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images that all share, and labels of each network's own."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, *shape, generator=draw, dtype=torch.float64)
    return x, torch.randint(CLASSES, (COUNT, SAMPLES), generator=draw)


CASES: dict[str, tuple[Program, Callable[[], list[nn.Module]], tuple[int, ...], Any]] = {
    "products, one layer": (products, lambda: perceptrons(1), (6,), cross_entropy),
    "products, two layers": (products, lambda: perceptrons(2), (1, 2, 3), cross_entropy),
    "products, three layers, squared error": (products, lambda: perceptrons(3), (6,), squared),
    "vmap, two layers": (vmapped, lambda: perceptrons(2), (6,), cross_entropy),
    "vmap, convolutions": (vmapped, conv_nets, (1, 32, 32), cross_entropy),
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_is_autograd_of_each_network(case: str) -> None:
    program, build, shape, loss_fn = CASES[case]
    alone, models = build(), build()
    x, targets = data(shape)
    replicas = Replicas(models, loss_fn, x[:1])
    found = program(replicas, x, targets)
    for k, (one, model) in enumerate(zip(alone, models, strict=True)):
        loss = loss_fn(one(x), targets[k])
        loss.backward()
        torch.testing.assert_close(found[k], loss.detach(), rtol=RTOL, atol=0)
        for own, stacked in zip(one.parameters(), model.parameters(), strict=True):
            assert (own.grad is None) == (stacked.grad is None)
            if own.grad is not None:
                torch.testing.assert_close(stacked.grad, own.grad, rtol=RTOL, atol=1e-14)
        for own, stacked in zip(one.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(stacked, own, rtol=RTOL, atol=1e-14)


def sphere(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda params: SphereSGD(params, rate, check_every=10)


def plain(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda params: torch.optim.SGD(params, lr=rate, weight_decay=0.1)


@pytest.mark.parametrize("make", [sphere, plain])
@pytest.mark.parametrize(("case", "by_rows"), [("products, two layers", True), ("vmap, two layers", False)])
def test_training_and_measurements_are_those_of_single_runs(
    case: str, by_rows: bool, make: Callable[[float], Callable[[list[nn.Parameter]], torch.optim.Optimizer]]
) -> None:
    program, build, shape, loss_fn = CASES[case]
    alone, models = build(), build()
    seen: dict[str, list[Any]] = {"alone": [], "together": []}
    x, targets = data(shape)
    groups = find_scale_groups(alone[0], loss_fn, [(x, targets[0])], generator=torch.Generator().manual_seed(0))
    for kind, nets in (("alone", alone), ("together", models)):
        for net, rate in zip(nets, RATES, strict=True):
            optimizer = make(rate)([p for p in net.parameters() if p.requires_grad])
            seen[kind].append((optimizer, ScaleMonitor(net, optimizer, groups)))
    replicas = Replicas(models, loss_fn, x[:1])
    replicas.by_rows = by_rows  # False on accelerators
    optimizers, monitors = zip(*seen["together"], strict=True)
    for step in range(30):
        rows = slice(None, None if step % 3 else 7)  # as the last batch of an epoch, smaller
        losses = replicas.step(
            program, x[rows], targets[:, rows], optimizers, monitors, [group.names for group in groups]
        )
        for k, (net, (optimizer, monitor)) in enumerate(zip(alone, seen["alone"], strict=True)):
            with monitor:
                optimizer.zero_grad()
                loss = loss_fn(net(x[rows]), targets[k][rows])
                loss.backward()
                optimizer.step()
            torch.testing.assert_close(losses[k], loss.detach(), rtol=RTOL, atol=0)
    for (optimizer, monitor), own, other in zip(seen["alone"], optimizers, monitors, strict=True):
        assert own.state_dict() == optimizer.state_dict()
        assert other.step == monitor.step == 30
        for expected, row in zip(monitor.rows, other.rows, strict=True):
            assert row.keys() == expected.keys()
            for key, value in expected.items():
                # Residuals and cosines of orthogonal vectors are nothing but rounding.
                rounding = 1e-9 if "residual" in key or "radial" in key else 0.0
                assert row[key] == pytest.approx(value, rel=RTOL, abs=rounding, nan_ok=True), key


def test_networks_and_stacks_are_the_same_memory() -> None:
    models = perceptrons(2)
    kept = copy.deepcopy(models)
    replicas = Replicas(models, cross_entropy, data((6,))[0][:1])
    assert all(
        a.equal(b)
        for old, new in zip(kept, models, strict=True)
        for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)
    )
    models[1].load_state_dict(models[2].state_dict())
    assert replicas.weights["hidden.4.weight"][1].equal(replicas.weights["hidden.4.weight"][2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("case", CASES)
def test_an_accelerator_gives_the_same(case: str) -> None:
    device = torch.accelerator.current_accelerator()
    program, build, shape, loss_fn = CASES[case]
    x, targets = data(shape)
    losses = [
        program(Replicas([m.to(where) for m in build()], loss_fn, x[:1].to(where)), x.to(where), targets.to(where))
        for where in ("cpu", device)
    ]
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=RTOL, atol=0)
