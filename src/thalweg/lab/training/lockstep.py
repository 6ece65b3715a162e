"""Training runs that differ in scalars only in lockstep, as `Replicas`: `fit`'s rows and checkpoints, run by run.

A program is chosen by what it does: three steps of copies are taken one by one and by each program, the time of the
processor is compared, and on the CPU the weights, which must be the same bit for bit. Equal trials have equal results
there, however many were trained together; a run that was interrupted goes on alone, or was never begun.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.invariance import ScaleMonitor
from thalweg.lab.data.batches import Batches
from thalweg.lab.training.checkpoint import random_state, save_checkpoint
from thalweg.lab.training.loop import RARITY, Fit
from thalweg.lab.training.monitored import Losses
from thalweg.lab.training.replicas import Program, Replicas, products, vmapped
from thalweg.lab.training.scale_invariant import Task, task
from thalweg.lab.training.stopping import StoppingRule
from thalweg.lab.trial import Log, Trial
from thalweg.nn import MLP

__all__ = ["Run", "choose", "fit_together", "tasks"]

Maker = Callable[[list[nn.Parameter]], Optimizer]

STEPS = 3  # of the probe


@dataclass(frozen=True, eq=False)
class Run:
    """One of the runs: what `fit` would get, and its monitor, which is not attached.

    Attributes:
        work: the task; images, order and architecture are the same for all runs, weights and labels may differ.
        optimizer: of the network's scale-invariant weights.
        monitor: with the task's groups.
        rules: as for `fit`, though none may stop the training.
        log: the run's log.
        measure: epoch -> metrics for its row.
        losses: one of the rules, if it is to remember every batch's loss.
    """

    work: Task
    optimizer: Optimizer
    monitor: ScaleMonitor
    rules: Sequence[StoppingRule]
    log: Log
    measure: Callable[[int], Mapping[str, float]]
    losses: Losses | None = None


def fit_together(runs: Sequence[Run], program: Program, *, epochs: int, checkpoint_every: float = 1.0) -> list[Fit]:
    """Train runs from their beginning as one program; what `fit` does to each, up to the program's rounding.

    A run whose loss is no longer finite ends, the others go on. Each run's seconds are its share of the time.

    Args:
        runs: none has a checkpoint.
        program: as `choose` finds it.
        epochs: how many at most.
        checkpoint_every: as for `fit`.
    """
    batches = _common_batches([run.work for run in runs])
    device = batches.inputs.device
    totals = torch.zeros(len(runs), dtype=torch.float64, device=device)
    seconds, fits = 0.0, [Fit(0, "running", 0.0)] * len(runs)
    active = [*range(len(runs))]
    replicas = _stack([run.work for run in runs])
    groups = [group.names for group in runs[0].work.groups]
    for run in runs:
        run.log.row(epoch=0, **run.measure(0))

    def save(k: int) -> None:
        run, fitted = runs[k], fits[k]
        weights = {name: tensor.clone() for name, tensor in run.work.model.state_dict().items()}  # not the whole stack
        parts: dict[str, Any] = {
            "model": weights,
            "batches": batches.state_dict(),
            "optimizer 0": run.optimizer.state_dict(),
        }
        parts |= {f"rule {i}": rule.state_dict() for i, rule in enumerate(run.rules)}
        place = {"epoch": fitted.epochs, "outcome": fitted.outcome, "total": totals[k].clone(), "mark": run.log.mark()}
        place |= {"seconds": seconds if fitted.outcome == "running" else fitted.seconds}
        save_checkpoint(run.log.checkpoint, {"parts": parts, "place": place, "random": random_state()})

    due = time.monotonic() + checkpoint_every
    for epoch in range(1, epochs + 1):
        for inputs, labels in batches:
            began = _now(device)
            optimizers, monitors = [runs[k].optimizer for k in active], [runs[k].monitor for k in active]
            own = labels.t()[active].contiguous()
            losses = replicas.step(program, inputs, own, optimizers, monitors, groups)
            totals[active] = totals[active].add_(losses, alpha=len(inputs))
            seconds += (_now(device) - began) / len(active)
            for k, loss in zip(active, losses.unbind(), strict=True):
                if (remembered := runs[k].losses) is not None:
                    remembered.add(loss)
            if (saving := time.monotonic()) >= due:
                for k in active:
                    save(k)
                saved = time.monotonic()
                due = saved + max(checkpoint_every, (saved - saving) * RARITY)
        for k, total in zip(active, totals[active].tolist(), strict=True):
            run, mean = runs[k], total / batches.samples
            row = {"epoch": epoch, "train_loss": mean, "lr": run.optimizer.param_groups[0]["lr"], "seconds": seconds}
            run.log.row(**(row := row | run.measure(epoch)))
            for rule in run.rules:
                rule.update(row)
            outcome = "diverged" if not math.isfinite(mean) else "finished" if epoch == epochs else "running"
            fits[k] = Fit(epoch, outcome, seconds)
        totals.zero_()
        if ended := [k for k in active if fits[k].outcome != "running"]:
            for k in ended:
                save(k)
            active = [k for k in active if k not in ended]
            if not active:
                break
            replicas = _stack([runs[k].work for k in active])
    return fits


def tasks(trials: Sequence[Trial]) -> list[Task]:
    """A task for each trial, with one copy of the images; none at all where no program can train them together."""
    if not trials:
        return []
    first = task(trials[0])
    works = [first]
    if not _programs(first):
        return []
    for trial in trials[1:]:
        work = task(trial)
        if not _alike(first, work):
            return []
        work.batches.inputs = first.batches.inputs
        works.append(replace(work, tests=first.tests))
    return works


def choose(works: Sequence[Task], makers: Sequence[Maker]) -> Program | None:
    """The program that trains these tasks in less time than one after the other, if there is one.

    Args:
        works: of `tasks`; they are left as they are.
        makers: of each task's optimizer, from the scale-invariant parameters.
    """
    if len(works) < 2:
        return None
    exact = works[0].batches.inputs.device.type == "cpu"
    best = None
    least, expected = _probe(works, makers, None)
    for program in _programs(works[0]):
        taken, found = _probe(works, makers, program)
        same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        if taken < least and (same or not exact):
            least, best = taken, program
    return best


def _programs(work: Task) -> list[Program]:
    """What can train this task's network; a last batch of one image has no variance, which `fit` will say."""
    batches = work.batches
    if batches.samples % batches.batch_size == 1:
        return []
    perceptron: list[Program] = [products] if _is_perceptron(work.model) else []
    return perceptron if batches.inputs.device.type == "cpu" else [*perceptron, vmapped]


def _probe(works: Sequence[Task], makers: Sequence[Maker], program: Program | None) -> tuple[float, list[Tensor]]:
    """Seconds of a step, the weights that `STEPS` of them lead to, and what the monitors saw.

    The last step is on the last batch, which may be smaller: another shape may be rounded otherwise. It is not timed.
    """
    works = [replace(work, model=copy.deepcopy(work.model)) for work in works]
    optimizers = [make(work.invariant) for make, work in zip(makers, works, strict=True)]
    monitors = [ScaleMonitor(w.model, o, w.groups) for w, o in zip(works, optimizers, strict=True)]
    first = works[0].batches
    groups = [group.names for group in works[0].groups]
    replicas = _stack(works) if program else None
    images = torch.split(first.inputs, first.batch_size)
    labels = torch.split(torch.stack([work.batches.targets for work in works]), first.batch_size, 1)
    seconds = []
    with warnings.catch_warnings(), ExitStack() as attached:
        warnings.simplefilter("ignore", RuntimeWarning)
        if replicas is None:
            for monitor in monitors:
                attached.enter_context(monitor)
        for place in [0] * (STEPS - 1) + [-1]:
            x, y = images[place], labels[place]
            began = _now(x.device)
            if replicas is not None and program is not None:
                replicas.step(program, x, y, optimizers, monitors, groups)
            else:
                for work, optimizer, own in zip(works, optimizers, y, strict=True):
                    optimizer.zero_grad()
                    work.loss_fn(work.model(x), own).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            seconds.append(_now(x.device) - began)
    rows = torch.tensor([[*row.values()] for monitor in monitors for row in monitor.rows], dtype=torch.float64)
    weights = [tensor for work in works for tensor in work.model.state_dict().values()]
    return min(seconds[:-1]), [*weights, rows.nan_to_num()]


def _stack(works: Sequence[Task]) -> Replicas:
    return Replicas([work.model for work in works], works[0].loss_fn, works[0].batches.inputs[:1])


def _common_batches(works: Sequence[Task]) -> Batches:
    """The first task's batches with the labels of all: targets (N, K)."""
    batches = copy.copy(works[0].batches)
    batches.targets = torch.stack([work.batches.targets for work in works], 1)
    return batches


def _alike(first: Task, other: Task) -> bool:
    return (
        torch.equal(first.batches.inputs, other.batches.inputs)
        and torch.equal(first.batches.state_dict()["generator"], other.batches.state_dict()["generator"])
        and [group.names for group in first.groups] == [group.names for group in other.groups]
        and first.loss_fn is other.loss_fn
    )


def _is_perceptron(model: nn.Module) -> bool:
    """Whether all that `products` computes is there, and nothing else."""
    return isinstance(model, MLP) and {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"hidden.{place}.weight" for place in range(1, len(model.hidden), 3)
    }


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()
