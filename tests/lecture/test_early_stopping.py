"""Early stopping in loops with known curves."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thalweg.lecture import EarlyStopping


def stops_at(curve, **options):
    """Number of the evaluation that stops, or None."""
    stopping = EarlyStopping(**options)
    return next((i for i, value in enumerate(curve, 1) if stopping.update(value)), None)


@given(curve=st.lists(st.floats(-5, 5), max_size=30), patience=st.integers(1, 5), delta=st.sampled_from([0.0, 0.5]))
def test_stops_after_patience_evaluations_without_improvement(curve, patience, delta):
    """The definition, read naively: the best before, and a run of evaluations that do not beat it."""
    best, waited, expected = math.inf, 0, None
    for i, value in enumerate(curve, 1):
        if best - value > delta:
            best, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            expected = i
            break
    assert stops_at(curve, patience=patience, min_delta=delta) == expected
    assert stops_at([-value for value in curve], patience=patience, min_delta=delta, mode="max") == expected


def test_delta_is_absolute_or_a_share_of_the_best():
    curve = [10.0, 9.95, 9.8, 9.7]
    assert stops_at(curve, patience=2, min_delta=0.1) is None  # 9.8 beats 10 by more than 0.1
    assert stops_at(curve, patience=2, min_delta=0.1, relative=True) == 3  # 9 would be needed
    # |best|: a share of a negative value is still a margin
    assert stops_at([-10.0, -10.5, -10.9], patience=2, min_delta=0.1, relative=True) == 3
    assert stops_at([-10.0, -11.5, -12.0], patience=2, min_delta=0.1, relative=True) is None


def test_nan_and_infinity_are_no_improvements():
    nan = math.nan
    assert stops_at([nan, nan], patience=2) == 2
    assert stops_at([1.0, nan, 0.5, nan, nan], patience=2) == 5
    assert stops_at([math.inf, 1.0, math.inf], patience=2) is None
    assert stops_at([math.inf, 1.0, 0.5, 0.4], patience=1, min_delta=0.1, relative=True) is None
    assert stops_at([math.inf, math.inf, math.inf], patience=2) == 3


def test_the_best_weights_are_kept_and_put_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    stopping = EarlyStopping(model, patience=2)
    best = None
    for k, loss in enumerate((3.0, 1.0, 2.0, 2.0)):
        with torch.no_grad():
            model[0].weight.fill_(k)
        model(torch.randn(4, 2, generator=torch.Generator().manual_seed(k)))  # moves the running statistics
        stopped = stopping.update(loss)
        best = copy.deepcopy(model.state_dict()) if k == 1 else best
    assert stopped
    assert stopping.best == 1.0
    stopping.restore()
    assert all(torch.equal(model.state_dict()[name], best[name]) for name in best)
    assert model[0].weight[0, 0].item() == 1


def test_restore_without_weights_changes_nothing():
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()
    EarlyStopping(model, patience=1).restore()
    EarlyStopping(patience=1).restore()
    assert torch.equal(model.weight, before)


def test_a_run_continues_from_its_state(tmp_path):
    curve = [1.0, 0.8, 0.9, 0.7, 0.75, 0.75, 0.75]
    model = nn.Linear(1, 1)
    whole, first = EarlyStopping(model, patience=3), EarlyStopping(model, patience=3)
    expected = [whole.update(value) for value in curve]
    found = [first.update(value) for value in curve[:3]]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = EarlyStopping(model, patience=3)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert found + [second.update(value) for value in curve[3:]] == expected
    assert torch.equal(second.weights["weight"], model.weight)


def test_torch_has_no_early_stopping():
    names = [
        name.lower() for module in (nn, torch.optim, torch.utils, torch.optim.lr_scheduler) for name in dir(module)
    ]
    assert not [name for name in names if "earlystop" in name.replace("_", "")]


@pytest.mark.parametrize(
    "options", [{"patience": 0}, {"patience": 1, "min_delta": -1.0}, {"patience": 1, "mode": "most"}]
)
def test_errors(options):
    with pytest.raises(ValueError, match=r"patience is|min_delta is|mode is"):
        EarlyStopping(**options)
