"""The trainer of seed 002: penalties by name against the library's, coupling, checkpoints, what is measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from thalweg.lab.experiment import experiment
from thalweg.lab.frame_settings import METHODS, FrameSettings
from thalweg.lab.plan import request, trials
from thalweg.lab.store import Store
from thalweg.lab.training import classification
from thalweg.lab.training.checkpoint import load_checkpoint
from thalweg.lab.training.classification import _Attached, network, penalty, train_regularized
from thalweg.lab.trial import Log
from thalweg.regularize import L2, SRIP, ConvOrthogonality, FrameRegularizer, HypersphericalEnergy, SoftOrthogonality


def settings(**values: Any) -> FrameSettings:
    return FrameSettings(preset="quick", **values)


def test_every_method_has_the_coefficient_of_its_recipe() -> None:
    draw = torch.Generator()
    made = {m: penalty(settings(), m, 200, draw) for m in METHODS}  # type: ignore[arg-type]
    kinds = {
        "none": type(None),
        "mhe": HypersphericalEnergy,
        "so": SoftOrthogonality,
        "srip": SRIP,
        "ocnn": ConvOrthogonality,
        "frame": FrameRegularizer,
        "polyak": FrameRegularizer,
        "spectral": FrameRegularizer,
    }
    assert {m: type(term) for m, term in made.items()} == kinds
    found: dict[str, Any] = {m: term.coefficient for m, term in made.items() if term is not None}  # type: ignore[union-attr]
    assert found == {"mhe": 1.0, "so": 1e-2, "srip": 1e-2, "ocnn": 0.1, "frame": 0.03, "polyak": 1.0, "spectral": 1.0}
    model = network(settings(), 1, 10, draw)
    frame: Any = made["frame"]
    assert {row.layer for row in frame.prepare(model, torch.zeros(1, 1, 8, 8)).per_layer(model).skipped} >= {
        "last.weight"
    }
    ocnn: Any = made["ocnn"]
    assert "stem.weight" in {row.layer for row in ocnn.per_layer(model).skipped}
    for whole in (penalty(settings(classifier=True), "frame", 1, draw), made["polyak"]):
        regularized: Any = whole.prepare(model, torch.zeros(1, 1, 8, 8)).per_layer(model).regularized  # type: ignore[union-attr]
        assert "last.weight" in {row.layer for row in regularized}
    assert penalty(settings(coefficient=0.5), "so", 1, draw).coefficient == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("steps", [200, 2000])
def test_srips_schedule_is_scaled_from_two_hundred_epochs(steps: int) -> None:
    term: Any = penalty(settings(), "srip", steps, torch.Generator())
    epoch = steps // 200
    assert [term.schedule(k * epoch) for k in (0, 19, 20, 50, 70, 119, 120)] == [1, 1, 1e-3, 1e-4, 1e-6, 1e-6, 0]


def data() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    return model, torch.randn(7, 5, dtype=torch.float64, generator=draw), torch.arange(7) % 3


def stepped(attach: Any, penalized: Any = None) -> list[torch.Tensor]:
    model, x, y = data()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    if attach is not None:
        attach(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        (loss if penalized is None else loss + penalized(model)).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_an_attached_penalty_is_the_same_as_one_in_the_loss() -> None:
    attached = stepped(lambda model, optimizer: _Attached(SoftOrthogonality(0.1), model, optimizer, own_step=None))
    inside = stepped(None, SoftOrthogonality(0.1))
    for a, b in zip(attached, inside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)  # float64: sums in another order
    assert not torch.allclose(attached[0], stepped(None)[0])


def test_a_decoupled_penalty_steps_past_momentum() -> None:
    model, _, _ = data()
    optimizer = SGD(model.parameters(), 0.0, momentum=0.9)
    before = [p.detach().clone() for p in model.parameters()]
    _Attached(L2(0.1), model, optimizer, own_step=0.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for old, p in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), 0.95 * old)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], torch.ones_like(p))


def test_clipping_bounds_the_penaltys_gradient_by_the_weights_norm() -> None:
    model, _, _ = data()
    optimizer = SGD(model.parameters(), 1.0)
    before = [p.detach().clone() for p in model.parameters()]
    _Attached(SoftOrthogonality(1e3), model, optimizer, own_step=None, clip=0.5)
    optimizer.step()
    for old, p in zip(before, model.parameters(), strict=True):
        moved = float((p.detach() - old).norm() / old.norm())
        assert moved == pytest.approx(0.5 if p.ndim == 2 else 0.0)


def run(lab_words: list[str], name: str = "frame-anatomy") -> tuple[Any, Any]:
    (trial,) = trials(
        request(name, "quick", ["seed=0", "width=4", "samples=100", "tests=50", "batch=32", *lab_words]), ()
    )
    folder = Store().open(trial.point)
    return trial, folder


def test_what_a_run_measures(lab: Path) -> None:
    trial, folder = run(["epochs=2", "method=frame", "init=frame"])
    ending = train_regularized(trial, Log(folder), method="frame", init="frame", decay=0.0, spectra_at=(0, 2))
    rows = folder.rows()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert "inside stem" in rows[0]
    assert "inside stem" not in rows[1]
    assert rows[0]["inside blocks.0.convolutions.0"] == 1.0
    parts = load_checkpoint(folder.checkpoint)["parts"]
    model = network(trial.config, 1, 10, torch.Generator())
    model.load_state_dict(parts["model"])
    squares = sum(float(p.detach().square().sum()) for p in model.parameters() if p.ndim > 1)
    assert ending.values["norm"] == pytest.approx(math.sqrt(squares), rel=1e-6)  # float32
    assert ending.values == {k: v for k, v in rows[-1].items() if k not in ("seconds", "lr")}
    assert ending.values["accuracy"] * 50 / 100 == pytest.approx(round(ending.values["accuracy"] / 2))  # of 50 images
    assert rows[-1]["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize("method", ["srip", "polyak", "spectral"])
def test_a_run_goes_on_bit_for_bit(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The penalties that draw: their generator, step count and power vectors are in the checkpoint."""
    words = ["epochs=2", f"method={method}", "init=he"]
    trial, folder = run(words)
    whole = experiment("frame-anatomy").run(trial, Log(folder))
    monkeypatch.setenv("THALWEG_RUNS", str(tmp_path / "torn"))
    monkeypatch.setattr("thalweg.lab.training.loop.RARITY", 0)
    defaults = {**classification.fit.__kwdefaults__, "checkpoint_every": 0.0}  # type: ignore[dict-item]
    monkeypatch.setattr("thalweg.lab.training.loop.fit.__kwdefaults__", defaults)
    trial, folder = run(words)

    class TornError(Exception):
        pass

    with monkeypatch.context() as torn:
        torn.setattr("thalweg.lab.data.batches.Batches._take", _tearing_take(TornError, 4))
        with pytest.raises(TornError):
            experiment("frame-anatomy").run(trial, Log(folder))
    assert folder.checkpoint.exists()
    again = experiment("frame-anatomy").run(trial, Log(folder))
    assert again.values == whole.values


def _tearing_take(error: type[Exception], after: int) -> Any:
    from thalweg.lab.data.batches import Batches

    original, taken = Batches._take, []

    def take(self: Batches, tensor: torch.Tensor) -> torch.Tensor:
        taken.append(1)
        if len(taken) > after:
            raise error
        return original(self, tensor)

    return take
