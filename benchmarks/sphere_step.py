"""What a step on the sphere costs: ratios to ``torch.optim.SGD`` with foreach, which only moves the weights.

Run as ``python -m benchmarks.sphere_step``. Rivals take turns in one loop, a sample is the processor time of one step
(wall time on an accelerator, synchronised), and the minimum counts. Before each step other memory is written, unless
``--warm`` is given: a backward pass does that too, and weights that all rivals find in the cache belong to no training.
The ratios wander by about a tenth on a busy machine, where other processes share the memory's bandwidth.

The promise checked here, made for CPUs: a step of `SphereSGD` on one sphere, with its share of the check made every
100 steps, costs at most 2 of SGD's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.clock import plain_arithmetic, seconds
from benchmarks.csgd_step import parameters
from thalweg.optim.sphere import SphereSGD

LIMIT = 2.0
RATE = 1e-9  # weights must stay where they are: the cost of a step should not depend on the round
PLAIN, CHECKED, PROMISED = "no check", "a check at every step", "**a check every 100 steps**"


def resnet18(width: int) -> list[tuple[int, ...]]:
    """Convolutions of the seed's ResNet-18 for CIFAR, all scale-invariant: 2.8 million weights at width 32."""
    shapes: list[tuple[int, ...]] = [(width, 3, 3, 3)]
    before = width
    for after in (width, 2 * width, 4 * width, 8 * width):
        shapes += [(after, inner, 3, 3) for inner in (before, after, after, after)]
        shapes += [(after, before, 1, 1)] if before != after else []
        before = after
    return shapes


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "ConvNet, width 32": [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3)],
    "ResNet-18, width 32": resnet18(32),
    "ResNet-18, width 64": resnet18(64),
}


def make_loop(weights: list[nn.Parameter]) -> Callable[[], None]:
    """The step as one would write it by hand: no foreach, one norm of everything, no checks."""

    def run() -> None:
        with torch.no_grad():
            for w in weights:
                assert w.grad is not None
                w.sub_(RATE * w.grad)
            norm = torch.cat([w.flatten() for w in weights]).norm()
            for w in weights:
                w.mul_(norm / norm)

    return run


def contestants(shapes: list[tuple[int, ...]], device: str) -> dict[str, Callable[[], object]]:
    """Everything that is timed, each on parameters of its own."""

    def fresh() -> list[nn.Parameter]:
        return parameters(shapes, device)

    # Random gradients are not tangent: a check that never complains, but is made.
    runs: dict[str, Callable[[], object]] = {
        "SGD (foreach)": torch.optim.SGD(fresh(), lr=RATE, foreach=True).step,
        PLAIN: SphereSGD(fresh(), elr=RATE, check="off").step,
        CHECKED: SphereSGD(fresh(), elr=RATE, tolerance=1.0, check_every=1).step,
        "a sphere for each parameter": SphereSGD(
            [{"params": [w]} for w in fresh()], elr=RATE, mode="group", check="off"
        ).step,
        "by hand": make_loop(fresh()),
    }
    if all(len(shape) > 1 for shape in shapes):
        runs["a sphere for each filter"] = SphereSGD(fresh(), elr=RATE, mode="filter", check="off").step
    return runs


def measure(
    runs: dict[str, Callable[[], object]], *, device: str, duration: float, rounds: int, warm: bool
) -> dict[str, float]:
    """Minimum seconds per step: at least ``rounds`` interleaved rounds, for ``duration`` seconds if that is longer."""
    other = torch.zeros(16 * 2**20, device=device)
    best = dict.fromkeys(runs, float("inf"))
    deadline, done = time.monotonic() + duration, 0
    while done <= rounds or time.monotonic() < deadline:
        for name, run in runs.items():
            if warm:
                run()
            else:
                other.add_(1.0)
            taken = seconds(run, device)
            if done:  # the first round allocates
                best[name] = min(best[name], taken)
        done += 1
    return best


def main() -> int:
    """Print the table; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each model")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each model at the least")
    parser.add_argument("--warm", action="store_true", help="leave the weights in the cache")
    args = parser.parse_args()
    plain_arithmetic()

    columns: dict[str, dict[str, str]] = {}
    worst = 0.0
    for model, shapes in SHAPES.items():
        runs = contestants(shapes, args.device)
        best = measure(runs, device=args.device, duration=args.seconds, rounds=args.rounds, warm=args.warm)
        best[PROMISED] = 0.99 * best[PLAIN] + 0.01 * best[CHECKED]
        ratio = {name: value / best["SGD (foreach)"] for name, value in best.items()}
        columns[model] = {name: f"{ratio[name]:.2f} ({value * 1e3:.3g})" for name, value in best.items()}
        worst = max(worst, ratio[PROMISED])
    print(f"Time of one step as a multiple of SGD's (milliseconds); {args.device}, torch {torch.__version__}\n")
    print("| step | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in columns["ConvNet, width 32"]:
        print(f"| {name} | " + " | ".join(column.get(name, "-") for column in columns.values()) + " |")
    print(f"\nSphereSGD is at most {worst:.2f} SGD steps; promised {LIMIT}: {'kept' if worst <= LIMIT else 'BROKEN'}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
