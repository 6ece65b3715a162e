"""The plateau rule against section 4.4 of seed 000 written out by hand, and early stopping."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thalweg.lab.training.stopping import EarlyStopping, PlateauRule, is_flat

unhurried = settings(deadline=None)  # the machine may be busy with something else


def sgd(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in rates])


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def course(losses: list[float], lr: float, *, patience: int, min_lr: float = 0.0) -> list[tuple[float, bool]]:
    """The learning rate after every epoch and whether training stops there, by `PlateauRule`."""
    optimizer = sgd(lr)
    rule = PlateauRule(optimizer, patience=patience, min_lr=min_lr)
    found = []
    for loss in losses:
        stop = rule.update({"train_loss": loss})
        found.append((rates(optimizer)[0], stop))
    return found


def section_4_4(losses: list[float], lr: float, *, patience: int, min_lr: float) -> list[tuple[float, bool]]:
    """The rule in the seed's words: an epoch that changed the mean training loss by less than 0.001 of it halves η."""
    found, in_a_row = [], 0
    for t, loss in enumerate(losses):
        changed = t == 0 or abs(loss - losses[t - 1]) / losses[t - 1] >= 0.001
        in_a_row = 0 if changed else in_a_row + 1
        if not changed and lr * 0.5 >= min_lr:
            lr = lr * 0.5
        elif not changed and lr > min_lr:
            lr = min_lr
        found.append((lr, in_a_row >= patience))
    return found


def test_by_hand() -> None:
    losses = [1.0, 0.5, 0.4999, 0.4998, 0.4, 0.4, 0.4, 0.4]
    assert course(losses, 0.8, patience=3) == [
        (0.8, False),  # the first epoch has nothing to be compared with
        (0.8, False),
        (0.4, False),  # changed by 0.0002 of 0.5: flat
        (0.2, False),
        (0.2, False),  # changed by 0.2: the count begins anew
        (0.1, False),
        (0.05, False),
        (0.025, True),  # the third flat epoch in a row
    ]


def test_a_rising_loss_is_not_flat_but_one_that_hardly_rises_is() -> None:
    assert course([1.0, 1.5, 2.0, 4.0, 4.001], 0.8, patience=1)[2:] == [(0.8, False), (0.8, False), (0.4, True)]


def test_the_floor_under_the_learning_rate() -> None:
    found = course([1.0] * 5, 4e-5, patience=9, min_lr=1e-5)
    assert [lr for lr, _ in found] == [4e-5, 2e-5, 1e-5, 1e-5, 1e-5]
    assert [lr for lr, _ in course([1.0] * 3, 3e-5, patience=9, min_lr=1e-5)] == [3e-5, 1.5e-5, 1e-5]
    assert [lr for lr, _ in course([1.0] * 3, 1e-6, patience=9, min_lr=1e-5)] == [1e-6] * 3  # never raised to it


@unhurried
@given(
    changes=st.lists(st.sampled_from([1.0, 0.9995, 1.0005, 0.99, 0.5, 1.3]), max_size=30),
    patience=st.integers(1, 6),
    min_lr=st.sampled_from([0.0, 1e-3, 0.07, 1.0]),
)
def test_any_course_of_the_loss(changes: list[float], patience: int, min_lr: float) -> None:
    losses = [3.0]
    for change in changes:
        losses.append(losses[-1] * change)
    options = {"patience": patience, "min_lr": min_lr}
    assert course(losses, 0.1, **options) == section_4_4(losses, 0.1, **options)  # type: ignore[arg-type]


def test_every_group_is_shortened_and_another_key_is_watched() -> None:
    optimizer = sgd(0.8, 0.4)
    rule = PlateauRule(optimizer, patience=2, gamma=0.1, min_delta=0.5, min_lr=0.05, key="test_mse")
    assert not rule.update({"test_mse": 1.0, "train_loss": 1.0})
    assert not rule.update({"test_mse": 1.4, "train_loss": 9.0})
    assert rates(optimizer) == [0.8 * 0.1, 0.05]


def test_a_loss_that_is_not_finite_is_not_flat() -> None:
    assert not is_flat(math.inf, 1.0, 1e-3)
    assert not is_flat(1.0, math.nan, 1e-3)
    assert not is_flat(math.nan, math.nan, 1e-3)


@unhurried
@given(losses=st.lists(st.sampled_from([1.0, 1.0005, 2.0]), min_size=2, max_size=12), data=st.data())
def test_the_plateau_rule_goes_on_from_its_state(losses: list[float], data: st.DataObject) -> None:
    whole = course(losses, 0.8, patience=4)
    k = data.draw(st.integers(0, len(losses)))
    first_optimizer = sgd(0.8)
    first = PlateauRule(first_optimizer, patience=4)
    for loss in losses[:k]:
        first.update({"train_loss": loss})
    optimizer = sgd(0.3)
    optimizer.load_state_dict(first_optimizer.state_dict())  # the learning rate travels with the optimizer
    rule = PlateauRule(optimizer, patience=4)
    rule.load_state_dict(first.state_dict())
    rest = []
    for loss in losses[k:]:
        stop = rule.update({"train_loss": loss})
        rest.append((rates(optimizer)[0], stop))
    assert rest == whole[k:]


class Watched:
    """A model whose weight is the number of the epoch."""

    def __init__(self, **options: object) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.rule = EarlyStopping(self.model, key="score", **options)  # type: ignore[arg-type]
        self.epoch = 0

    def see(self, *scores: float) -> list[bool]:
        stops = []
        for score in scores:
            self.epoch += 1
            with torch.no_grad():
                self.model.weight.fill_(self.epoch)
            stops.append(self.rule.update({"score": score}))
        return stops

    def restored(self) -> float:
        self.rule.finish()
        return self.model.weight.item()


def test_early_stopping_waits_and_restores_the_best_weights() -> None:
    watched = Watched(patience=2)
    assert watched.see(3.0, 2.0, 2.5, 1.0, 1.0, 1.5) == [False, False, False, False, False, True]
    assert watched.restored() == 4  # equal to the best is no improvement


def test_larger_is_better() -> None:
    watched = Watched(patience=1, mode="max")
    assert watched.see(-2.0, 0.0, 5.0, 4.0) == [False, False, False, True]
    assert watched.restored() == 3


def test_absolute_and_relative_improvements() -> None:
    scores = (10.0, 9.5, 9.2, 8.0)
    absolute = Watched(patience=9, min_delta=1.0)
    absolute.see(*scores)
    assert (absolute.rule.best, absolute.rule.waited, absolute.restored()) == (8.0, 0, 4)
    relative = Watched(patience=9, min_delta=0.3, relative=True)
    relative.see(*scores)
    assert (relative.rule.best, relative.rule.waited, relative.restored()) == (10.0, 3, 1)
    relative.see(6.9)  # 0.31 of 10 better
    assert relative.rule.best == 6.9
    larger = Watched(patience=9, min_delta=0.5, relative=True, mode="max")
    larger.see(2.0, 2.9, 3.1)
    assert (larger.rule.best, larger.restored()) == (-3.1, 3)


def test_a_metric_that_is_not_a_number_is_no_improvement() -> None:
    watched = Watched(patience=2)
    assert watched.see(1.0, math.nan, math.nan) == [False, False, True]
    assert watched.restored() == 1
    hopeless = Watched(patience=2)
    assert hopeless.see(math.nan, math.nan) == [False, True]
    assert hopeless.restored() == 2  # nothing was ever best: the last weights stay


@pytest.mark.parametrize("k", range(5))
def test_early_stopping_goes_on_from_its_state(k: int) -> None:
    scores = (3.0, 1.0, 2.0, 2.0)
    first = Watched(patience=2)
    begun = first.see(*scores[:k])
    second = Watched(patience=2)
    second.rule.load_state_dict(first.rule.state_dict())
    second.epoch = k
    assert begun + second.see(*scores[k:]) == [False, False, False, True]
    assert second.restored() == 2 or k == len(scores)


@pytest.mark.parametrize("options", [{"mode": "least", "patience": 1}, {"patience": 0}])
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected mode 'min' or 'max' and patience >= 1"):
        Watched(**options)
