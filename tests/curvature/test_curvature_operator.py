"""`CurvatureOperator` as an object: a snapshot of some parameters in a stated mode, in torch and in SciPy."""

import copy

import numpy as np
import pytest
import torch
from curvature_networks import CLASSES, close, dense, mlp, normal, pairs
from scipy.sparse.linalg import aslinearoperator, eigsh
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.curvature import CurvatureOperator


def test_the_operator_is_a_snapshot_and_leaves_the_model_alone():
    model, data = mlp(), pairs()
    before = copy.deepcopy(model.state_dict())
    op = CurvatureOperator(model, cross_entropy, data)
    v = normal(op.shape[0])
    product = op @ v
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    assert torch.equal(op @ v, product)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.load_state_dict(before)
    assert torch.equal(CurvatureOperator(model, cross_entropy, data) @ v, product)


def test_only_selected_parameters_count():
    model, (x, y) = mlp(), pairs()
    model[0].bias.requires_grad_(False)
    op = CurvatureOperator(model, cross_entropy, (x, y), params=lambda name: name != "2.weight")
    assert op.names == ("0.weight", "2.bias")
    for p in model.parameters():
        p.requires_grad_(True)
    gradient, H, G = dense(model, cross_entropy, x, y, names=op.names)
    close(op.dense(), H)
    close(op.with_kind("ggn").dense(), G)
    close(op.gradient(), gradient)
    close(op.restrict(lambda name: name == "2.bias").dense(), H[-3:, -3:])
    assert {name: v.shape for name, v in op.unflatten(gradient).items()} == {"0.weight": (4, 5), "2.bias": (3,)}


def test_statistics_of_the_batch_when_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, CLASSES)).double().train()
    x, y = pairs()
    with pytest.raises(ValueError, match=r"'1' \(BatchNorm1d\) is in training mode"):
        CurvatureOperator(model, cross_entropy, (x, y))
    before = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    twin[2].eval()
    _, batch, _ = dense(twin, cross_entropy, x, y)
    _, running, _ = dense(copy.deepcopy(model).eval(), cross_entropy, x, y)
    close(CurvatureOperator(model, cross_entropy, (x, y), mode="batch").dense(), batch)
    close(CurvatureOperator(model, cross_entropy, (x, y), mode="eval").dense(), running)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scipy_takes_the_numpy_view():
    op = CurvatureOperator(mlp(), cross_entropy, pairs())
    wrapped = aslinearoperator(op.numpy())
    V = normal(op.shape[0], 2).numpy()
    np.testing.assert_allclose(wrapped @ V, (op @ torch.tensor(V)).numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(wrapped.T @ V[:, 0], wrapped @ V[:, 0], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(wrapped @ V[::-1], wrapped @ V[::-1].copy())  # a view that runs backwards
    expected = np.linalg.eigvalsh(op.dense().numpy())[-3:]
    np.testing.assert_allclose(eigsh(op.numpy(), 3, which="LA")[0], expected, rtol=0, atol=1e-8)  # the promise


def test_gradients_may_be_switched_off_around_it():
    model, data = mlp(), pairs()
    H = CurvatureOperator(model, cross_entropy, data).dense()
    with torch.no_grad():
        assert torch.equal(CurvatureOperator(model, cross_entropy, data).dense(), H)
    op = CurvatureOperator(model, cross_entropy, data)
    with torch.inference_mode():
        assert torch.equal(op.dense(), H)
