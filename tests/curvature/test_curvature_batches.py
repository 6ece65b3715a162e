"""How `CurvatureOperator` reads data and cuts it, and when it must not: the loss and the model are asked."""

from collections import UserDict
from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from curvature_networks import CLASSES, N, close, dense, mlp, normal, pairs, smooth_mlp
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.curvature import CurvatureOperator
from thalweg.curvature.chunks import sample_count, take


def test_batches_count_by_their_samples():
    model, (x, y) = mlp(), pairs(9)
    whole = CurvatureOperator(model, cross_entropy, (x, y))
    batches = CurvatureOperator(model, cross_entropy, ((x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)))
    v = normal(whole.shape[0])
    close(batches @ v, whole @ v, tolerance=1e-14)
    close(batches.gradient(), whole.gradient(), tolerance=1e-14)
    close(batches.loss(), whole.loss(), tolerance=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_is_cut_where_the_loss_is_a_mean_or_a_sum(reduction):
    model, loss_fn = smooth_mlp().double(), nn.MSELoss(reduction=reduction)
    x, y = normal(60, 5), normal(60, CLASSES, seed=2)
    data = [(x[:40], y[:40]), (x[40:], y[40:])]
    whole = CurvatureOperator(model, loss_fn, data)
    each = whole._recording.bytes_per_sample
    cut = CurvatureOperator(model, loss_fn, data, memory=int(80 * each))  # ten samples of 4 · 2 · each
    assert [chunk.count for chunk in cut._recording._chunks] == [10] * 6
    v = normal(whole.shape[0])
    close(cut @ v, whole @ v, tolerance=1e-13)
    close(cut.loss(), whole.loss(), tolerance=1e-13)
    close(cut.gradient(), whole.gradient(), tolerance=1e-13)


def test_a_sum_is_no_mean_where_both_are_zero():
    """Targets that a network hits have the loss zero, which says nothing of the weight of a part."""
    model, x = smooth_mlp().double(), normal(60, 5)
    data = x, model(x).detach()
    whole = CurvatureOperator(model, nn.MSELoss(reduction="sum"), data)
    cut = CurvatureOperator(
        model, nn.MSELoss(reduction="sum"), data, memory=int(80 * whole._recording.bytes_per_sample)
    )
    assert (len(cut._recording._chunks), float(whole.loss())) == (6, 0.0)
    v = normal(whole.shape[0])
    close(cut @ v, whole @ v, tolerance=1e-13)


def test_a_target_that_is_no_sequence_of_samples():
    model, (x, _) = smooth_mlp().double(), pairs()
    op = CurvatureOperator(model, lambda z, y: (z - y).square().mean(), (x, torch.tensor(0.5, dtype=torch.float64)))
    expected = CurvatureOperator(model, mse_loss, (x, torch.full((N, CLASSES), 0.5, dtype=torch.float64)))
    close(op.dense(), expected.dense(), tolerance=1e-14)


def test_chunks_within_the_cache_change_nothing():
    """700 tokens of 60 samples exceed the activations that a chunk may have."""
    model, x = smooth_mlp().double(), normal(60, 700, 5)
    y = normal(60, 700, 3, seed=2)
    op = CurvatureOperator(model, mse_loss, (x, y))
    assert len(op._recording._chunks) == 2
    assert op.cached
    v = normal(op.shape[0])
    close(op @ v, CurvatureOperator(model, mse_loss, [(x[:20], y[:20]), (x[20:], y[20:])]) @ v)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two samples, as if their activations filled the cache."""
    monkeypatch.setattr("thalweg.curvature.recording.CACHE", 1)
    monkeypatch.setattr("thalweg.curvature.recording.FEWEST", 2)


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, x):
        z = torch.tanh(self.layer(x))
        return z - z.mean(0)


class Sequence(nn.Module):
    """Steps along the first axis, as torch's recurrent layers have them by default."""

    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(self.lstm(x)[0])


class Graph(nn.Module):
    """Sums over neighbours: it cannot be run on a few of its nodes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, CLASSES)
        self.register_buffer("neighbours", normal(N, N).relu())

    def forward(self, x):
        return self.last(torch.tanh(self.neighbours @ self.first(x)))


def batch_statistics():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, CLASSES))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("make", [Centred, Sequence, Graph, batch_statistics], ids=lambda make: make.__name__)
def test_samples_that_see_each_other_are_not_parted(make):
    model = make().double().eval()
    x = normal(N, 2, 5) if make is Sequence else normal(N, 5)
    y = torch.zeros_like(model(x)).detach()
    gradient, H, _ = dense(model, mse_loss, x, y)
    op = CurvatureOperator(model, mse_loss, (x, y))
    v = normal(op.shape[0])
    close(op.gradient(), gradient)
    close(op @ v, H @ v)
    with pytest.raises(ValueError, match="does not take them one by one"):
        CurvatureOperator(model, mse_loss, (x, y), memory=1000)


@pytest.mark.usefixtures("small_chunks")
def test_ignored_targets_make_no_mean_over_samples():
    """A chunk of them alone has the loss 0/0, which is none of the batch."""
    model, (x, y) = mlp(), pairs()
    y[:2] = -100
    _, H, _ = dense(model, cross_entropy, x, y)
    v = normal(len(H))
    close(CurvatureOperator(model, cross_entropy, (x, y)) @ v, H @ v)


class Sum(nn.Module):
    """Two inputs, by name or by place."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)

    def forward(self, x):
        first, second = x.values() if isinstance(x, Mapping) else x
        return torch.tanh(self.a(first)) + self.b(second)


class Both(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


KINDS = {
    "dict": lambda a, b: {"a": a, "b": b},
    "mapping": lambda a, b: UserDict(a=a, b=b),  # as tokenizers return
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "named tuple": Both,
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_pair_may_have_an_input_of_several_tensors(kind):
    model, (x, y), other = Sum().double(), pairs(), normal(N, 5, seed=3)
    inputs = KINDS[kind](x, other)
    op, same = (CurvatureOperator(model, cross_entropy, data) for data in ((inputs, y), [(inputs, y)]))
    assert [type(x) for x, _ in op.batches] == [type(inputs)]
    assert sample_count(inputs) == N
    assert torch.equal(op.dense(), same.dense())
    parts = CurvatureOperator(model, cross_entropy, [(take(inputs, 0, 2), y[:2]), (take(inputs, 2, N), y[2:])])
    close(parts.dense(), op.dense(), tolerance=1e-13)


def test_samples_without_a_batch_axis():
    """A data set gives them one by one, each as long as its first axis."""
    model, (x, y) = mlp(), pairs()
    op = CurvatureOperator(model, cross_entropy, torch.utils.data.TensorDataset(x, y))
    close(op.dense(), CurvatureOperator(model, cross_entropy, (x, y)).dense(), tolerance=1e-14)


@pytest.mark.parametrize(
    ("data", "given"),
    [
        (None, "NoneType"),
        (torch.ones(3, 5), "Tensor"),
        ([torch.ones(3, 5)], "Tensor"),
        ([{"x": torch.ones(3, 5)}], "dict"),
        ([(1, 2, 3), (1, 2, 3)], "tuple of 3"),
    ],
    ids=["nothing", "tensor", "inputs", "dict", "triples"],
)
def test_data_that_are_no_pairs_are_refused(data, given):
    with pytest.raises(TypeError, match=f"must be a pair .* or an iterable of such pairs, got {given}$"):
        CurvatureOperator(mlp(), cross_entropy, data)
