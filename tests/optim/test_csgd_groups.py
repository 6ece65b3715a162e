"""`reparam_groups`: every weight as the matrices its layer applies."""

import pytest
import torch
from torch import nn

from thalweg.optim import CSGD, reparam_direction, reparam_groups


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(()))


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layout(model, **options):
    """Name of each parameter: (blocks, side)."""
    groups = reparam_groups(model, **options)
    found = {id(param): (group["blocks"], group["side"]) for group in groups for param in group["params"]}
    return {name: found[id(param)] for name, param in model.named_parameters()}


MODELS = {
    "autoencoder": lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8)),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Conv1d(8, 8, 3, groups=8)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ConvTranspose1d(6, 2, 3)),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "attention, other widths": lambda: nn.MultiheadAttention(8, 2, kdim=5, vdim=6, add_bias_kv=True),
    "recurrent": lambda: nn.ModuleList([nn.LSTM(3, 4, 2, proj_size=2), nn.GRU(3, 4), nn.RNN(3, 4), nn.LSTMCell(3, 4)]),
    "tied": Tied,
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3, groups=2)),
}


@pytest.mark.parametrize("side", ["right", "left", "both", "balanced"])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_every_parameter_is_there_once_and_can_be_stepped(build, side):
    model = build()
    groups = reparam_groups(model, side=side)
    params = [param for group in groups for param in group["params"]]
    assert len(params) == len({id(param) for param in params})
    assert {id(param) for param in params} == {id(param) for param in model.parameters()}
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    CSGD(groups, lr=0.1).step()
    for param, old in zip(params, before, strict=True):
        # a balanced step leaves a zero matrix where it is: no other parameter may stand still
        assert not torch.equal(param, old) or (side == "balanced" and not old.any())


def test_blocks_of_each_layer():
    assert layout(nn.Linear(3, 2)) == {"weight": (1, "right"), "bias": (1, "right")}
    assert layout(nn.Conv2d(4, 8, 3, groups=2)) == {"weight": (2, "right"), "bias": (1, "right")}
    assert layout(nn.Conv2d(6, 6, 3, groups=6, bias=False)) == {"weight": (6, "right")}  # depthwise
    attention = layout(nn.MultiheadAttention(8, 2))
    assert attention["in_proj_weight"] == (3, "right")
    assert attention["in_proj_bias"] == attention["out_proj.weight"] == (1, "right")
    assert layout(nn.MultiheadAttention(8, 2, kdim=5, vdim=6))["k_proj_weight"] == (1, "right")


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_gates_of_recurrent_layers(cell, gates):
    blocks = {name: key[0] for name, key in layout(cell(3, 5)).items()}
    assert {blocks[name] for name in blocks if name.startswith("weight")} == {gates}
    assert {blocks[name] for name in blocks if name.startswith("bias")} == {1}


def test_projection_of_an_lstm_is_one_matrix():
    assert layout(nn.LSTM(3, 5, proj_size=2))["weight_hr_l0"] == (1, "right")


@pytest.mark.parametrize(("side", "mirrored"), [("right", "left"), ("left", "right"), ("both", "both")])
def test_transposed_convolutions_get_the_mirrored_side(side, mirrored):
    key = layout(nn.ConvTranspose2d(4, 6, 3, groups=2), side=side)
    assert key == {"weight": (2, mirrored), "bias": (1, side)}


@pytest.mark.parametrize("side", ["right", "left", "both", "balanced"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_steps_as_its_operator(groups, side):
    """Of group g the layer applies the matrix (out·k·k, in): the stored one, (in, out·k·k), transposed."""
    layer = nn.ConvTranspose2d(4, 6, 3, stride=3, groups=groups, bias=False, dtype=torch.float64)
    grad = randn(*layer.weight.shape)
    operators = []
    for g in range(groups):  # stride 3, kernel 3: the output at one input pixel is one application of the matrix
        basis = torch.zeros(4 // groups, 4, 1, 1, dtype=torch.float64)
        basis[:, g * (4 // groups) : (g + 1) * (4 // groups), 0, 0] = torch.eye(4 // groups, dtype=torch.float64)
        out = layer(basis).detach()[:, g * (6 // groups) : (g + 1) * (6 // groups)]
        operators.append(out.flatten(1).T)
    gradients = [part.flatten(1).T for part in grad.chunk(groups)]
    expected = [A - 0.1 * reparam_direction(A, G, side=side) for A, G in zip(operators, gradients, strict=True)]
    layer.weight.grad = grad
    CSGD(reparam_groups(layer, side=side), lr=0.1).step()
    stored = [part.flatten(1).T for part in layer.weight.detach().chunk(groups)]
    # One step with entries of order one in float64.
    torch.testing.assert_close(stored, expected, atol=1e-12, rtol=0.0)


def test_attention_steps_as_three_matrices():
    layer = nn.MultiheadAttention(4, 2, dtype=torch.float64)
    weight, grad = layer.in_proj_weight, randn(12, 4)
    expected = [A - 0.1 * reparam_direction(A, G) for A, G in zip(weight.detach().chunk(3), grad.chunk(3), strict=True)]
    weight.grad = grad
    CSGD(reparam_groups(layer), lr=0.1).step()
    # Batched products may order their sums differently.
    torch.testing.assert_close(weight.detach(), torch.cat(expected), atol=1e-12, rtol=0.0)


def test_tied_weights_are_laid_out_where_they_appear_first():
    assert layout(Tied())["embedding.weight"] == (1, "right")
    first, second = nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(2, 8, 3)
    second.weight = first.weight
    assert layout(nn.Sequential(first, second))["0.weight"] == (2, "right")
    assert layout(nn.Sequential(second, first))["0.weight"] == (1, "right")
