"""The report on a model's layers: what it reads, what it leaves alone, and what it says of the rest."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from thalweg.regularize import SoftOrthogonality, frame_report

IMAGE = (3, 6, 6)


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrized_layers_are_trained_not_frozen_and_left_as_they_were(wrap):
    model = wrap(nn.Conv2d(3, 4, 3, padding=1).double())
    before = copy.deepcopy(model.state_dict())
    row = frame_report(model, IMAGE)[0]
    assert "frozen" not in row.note
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    W = copy.deepcopy(model).eval().weight.detach()
    plain = nn.Conv2d(3, 4, 3, padding=1).double()
    plain.weight.data = W
    assert row.lambda_max == pytest.approx(frame_report(plain, IMAGE)[0].lambda_max, rel=1e-9)
    assert frame_report(model.requires_grad_(False), IMAGE)[0].note == "frozen"


def test_pruned_layers_are_read_behind_their_mask():
    layer = nn.Linear(4, 4)
    nn.init.eye_(layer.weight)
    prune.custom_from_mask(layer, "weight", torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
    with torch.no_grad():
        layer.weight_orig.mul_(2)
    row = frame_report(layer, (4,))[0]
    assert (row.lambda_min, row.lambda_max, row.lost) == (0.0, 4.0, 1)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_every_matrix_has_a_row_or_a_reason():
    conv = nn.Conv2d(3, 3, 3, padding=1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.again = conv, nn.BatchNorm2d(3), conv
            self.spare = nn.Conv1d(1, 1, 3)
            self.wave = nn.Linear(2, 2, dtype=torch.complex64)
            self.empty = nn.Linear(2, 0)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            x = self.again(self.norm(self.first(x))).flatten(1, 2)
            return self.attention(x, x, x)

    report = frame_report(Model(), IMAGE)
    notes = {row.name: row.note for row in report.skipped}
    assert notes == {
        "again": "the same layer as first",
        "spare": "the forward pass did not reach it",
        "wave": "complex weights are not supported",
        "empty": "it has no elements",
        "attention.in_proj_weight": "MultiheadAttention is neither a dense layer nor a convolution",
    }
    assert [row.name for row in report if row.R is not None] == ["first", "attention.out_proj"]


def test_a_layer_used_at_two_sizes_says_so():
    conv = nn.Conv2d(3, 3, 3)
    with pytest.warns(UserWarning, match="used at several sizes"):
        report = frame_report(nn.Sequential(conv, conv), IMAGE)
    assert "used on maps of several sizes, (3, 6, 6), (3, 4, 4); this is the first" in report[0].note


def test_a_weight_that_is_a_buffer_is_frozen_not_forgotten():
    layer = nn.Linear(3, 3, bias=False)
    del layer.weight
    layer.register_buffer("weight", torch.eye(3))
    row = frame_report(layer, (3,))[0]
    assert (row.lambda_min, row.lambda_max, row.note) == (1.0, 1.0, "frozen")
    table = SoftOrthogonality().per_layer(nn.Sequential(layer, nn.Linear(3, 3)))
    assert table[0].note.startswith("frozen")


def test_errors():
    with pytest.raises(ValueError, match="side must be one of"):
        frame_report(nn.Linear(2, 2), (2,), side="both")
    with pytest.raises(ValueError, match="uninitialized parameters: call it once"):
        frame_report(nn.LazyLinear(2), (2,))
    with pytest.raises(ValueError, match="0 <= A <= B"):
        frame_report(nn.Linear(2, 2), (2,), lower=3.0, upper=1.0)
    with pytest.raises(ValueError, match="or sample=a batch, got neither"):
        frame_report(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="or sample=a batch, got both"):
        frame_report(nn.Linear(2, 2), (2,), sample=torch.zeros(1, 2))
    for given in (2, torch.zeros(1, 2)):
        with pytest.raises(TypeError, match=f"got {type(given).__name__}: a batch goes to sample="):
            frame_report(nn.Linear(2, 2), given)
    with pytest.raises(TypeError, match="a model is expected, a torch.nn.Module, got Parameter"):
        frame_report(nn.Linear(2, 2).weight, (2,))


def test_a_model_of_tokens_or_several_arguments_is_reported_by_a_sample_of_its_own():
    tokens = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    report = frame_report(tokens, sample=torch.zeros(1, 3, dtype=torch.long))
    assert [row.name for row in report if row.R is not None] == ["1", "2"]
    attention = nn.MultiheadAttention(8, 2)
    x = torch.zeros(3, 1, 8)
    report = frame_report(attention, sample=(x, x, x))
    assert [(row.name, row.note) for row in report] == [
        ("in_proj_weight", "MultiheadAttention is neither a dense layer nor a convolution"),
        ("out_proj", ""),
    ]
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    assert frame_report(images, sample=torch.ones(2, *IMAGE)) == frame_report(images, IMAGE)
