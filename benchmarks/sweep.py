"""A sweep of 16 ELRs on the quick perceptron, 64-96-96-10 on digits in batches of 128, measured at every step.

Run as ``python -m benchmarks.sweep``. The same runs, from data to verdict on the regime, are made one after the other,
as replicas, and both of these split between two processes that have been started before. A round makes them all, in an
order that rotates; the median over rounds of the ratio to the first counts. Processor time is that of all processes
together; wall time means something only on two idle cores. All programs leave the same results, bit for bit.

First comes the floor: the time of the matrix products alone, which no program can avoid; and where a step's time goes.

The promise checked here: the laboratory's choice, replicas in two processes, takes at most 1/1.8 of the wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from thalweg.invariance import ScaleMonitor
from thalweg.lab.experiments.sphere_regimes import Config
from thalweg.lab.training.on_sphere import train_on_sphere, train_together_on_sphere
from thalweg.lab.training.replicas import Replicas, products
from thalweg.lab.training.scale_invariant import Task, task
from thalweg.lab.trial import Log, Trial
from thalweg.optim import SphereSGD

LIMIT = 1.8
RATES = tuple(10 ** (4 * k / 15 - 4) for k in range(16))
STACKED = 8  # networks in the stack of the profile: half of the sweep
STEPS = 10  # of one sample of the profile


def trials(rates: Sequence[float], epochs: int) -> list[Trial]:
    """Runs of one seed."""
    return [Trial("sphere-regimes", 1, Config(preset="quick", elr=rate, epochs=epochs), 0) for rate in rates]


def train(together: bool, rates: Sequence[float], epochs: int) -> tuple[float, list[dict[str, float]]]:
    """Processor seconds and final values of these runs in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as path:
        logs = [log(Path(path, str(k))) for k in range(len(rates))]
        start = time.process_time()
        runs = trials(rates, epochs)
        if together:
            endings = train_together_on_sphere(runs, logs)
        else:
            endings = [train_on_sphere(run, own) for run, own in zip(runs, logs, strict=True)]
        return time.process_time() - start, [dict(ending.values) for ending in endings]


def log(path: Path) -> Log:
    """A log in a folder of its own."""
    path.mkdir()
    metrics = path / "metrics.jsonl"

    def rows() -> list[dict[str, Any]]:
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    folder: Any = SimpleNamespace(checkpoint=path / "checkpoint.pt", metrics=metrics, rows=rows)
    return Log(folder)


def products_alone(work: Task) -> Callable[[], None]:
    """The matrix products of one step of one network: the input needs no gradient, the last layer's weight neither."""
    x = work.batches.inputs[: work.batches.batch_size].flatten(1)
    *hidden, last = [w.detach() for name, w in work.model.named_parameters() if name.endswith("weight")]
    inputs = [x, *(torch.randn(len(x), len(w)) for w in hidden)]
    errors = [torch.randn(len(x), len(w)) for w in (*hidden, last)]

    def run() -> None:
        for h, d, w in zip(inputs, errors, (*hidden, last), strict=True):
            torch.mm(h, w.t())
            if w is not last:
                torch.mm(d.t(), h)
            if h is not x:
                torch.mm(d, w)

    return run


def flops(work: Task) -> int:
    """Multiplications and additions of `products_alone`."""
    *hidden, last = [w for name, w in work.model.named_parameters() if name.endswith("weight")]
    passes = 3 * sum(w.numel() for w in hidden) - hidden[0].numel() + 2 * last.numel()
    return 2 * work.batches.batch_size * passes


def profile(work: Task, seconds: float) -> dict[str, float]:
    """Least processor seconds of a step of one network, cumulatively, and of one of the stack's networks."""
    x, y = (part[: work.batches.batch_size] for part in (work.batches.inputs, work.batches.targets))

    def single(stepped: bool, measured: bool) -> Callable[[], None]:
        model = copy.deepcopy(work.model)
        optimizer = SphereSGD([p for p in model.parameters() if p.requires_grad], 1e-3)
        monitor = ScaleMonitor(model, optimizer, work.groups)
        if measured:
            monitor.attach()

        def run() -> None:
            optimizer.zero_grad()
            work.loss_fn(model(x), y).backward()  # type: ignore[no-untyped-call]
            if stepped:
                optimizer.step()
            monitor.rows.clear()

        return run

    def stacked(stepped: bool) -> Callable[[], None]:
        models = [copy.deepcopy(work.model) for _ in range(STACKED)]
        optimizers = [SphereSGD([p for p in model.parameters() if p.requires_grad], 1e-3) for model in models]
        monitors = [ScaleMonitor(m, o, work.groups) for m, o in zip(models, optimizers, strict=True)]
        replicas, targets = Replicas(models, work.loss_fn, x[:1]), y.expand(STACKED, -1)
        names = [group.names for group in work.groups]

        def run() -> None:
            if stepped:
                replicas.step(products, x, targets, optimizers, monitors, names)
            else:
                products(replicas, x, targets)
            for monitor in monitors:
                monitor.rows.clear()

        return run

    runs = {
        "products": (products_alone(work), 1),
        "passes": (single(False, False), 1),
        "optimizer": (single(True, False), 1),
        "monitor": (single(True, True), 1),
        "stacked passes": (stacked(False), STACKED),
        "stacked": (stacked(True), STACKED),
    }
    best = dict.fromkeys(runs, float("inf"))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for name, (run, networks) in runs.items():
            start = time.process_time()
            for _ in range(STEPS):
                run()
            best[name] = min(best[name], (time.process_time() - start) / STEPS / networks)
    return best


def main() -> int:
    """Print the tables; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40, help="of each run; the quick preset has 200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for the profile")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)

    work = task(trials(RATES[:1], args.epochs)[0])
    least = profile(work, args.seconds)
    speed = flops(work) / least["products"] / 1e9
    print(f"Processor time of a step of one network, us; products at {speed:.0f} Gflop/s; torch {torch.__version__}\n")
    print(f"| part | alone | as one of {STACKED} replicas |\n|---|---|---|")
    rows = [
        ("matrix products: the floor", least["products"], least["products"]),
        ("the rest of both passes", least["passes"] - least["products"], least["stacked passes"] - least["products"]),
        ("`SphereSGD`", least["optimizer"] - least["passes"], None),
        ("`ScaleMonitor`", least["monitor"] - least["optimizer"], None),
        ("both of them", least["monitor"] - least["passes"], least["stacked"] - least["stacked passes"]),
        ("in all", least["monitor"], least["stacked"]),
    ]
    for part, one, stack in rows:
        print(f"| {part} | {one * 1e6:.0f} | {'-' if stack is None else f'{stack * 1e6:.0f}'} |")

    bars = {
        "one after the other": (False, 1),
        "one after the other, 2 processes": (False, 2),
        "replicas": (True, 1),
        "**replicas, 2 processes**": (True, 2),
    }
    wall: dict[str, list[float]] = {name: [] for name in bars}
    processor: dict[str, list[float]] = {name: [] for name in bars}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(train, (True, True), (RATES[:2], RATES[:2]), (20, 20)))  # imports, data
        expected = None
        for turn in range(args.rounds):
            for name in [*bars][turn % len(bars) :] + [*bars][: turn % len(bars)]:
                together, processes = bars[name]
                parts = [RATES[k::processes] for k in range(processes)]
                start = time.perf_counter()
                if processes == 1:
                    done = [train(together, RATES, args.epochs)]
                else:
                    done = list(pool.map(train, [together] * 2, parts, [args.epochs] * 2))
                wall[name].append(time.perf_counter() - start)
                processor[name].append(sum(seconds for seconds, _ in done))
                ends = [
                    pair for part, (_, own) in zip(parts, done, strict=True) for pair in zip(part, own, strict=True)
                ]
                found = json.dumps(sorted(ends, key=lambda end: end[0]), sort_keys=True)
                expected = expected or found
                assert found == expected, f"{name}: other results"

    print(f"\n16 ELRs, {args.epochs} epochs of 12 steps; median of {args.rounds} rounds\n")
    print("| program | wall, s | times as fast | processor, s | times as little |\n|---|---|---|---|---|")
    ratio = {}
    for name in bars:
        ratio[name] = _ratio(wall, name)
        cells = [f"{statistics.median(wall[name]):.2f}", f"{ratio[name]:.2f}"]
        cells += [f"{statistics.median(processor[name]):.2f}", f"{_ratio(processor, name):.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    floor = least["products"] * len(RATES) * args.epochs * len(work.batches)
    bound = statistics.median(processor["one after the other"]) / floor
    print(f"| the floor: matrix products only | - | - | {floor:.2f} | {bound:.2f} |")
    best = ratio["**replicas, 2 processes**"]
    print(f"\nThe choice is {best:.2f} times as fast; promised {LIMIT}: {'kept' if best >= LIMIT else 'BROKEN'}")
    return int(best < LIMIT)


def _ratio(samples: dict[str, list[float]], name: str) -> float:
    """Median over rounds of how many times less ``name`` takes than one run after the other."""
    return statistics.median(a / b for a, b in zip(samples["one after the other"], samples[name], strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
