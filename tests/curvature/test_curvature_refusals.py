"""What `CurvatureOperator` refuses, and what looks like it and is none of it."""

import numpy as np
import pytest
import torch
from curvature_networks import CLASSES, mlp, normal, pairs
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.curvature import CurvatureOperator


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.square().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, u):
        (z,) = ctx.saved_tensors
        return u * 2 * z / z.numel()


class FirstOrder(nn.Module):
    """No trace follows it, and autograd knows its gradient alone."""

    def forward(self, h):
        return nn.functional.hardsigmoid(h) if h.sum() > -1e9 else h


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.layer(x) + torch.randn(len(x), 1, dtype=x.dtype)


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, CLASSES, dtype=torch.complex128))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


def frozen():
    return mlp().requires_grad_(False)


def nan():
    model = mlp()
    model[0].weight.data[0, 0] = float("nan")
    return model


def squares(z, y):
    return z.square().mean()


def test_what_cannot_be_done_is_refused():
    x, y = pairs()
    for arguments, options, message in (
        ((mlp(), cross_entropy, []), {}, "there is no data"),
        ((mlp(), cross_entropy, (x[:0], y[:0])), {}, "there is no data"),
        ((frozen(), cross_entropy, (x, y)), {}, "no trainable parameter"),
        (
            (mlp(), cross_entropy, (x, y)),
            {"params": lambda name: name == "absent"},
            "no trainable parameter that params",
        ),
        ((Turned(), cross_entropy, (x, y)), {}, "parameters are torch.complex128: hold"),
        ((nan(), cross_entropy, (x, y)), {}, "the loss is nan"),
        ((mlp(), lambda z, y: squares(z, y) * float("inf"), (x, y)), {}, "the loss is inf"),
        ((mlp(), lambda z, y: Once.apply(z), (x, y)), {}, "not twice differentiable"),
        ((mlp(), lambda z, y: (z - 1.0).abs().mean(), (x, y)), {}, "not twice differentiable"),
        ((mlp(), lambda z, y: torch.relu(1.0 - z).mean(), (x, y)), {}, "not twice differentiable"),
        ((mlp(), lambda z, y: z.square(), (x, y)), {}, "scalar"),
        ((mlp(), lambda z, y: squares(z.detach(), y), (x, y)), {}, "does not depend on the model's output"),
        ((Noisy().double(), squares, (x, y)), {}, "output is random"),
        ((nn.Sequential(mlp(), FirstOrder()), squares, (x, y)), {}, "the model is not twice differentiable"),
        ((nn.Sequential(mlp(), FirstOrder()), squares, (x, y)), {"kind": "ggn"}, "the model is not twice diff"),
        ((mlp(), cross_entropy, (x.float(), y)), {}, "fails on the data: .* same dtype"),
        ((mlp(), cross_entropy, (x, y)), {"kind": "fisher"}, "kind must be one of"),
        ((mlp(), cross_entropy, (x, y)), {"mode": "train"}, "mode must be"),
    ):
        with pytest.raises(ValueError, match=message):
            CurvatureOperator(*arguments, **options)
    op = CurvatureOperator(mlp(), cross_entropy, (x, y))
    with pytest.raises(ValueError, match=r"a tensor of 39 numbers, got shape \(4,\)"):
        op @ torch.zeros(4)
    with pytest.raises(ValueError, match=r"a tensor of 39 rows, got shape \(4, 2\)"):
        op.matmat(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"a tensor of 39 numbers, got ndarray \(numpy\(\) is for arrays\)"):
        op @ np.zeros(39)


def test_a_loss_linear_in_the_output_is_twice_differentiable():
    """Such as an output itself: the whole Hessian is its remainder."""
    model, (x, y) = mlp(), pairs()
    op = CurvatureOperator(model, lambda z, y: z[:, 0].mean(), (x, y))
    assert not (op.with_kind("ggn") @ normal(op.shape[0])).any()
    assert torch.equal(op.with_kind("remainder").dense(), op.dense())
    assert op.dense().any()


def test_a_penalty_inside_the_loss_is_refused():
    """Its curvature would be left out, as it acts through no output; parameters of the loss itself may learn."""
    model, (x, y) = mlp(), pairs()
    weight, scale = model[0].weight, nn.Parameter(torch.ones((), dtype=torch.float64))

    def penalized(z, y):
        return cross_entropy(z, y) + weight.square().sum()

    with pytest.raises(ValueError, match="reads the parameter '0.weight' besides the model's output"):
        CurvatureOperator(model, penalized, (x, y))
    others = CurvatureOperator(model, penalized, (x, y), params=lambda name: name != "0.weight")
    assert others.shape == (19, 19)
    op = CurvatureOperator(model, lambda z, y: scale * cross_entropy(z, y), (x, y))
    assert torch.equal(op.dense(), CurvatureOperator(model, cross_entropy, (x, y)).dense())


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(ValueError, match="no derivative can be taken: leave it"):
        CurvatureOperator(mlp(), cross_entropy, pairs())
