"""`fit` is the loop one would write by hand, bit for bit, also when it is killed at any step and resumed."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer, lr_scheduler

from thalweg.lab.data.batches import Batches
from thalweg.lab.store import RunFolder
from thalweg.lab.training import loop
from thalweg.lab.training.loop import Fit, device, fit
from thalweg.lab.training.stopping import EarlyStopping, PlateauRule
from thalweg.lab.trial import Log
from thalweg.nn import draw_default_
from thalweg.optim import CSGD

EPOCHS, SAMPLES, BATCH = 3, 10, 4
STEPS = 3  # an epoch: batches of 4, 4 and 2
Loss = Callable[[Tensor, Tensor], Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(SAMPLES, 4, generator=generator(1))
    return inputs.to(device()), inputs.sin().sum(dim=1, keepdim=True).to(device())


@dataclass
class Training:
    """A model with what trains it, as new."""

    model: nn.Module
    optimizers: list[Optimizer]
    schedulers: list[Any] = field(default_factory=list)
    rules: list[Any] = field(default_factory=list)


def network(*between: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 5), *between, nn.Tanh(), nn.Linear(5, 1))
    draw_default_(model, generator(2))
    return model.to(device())


def with_sgd() -> Training:
    model = network()
    return Training(model, [torch.optim.SGD(model.parameters(), lr=0.1)])


def with_csgd() -> Training:
    model = network()
    return Training(model, [CSGD(model.parameters(), lr=0.1, momentum=0.5, side="both")])


def with_momentum_and_scheduler() -> Training:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return Training(model, [optimizer], [lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)])


def with_two_optimizers() -> Training:
    model = network()
    return Training(
        model,
        [
            torch.optim.Adam(model[0].parameters(), lr=0.01),
            torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9),
        ],
    )


def with_batch_norm_and_dropout() -> Training:
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5))
    return Training(model, [torch.optim.SGD(model.parameters(), lr=0.1)])


def with_rules() -> Training:
    training = with_sgd()
    plateau = PlateauRule(training.optimizers[0], patience=9, min_delta=0.5)  # every epoch is flat, none stops
    training.rules = [plateau, EarlyStopping(training.model, key="norm", patience=9)]
    return training


CASES = {
    "sgd": with_sgd,
    "csgd": with_csgd,
    "momentum and scheduler": with_momentum_and_scheduler,
    "two optimizers": with_two_optimizers,
    "batch norm and dropout": with_batch_norm_and_dropout,
}
RESUMED = {**CASES, "rules": with_rules}


def log_in(path: Path) -> Log:
    path.mkdir(exist_ok=True)
    return Log(RunFolder(path, {}))


def run(
    training: Training,
    path: Path,
    *,
    loss_fn: Loss = mse_loss,
    epochs: int = EPOCHS,
    measure: Callable[[int], Mapping[str, float]] | None = None,
    checkpoint_every: float = 0.0,
) -> Fit:
    """`fit` as an experiment calls it: a log without a checkpoint begins anew."""
    log = log_in(path)
    if not log.checkpoint.exists():
        log.rewind(0)

    def norm(epoch: int) -> dict[str, float]:
        return {"norm": sum(float(param.detach().norm()) for param in training.model.parameters())}

    return fit(
        training.model,
        training.optimizers,
        loss_fn,
        Batches(*data(), batch_size=BATCH, generator=generator(3)),
        epochs=epochs,
        log=log,
        rules=training.rules,
        schedulers=training.schedulers,
        measure=measure or norm,
        checkpoint_every=checkpoint_every,
    )


def rows(path: Path) -> list[dict[str, float]]:
    """The metrics but for the seconds, which no two runs share."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in log_in(path).rows()]


def state(training: Training) -> list[Tensor]:
    return [value.clone() for value in training.model.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def by_hand(training: Training) -> list[dict[str, float]]:
    """The loop of torch's tutorials; returns its rows."""
    inputs, targets = data()
    order = generator(3)
    found = []
    for epoch in range(1, EPOCHS + 1):
        training.model.train()
        total, lr = 0.0, training.optimizers[0].param_groups[0]["lr"]
        for chosen in torch.randperm(SAMPLES, generator=order).to(device()).split(BATCH):
            for optimizer in training.optimizers:
                optimizer.zero_grad()
            loss = mse_loss(training.model(inputs[chosen]), targets[chosen])
            loss.backward()
            for optimizer in training.optimizers:
                optimizer.step()
            total += loss.item() * len(chosen)
        for scheduler in training.schedulers:
            scheduler.step()
        found.append({"epoch": epoch, "train_loss": total / SAMPLES, "lr": lr})
    return found


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize("checkpoint_every", [0.0, 1e9])
def test_equals_the_loop_by_hand_bit_for_bit(
    tmp_path: Path, make: Callable[[], Training], checkpoint_every: float
) -> None:
    hand, fitted = make(), make()
    torch.manual_seed(4)
    expected = by_hand(hand)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    found = run(fitted, tmp_path, checkpoint_every=checkpoint_every)
    assert torch.equal(torch.rand(1), drawn)  # the global random state went the same way
    assert same(state(fitted), state(hand))
    measured = [{key: value for key, value in row.items() if key != "norm"} for row in rows(tmp_path)]
    assert measured == [{"epoch": 0}, *expected]
    assert (found.epochs, found.outcome) == (EPOCHS, "finished")
    assert found.seconds > 0


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step, however long it takes."""
    monkeypatch.setattr(loop, "RARITY", 0)


class Killed(Exception):  # noqa: N818
    """Stands for a kill: nothing of the process survives it."""


def killed_at(step: int) -> Loss:
    """The loss that dies when it is called for the ``step``-th time, counting from 0."""
    calls = iter(range(10**6))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == step:
            raise Killed
        return mse_loss(output, target)

    return loss_fn


def uninterrupted(make: Callable[[], Training], path: Path) -> tuple[list[Tensor], list[dict[str, float]], Any]:
    torch.manual_seed(5)
    random.seed(5)
    training = make()
    run(training, path)
    return state(training), rows(path), (torch.rand(2).tolist(), random.random())


def begin(path: Path) -> None:
    """What a new process finds: the random states that a run starts with, or any others where they will be restored."""
    resumes = (path / "checkpoint.pt").exists()
    torch.manual_seed(999 if resumes else 5)
    random.seed(999 if resumes else 5)


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # resumed when an epoch has only to end
@pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("step", range(EPOCHS * STEPS))
def test_killed_at_any_step_and_resumed_is_bit_identical(
    tmp_path: Path, make: Callable[[], Training], step: int
) -> None:
    weights, metrics, drawn = uninterrupted(make, tmp_path / "whole")
    torn = tmp_path / "torn"
    begin(torn)
    with pytest.raises(Killed):
        run(make(), torn, loss_fn=killed_at(step))
    begin(torn)
    training = make()
    left = iter(range(10**6))

    def counted(output: Tensor, target: Tensor) -> Tensor:
        next(left)
        return mse_loss(output, target)

    run(training, torn, loss_fn=counted)
    assert same(state(training), weights)
    assert rows(torn) == metrics
    assert (torch.rand(2).tolist(), random.random()) == drawn
    assert next(left) == EPOCHS * STEPS - step  # no step is done twice: a checkpoint came after each


@pytest.mark.usefixtures("always")
def test_killed_again_and_again(tmp_path: Path) -> None:
    weights, metrics, drawn = uninterrupted(with_batch_norm_and_dropout, tmp_path / "whole")
    torn = tmp_path / "torn"
    for _ in range(EPOCHS * STEPS - 1):
        begin(torn)
        with pytest.raises(Killed):
            run(with_batch_norm_and_dropout(), torn, loss_fn=killed_at(1))  # after one step
    begin(torn)
    training = with_batch_norm_and_dropout()
    run(training, torn, loss_fn=killed_at(1))  # one step is left
    assert same(state(training), weights)
    assert rows(torn) == metrics
    assert (torch.rand(2).tolist(), random.random()) == drawn


class Assassin:
    """A rule that kills the process in the middle of an epoch's end: its row is written, no checkpoint has it."""

    def __init__(self, epoch: int | None) -> None:
        self.epoch = epoch

    def update(self, row: Mapping[str, float]) -> bool:
        if row["epoch"] == self.epoch:
            raise Killed
        return False

    def finish(self) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("checkpoint_every", [0.0, 1e9])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_killed_after_a_row_was_written_it_is_not_there_twice(
    tmp_path: Path, epoch: int, checkpoint_every: float
) -> None:
    def make(epoch: int | None = None) -> Training:
        training = with_momentum_and_scheduler()
        training.rules = [Assassin(epoch)]
        return training

    weights, metrics, _ = uninterrupted(make, tmp_path / "whole")
    torn = tmp_path / "torn"
    with pytest.raises(Killed):
        run(make(epoch), torn, checkpoint_every=checkpoint_every)
    assert len(rows(torn)) == epoch + 1
    training = make()
    run(training, torn, checkpoint_every=checkpoint_every)
    assert rows(torn) == metrics
    assert same(state(training), weights)


def test_a_row_torn_by_the_kill_is_written_again(tmp_path: Path) -> None:
    _, metrics, _ = uninterrupted(with_sgd, tmp_path / "whole")
    torn = tmp_path / "torn"
    with pytest.raises(Killed):
        run(with_sgd(), torn, loss_fn=killed_at(4))
    with open(torn / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "train')
    run(with_sgd(), torn)
    assert rows(torn) == metrics


def test_resumed_at_its_end_it_does_no_further_step(tmp_path: Path) -> None:
    whole = with_rules()
    first = run(whole, tmp_path)
    metrics, text = rows(tmp_path), (tmp_path / "metrics.jsonl").read_text()
    again = with_rules()
    second = run(again, tmp_path, loss_fn=killed_at(0))
    assert second == first
    assert same(state(again), state(whole))  # the best weights, put back a second time
    assert rows(tmp_path) == metrics
    assert (tmp_path / "metrics.jsonl").read_text() == text


def nan_at(step: int) -> Loss:
    calls = iter(range(10**6))
    return lambda output, target: mse_loss(output, target) * (math.nan if next(calls) == step else 1.0)


def test_a_loss_that_is_not_finite_ends_the_training_as_diverged(tmp_path: Path) -> None:
    training = with_sgd()
    found = run(training, tmp_path, loss_fn=nan_at(4), epochs=9)
    assert (found.epochs, found.outcome) == (2, "diverged")
    metrics = rows(tmp_path)
    assert [row["epoch"] for row in metrics] == [0, 1, 2]
    assert metrics[1]["train_loss"] > 0
    assert metrics[2]["train_loss"] is None
    assert run(with_sgd(), tmp_path, loss_fn=killed_at(0), epochs=9) == found


def test_row_0_holds_the_measurements_before_training(tmp_path: Path) -> None:
    training = with_sgd()
    start = state(training)
    seen: dict[int, list[Tensor]] = {}

    def measure(epoch: int) -> dict[str, float]:
        seen[epoch] = state(training)
        training.model.eval()  # the loop puts the model back into training mode
        return {"measured": 10.0 * epoch}

    run(training, tmp_path, measure=measure)
    assert rows(tmp_path)[0] == {"epoch": 0, "measured": 0.0}
    assert [row["measured"] for row in rows(tmp_path)] == [0.0, 10.0, 20.0, 30.0]
    assert same(seen[0], start)
    assert same(seen[EPOCHS], state(training))


def test_measuring_in_evaluation_mode_does_not_change_the_training(tmp_path: Path) -> None:
    weights, _, _ = uninterrupted(with_batch_norm_and_dropout, tmp_path / "whole")
    torch.manual_seed(5)
    training = with_batch_norm_and_dropout()

    def measure(epoch: int) -> dict[str, float]:
        training.model.eval()
        return {"output": float(training.model(data()[0]).detach().sum())}

    run(training, tmp_path / "measured", measure=measure)
    assert same(state(training), weights)


def test_seconds_grow_and_leave_out_measurements(tmp_path: Path) -> None:
    def slow(epoch: int) -> dict[str, float]:
        end = time.process_time() + 0.1, time.perf_counter() + 0.1
        while time.process_time() < end[0] or time.perf_counter() < end[1]:
            pass
        return {}

    found = run(with_sgd(), tmp_path, measure=slow)
    seconds = [row["seconds"] for row in log_in(tmp_path).rows()[1:]]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert seconds[-1] <= found.seconds < 0.3  # nine steps take milliseconds, the three measurements between them 0.3 s


def test_a_rule_that_says_stop_is_obeyed_and_every_rule_is_asked(tmp_path: Path) -> None:
    training = with_sgd()
    asked: list[tuple[str, float]] = []

    class Counter(Assassin):
        def __init__(self, name: str, last: int) -> None:
            self.name, self.last = name, last

        def update(self, row: Mapping[str, float]) -> bool:
            asked.append((self.name, row["epoch"]))
            return row["epoch"] == self.last

        def finish(self) -> None:
            asked.append((self.name, math.inf))

    training.rules = [Counter("a", 2), Counter("b", 5)]
    found = run(training, tmp_path, epochs=9)
    assert (found.epochs, found.outcome) == (2, "finished")
    assert asked == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", math.inf), ("b", math.inf)]


def test_the_plateau_rule_shortens_the_step_of_the_next_epoch(tmp_path: Path) -> None:
    training = with_sgd()
    training.rules = [PlateauRule(training.optimizers[0], patience=3, min_delta=1e9)]  # every epoch is flat
    found = run(training, tmp_path, epochs=9)
    assert (found.epochs, found.outcome) == (4, "finished")
    assert [row["lr"] for row in rows(tmp_path)[1:]] == [0.1, 0.1, 0.05, 0.025]  # the rate that the epoch was done at


def test_early_stopping_puts_the_best_weights_back(tmp_path: Path) -> None:
    training = with_sgd()
    scores = [9.0, 5.0, 1.0, 2.0, 3.0, 0.0]
    after: dict[int, list[Tensor]] = {}

    def measure(epoch: int) -> dict[str, float]:
        after[epoch] = state(training)
        return {"score": scores[epoch]}

    training.rules = [EarlyStopping(training.model, key="score", patience=2)]
    found = run(training, tmp_path, epochs=5, measure=measure)
    assert found.epochs == 4
    assert same(state(training), after[2])
    assert not same(after[4], after[2])
    again = with_sgd()
    again.rules = [EarlyStopping(again.model, key="score", patience=2)]
    run(again, tmp_path, epochs=5, loss_fn=killed_at(0))
    assert same(state(again), after[2])


def test_slow_checkpoints_come_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of t seconds is followed by RARITY·t seconds of training, by a clock that this test turns."""
    now, written = [0.0], []

    def save(path: Path, state: object) -> None:
        written.append(now[0])
        now[0] += 2.0

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        now[0] += 1.0
        return mse_loss(output, target)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    run(with_sgd(), tmp_path, loss_fn=loss_fn, epochs=100, checkpoint_every=5.0)
    assert written[0] == 5.0
    gaps = [later - earlier - 2.0 for earlier, later in itertools.pairwise(written[:-1])]
    assert len(gaps) >= 2
    assert set(gaps) == {2.0 * loop.RARITY}  # the last one ends the training, whenever that is


@pytest.mark.usefixtures("always")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_on_an_accelerator(tmp_path: Path) -> None:
    assert device().type == "cuda"
    weights, metrics, drawn = uninterrupted(with_batch_norm_and_dropout, tmp_path / "whole")
    assert {value.device.type for value in weights} == {"cuda"}
    torn = tmp_path / "torn"
    begin(torn)
    with pytest.raises(Killed):
        run(with_batch_norm_and_dropout(), torn, loss_fn=killed_at(5))
    begin(torn)
    training = with_batch_norm_and_dropout()
    run(training, torn)
    # Kernels of this size are deterministic; dropout draws from the GPU's own state, which the checkpoint carries.
    assert same(state(training), weights)
    assert rows(torn) == metrics
    assert (torch.rand(2).tolist(), random.random()) == drawn
