"""What a CSGD step costs: ratios to the floor, which is its two cheapest matrix products and nothing else.

Run as ``python -m benchmarks.csgd_step``. Absolute times say little on a shared machine, so every rival takes its turn
in one loop, a sample is processor time (wall time on an accelerator, synchronised), and the minimum counts.

The promise checked here, made for CPUs: a plain CSGD step on the right costs at most 1.1 floors for every model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.clock import plain_arithmetic, seconds
from thalweg.optim import CSGD

LIMIT = 1.1
LR = 1e-9  # weights must stay where they are: the cost of a step should not depend on the round


def _resnet18() -> list[tuple[int, ...]]:
    """Weights of ResNet-18 for 1000 classes: 11.7 million parameters."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for inner in (before, width, width, width):
            shapes += [(width, inner, 3, 3), (width,), (width,)]
        if width != before:
            shapes += [(width, before, 1, 1), (width,), (width,)]
        before = width
    return [*shapes, (1000, 512), (1000,)]


MODELS: dict[str, list[tuple[int, ...]]] = {
    "autoencoder": [(128, 784), (128,), (16, 128), (16,), (128, 16), (128,), (784, 128), (784,)],
    "ResNet-18": _resnet18(),
    "transformer block": [*[(1024, 1024)] * 4, (4096, 1024), (1024, 4096)],
}


def parameters(shapes: list[tuple[int, ...]], device: str) -> list[nn.Parameter]:
    """Random parameters of these shapes with random gradients."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in shapes:
        param = nn.Parameter(torch.randn(shape, generator=generator, device=device) * 0.02)
        param.grad = torch.randn(shape, generator=generator, device=device) * 0.02
        params.append(param)
    return params


def matrices(params: list[nn.Parameter]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (A, G) as CSGD sees them: (out, everything else)."""
    return [(p.detach().flatten(1), p.grad.flatten(1)) for p in params if p.grad is not None and p.ndim > 1]


def floor(params: list[nn.Parameter]) -> Callable[[], None]:
    """Two GEMMs a matrix, the cheap way round, into buffers allocated beforehand."""
    work = []
    for A, G in matrices(params):
        m, n = A.shape
        first = (A.mT, A) if n <= m else (G, A.mT)
        K = A.new_empty(min(m, n), min(m, n))
        second = (G, K) if n <= m else (K, A)
        work.append((first, K, second, torch.empty_like(A)))

    def run() -> None:
        for first, K, second, out in work:
            torch.mm(*first, out=K)
            torch.mm(*second, out=out)

    return run


def left_to_right(params: list[nn.Parameter]) -> Callable[[], None]:
    """The seed's own step, p ← p - lr (g + g pᵀ p), associated as it is written; vectors take a plain step."""
    vectors = [(p.detach(), p.grad) for p in params if p.grad is not None and p.ndim < 2]

    def run() -> None:
        for A, G in matrices(params):
            A.copy_(A - LR * (G + G @ A.mT @ A))
        for a, g in vectors:
            a.copy_(a - LR * g)

    return run


def muon(shapes: list[tuple[int, ...]], device: str) -> Callable[[], object]:
    """The step of torch's Muon on the matrices alone, convolutions flattened: it takes nothing but two dimensions."""
    flat: list[tuple[int, ...]] = [(s[0], torch.Size(s[1:]).numel()) for s in shapes if len(s) > 1]
    return torch.optim.Muon(parameters(flat, device), lr=LR, weight_decay=0.0).step


def contestants(shapes: list[tuple[int, ...]], device: str) -> dict[str, Callable[[], object]]:
    """Everything that is timed, each on parameters of its own."""

    def fresh() -> list[nn.Parameter]:
        return parameters(shapes, device)

    runs: dict[str, Callable[[], object]] = {
        "floor": floor(fresh()),
        "CSGD right": CSGD(fresh(), lr=LR).step,
        "CSGD left": CSGD(fresh(), lr=LR, side="left").step,
        "CSGD exact": CSGD(fresh(), lr=LR, exact=True).step,
        "CSGD momentum": CSGD(fresh(), lr=LR, momentum=0.9).step,
        "seed's left to right": left_to_right(fresh()),
        "SGD (foreach)": torch.optim.SGD(fresh(), lr=LR, foreach=True).step,
        "Adam": torch.optim.Adam(fresh(), lr=LR).step,
    }
    if hasattr(torch.optim, "Muon"):  # since torch 2.9
        runs["Muon (2-D only)"] = muon(shapes, device)
    return runs


def measure(runs: dict[str, Callable[[], object]], *, device: str, duration: float, rounds: int) -> dict[str, float]:
    """Minimum seconds per call: at least ``rounds`` interleaved rounds, for ``duration`` seconds if that is longer."""
    for run in runs.values():
        run()  # first calls allocate state
    best = dict.fromkeys(runs, float("inf"))
    deadline, done = time.monotonic() + duration, 0
    while done < rounds or time.monotonic() < deadline:
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run, device))
        done += 1
    return best


def main() -> int:
    """Print the table; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each model")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each model at the least")
    args = parser.parse_args()
    plain_arithmetic()
    torch.manual_seed(0)

    columns, worst = {}, 0.0
    for model, shapes in MODELS.items():
        best = measure(contestants(shapes, args.device), device=args.device, duration=args.seconds, rounds=args.rounds)
        columns[model] = {name: f"{value / best['floor']:.2f} ({value * 1e3:.3g})" for name, value in best.items()}
        worst = max(worst, best["CSGD right"] / best["floor"])
    print(f"Time of one step as a multiple of the floor (milliseconds); {args.device}, torch {torch.__version__}\n")
    print("| step | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(column[name] for column in columns.values()) + " |")
    print(f"\nCSGD right is at most {worst:.2f} floors; promised {LIMIT}: {'kept' if worst <= LIMIT else 'BROKEN'}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
