"""The training loop: epochs over device-resident batches, a checkpoint now and then, bit-identical after any kill.

The only file that knows lightning-fabric, which brings devices, precision and strategies to a loop that stays ours.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.lab.data.batches import Batches
from thalweg.lab.training.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint
from thalweg.lab.training.stopping import StoppingRule
from thalweg.lab.trial import Log

__all__ = ["Fit", "device", "fit"]

RARITY = 50  # a checkpoint that took t seconds is followed by at least this many times t of training
Measure = Callable[[int], Mapping[str, float]]


class Stateful(Protocol):
    """Anything with a state that a checkpoint must carry: learning-rate schedulers above all."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Fit:
    """How a training ended: epochs done, "finished" or "diverged", and the training seconds without measurements."""

    epochs: int
    outcome: str
    seconds: float


def _fabric() -> Fabric:
    return Fabric(accelerator="auto", devices=1)


@functools.cache  # Fabric reads every installed distribution's entry points: 10 ms
def device() -> torch.device:
    """Where `fit` will train: put the data there."""
    return _fabric().device


def fit(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Batches,
    *,
    epochs: int,
    log: Log,
    rules: Sequence[StoppingRule] = (),
    schedulers: Sequence[Any] = (),
    measure: Measure | None = None,
    checkpoint_every: float = 1.0,
) -> Fit:
    """Train until the epochs are done, a rule says stop, or the loss is no longer finite.

    One metrics row per epoch: ``epoch``, ``train_loss`` (the mean of the batch losses seen, weighted by batch size),
    ``lr``, ``seconds`` of training so far, and what ``measure`` returns. Row 0 holds the measurements before training.

    Args:
        model: moved to `device`.
        optimizers: stepped in order; together they hold the model's parameters.
        loss_fn: (output, target) -> mean loss of the batch.
        batches: the training data in the order that their generator draws.
        epochs: how many at most.
        log: the run's log; its checkpoint is resumed from if there is one.
        rules: looked at after every epoch, in order; any of them can stop the training.
        schedulers: learning-rate schedulers, stepped after every epoch.
        measure: epoch -> metrics for its row; a function of the present weights alone.
        checkpoint_every: least seconds between checkpoints; slow ones come so rarely that they cost at most 2%.
    """
    fabric = _fabric()
    net, *steppers = fabric.setup(model, *optimizers)
    parts: dict[str, Stateful] = {"model": model, "batches": batches}
    parts |= {f"optimizer {i}": optimizer for i, optimizer in enumerate(optimizers)}
    parts |= {f"rule {i}": rule for i, rule in enumerate(rules)}
    parts |= {f"scheduler {i}": scheduler for i, scheduler in enumerate(schedulers)}
    clock = _Clock()
    total = torch.zeros((), dtype=torch.float64, device=fabric.device)
    epoch, outcome = 0, "running"

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        place = {"epoch": epoch, "outcome": outcome, "total": total, "seconds": clock.seconds, "mark": log.mark()}
        save_checkpoint(log.checkpoint, {"parts": state, "place": place, "random": random_state()})

    def measured() -> dict[str, float]:
        return dict(measure(epoch)) if measure else {}

    if log.checkpoint.exists():
        state = load_checkpoint(log.checkpoint)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        place = state["place"]
        epoch, outcome, clock.seconds = place["epoch"], place["outcome"], place["seconds"]
        total.copy_(place["total"])
        log.rewind(place["mark"])
        restore_random_state(state["random"])
    else:
        log.row(epoch=0, **measured())

    due = time.monotonic() + checkpoint_every
    clock.start()
    while outcome == "running" and epoch < epochs:
        net.train()
        for inputs, targets in batches:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = loss_fn(net(inputs), targets)
            fabric.backward(loss)
            for stepper in steppers:
                stepper.step()
            total.add_(loss.detach(), alpha=len(inputs))
            if (began := time.monotonic()) >= due:
                with clock.paused():
                    save()
                saved = time.monotonic()
                due = saved + max(checkpoint_every, (saved - began) * RARITY)
        epoch += 1
        row = {"epoch": epoch, "train_loss": total.item() / batches.samples, "lr": optimizers[0].param_groups[0]["lr"]}
        total.zero_()
        for scheduler in schedulers:
            scheduler.step()
        with clock.paused():
            row |= {"seconds": clock.seconds, **measured()}
            log.row(**row)
        stops = [rule.update(row) for rule in rules]
        if not math.isfinite(row["train_loss"]):
            outcome = "diverged"
        elif any(stops) or epoch == epochs:
            outcome = "finished"
    save()
    for rule in rules:
        rule.finish()
    return Fit(epoch, outcome, clock.seconds)


class _Clock:
    """Training seconds: processor time on the CPU, where other processes share the cores, else wall time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0
        self._gpu = torch.cuda.is_available()

    def _now(self) -> float:
        if not self._gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> float:
        self.seconds += self._now() - self._since
        return self.seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()
