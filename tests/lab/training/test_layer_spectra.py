"""Spectra and coherence as numbers of a row, against dense eigenvalues and the definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from thalweg.lab.training import layer_spectra as module
from thalweg.lab.training.layer_spectra import coherence, eigenvalues, layer_spectra
from thalweg.nn import CifarResNet
from thalweg.operators import LayerOperator
from thalweg.regularize import frame_init_


def net(seed: int = 0) -> CifarResNet:
    return CifarResNet(8, 1, width=4, generator=torch.Generator().manual_seed(seed))


def test_the_row_is_what_dense_eigenvalues_say() -> None:
    model = net().double()
    row = layer_spectra(model, (1, 8, 8), lower=0.5, upper=2.0)
    shapes = {"stem": (1, 8, 8), "blocks.1.convolutions.0": (4, 8, 8), "last": (16,)}
    for name, shape in shapes.items():
        W = LayerOperator.of(model.get_submodule(name), shape).dense().detach()
        V = W @ W.T if W.shape[0] < W.shape[1] else W.T @ W
        values = torch.linalg.eigvalsh(V)
        assert row[f"max {name}"] == pytest.approx(float(values.max()), rel=1e-10)  # two float64 decompositions
        assert row[f"min {name}"] == pytest.approx(float(values.min()), abs=1e-10)
        assert row[f"inside {name}"] == pytest.approx(float(((values >= 0.5) & (values <= 2)).double().mean()))
    assert len([key for key in row if key.startswith("R ")]) == 10


def test_pixels_that_are_never_read_do_not_count() -> None:
    shortcut = nn.Conv2d(4, 8, 1, stride=2, bias=False)
    nn.init.orthogonal_(shortcut.weight)
    values = eigenvalues(shortcut, (4, 8, 8))  # 4 channels on 16 of 64 pixels
    assert values.shape == (64,)
    # float32 singular values near 1
    torch.testing.assert_close(values, torch.ones(64), rtol=0, atol=1e-5)


def test_tight_frames_are_inside_and_have_no_penalty() -> None:
    model = net()
    frame_init_(model, 0.5, 2.0, sample=torch.zeros(1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    row = layer_spectra(model, (1, 8, 8), lower=0.5, upper=2.0)
    assert {value for key, value in row.items() if key.startswith("inside")} == {1.0}
    assert max(value for key, value in row.items() if key.startswith("R ")) < 1e-8  # squares of float32 rounding


def test_large_layers_are_taken_on_the_torus(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, generator=torch.Generator().manual_seed(0))
    exact = eigenvalues(conv, (8, 16, 16))
    monkeypatch.setattr(module, "MANY", 100)
    torus = eigenvalues(conv, (8, 16, 16))
    assert len(torus) == len(exact) == 2048
    assert not torch.equal(torus, exact)
    # zero padding cuts windows at the border, 60 of 256 pixels: means of λ differ by at most that share
    assert abs(float(torus.mean() / exact.mean()) - 1) < 60 / 256
    with pytest.raises(ValueError, match="too large"):
        eigenvalues(nn.Linear(200, 200), (200,))


def test_a_weight_that_is_not_finite_gives_nan() -> None:
    layer = nn.Linear(3, 4)
    nn.init.constant_(layer.weight, math.nan)
    assert eigenvalues(layer, (3,)).isnan().all()


def test_coherence_is_the_mean_over_pairs_of_filters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Linear(4, 3), nn.Linear(7, 1)).double()  # one filter has no pair
    means = []
    for layer in list(model)[:2]:
        rows = layer.weight.detach().flatten(1)  # type: ignore[union-attr]
        pairs = itertools.combinations(rows, 2)
        means.append(sum(abs(float(a @ b / a.norm() / b.norm())) for a, b in pairs) / math.comb(len(rows), 2))
    assert coherence(model) == pytest.approx(sum(means) / 2, rel=1e-12)  # float64 sums
