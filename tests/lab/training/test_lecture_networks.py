"""The perceptrons of the lecture's experiments: every option changes what it says, and masks resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thalweg.lab.training.lecture_networks import ACTIVATIONS, RULES, Dropout, EveryStep, perceptron
from thalweg.optim.schedules import linear


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("normalization", "kinds"),
    [
        ("none", [nn.Linear, nn.Tanh]),
        ("batch before", [nn.Linear, nn.BatchNorm1d, nn.Tanh]),
        ("batch after", [nn.Linear, nn.Tanh, nn.BatchNorm1d]),
        ("layer", [nn.Linear, nn.LayerNorm, nn.Tanh]),
    ],
)
def test_normalization_has_its_place(normalization: str, kinds: list[type]) -> None:
    model = perceptron((4, 6, 6, 2), weights=draw(), activation="tanh", normalization=normalization)
    assert [type(part) for part in model] == [nn.Flatten, *kinds, *kinds, nn.Linear]
    assert model(torch.zeros(3, 2, 2)).shape == (3, 2)


@pytest.mark.parametrize("rule", RULES)
def test_initialization_draws_the_rule_s_weights(rule: str) -> None:
    model = perceptron((5, 7, 3), weights=draw(), initialization=rule)
    again = draw()
    for layer in (part for part in model if isinstance(part, nn.Linear)):
        assert torch.equal(layer.weight, RULES[rule](layer.in_features, layer.out_features, generator=again))
        assert not layer.bias.any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_lies_on_inputs_and_hidden_layers_only(activation: str) -> None:
    model = perceptron((4, 6, 2), weights=draw(), masks=draw(1), activation=activation, dropout=(0.2, 0.5))
    assert [part.p for part in model if isinstance(part, Dropout)] == [0.2, 0.5]
    assert isinstance(model[-1], nn.Linear)
    model.eval()
    x = torch.rand(3, 4)
    assert torch.equal(model(x), model(x))


def test_the_state_of_the_masks_travels_with_the_weights() -> None:
    x = torch.ones(50)
    first, second = Dropout(0.5, draw(3)), Dropout(0.5, draw(4))
    first(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_the_schedule_moves_with_every_step() -> None:
    param = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=1.0)
    every = EveryStep(optimizer, linear(1.0, 4))
    rates = []
    for _ in range(3):
        param.grad = torch.ones(1)
        optimizer.step()
        every.step()  # the end of an epoch changes nothing
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.75, 0.5, 0.25]
    assert float(param.detach()) == -(1 + 0.75 + 0.5)
