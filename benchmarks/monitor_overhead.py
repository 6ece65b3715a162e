"""What `ScaleMonitor` adds to a training step, measuring every step or every tenth.

Run as ``python -m benchmarks.monitor_overhead``. Three copies of a ConvNet of four convolutions at width 16, inputs
(128, 3, 32, 32), train by SGD in turns of ten steps on one thread: without a monitor, with ``every=10`` and with
``every=1``, one group per convolution. A sample is the processor time of a turn, and the median of the paired ratios
counts. The order of the turns rotates: whoever goes first after a pause pays for the cold caches.

The promise checked here, made for CPUs: at most 3% with ``every=10`` and 15% with ``every=1``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thalweg.invariance.monitor import ScaleMonitor

LIMITS = {10: 1.03, 1: 1.15}
TURN = 10  # steps


def conv_net(width: int) -> nn.Sequential:
    """Four 3x3 convolutions, each with a batch normalization without gain, as published; pooled after 2, 3 and 4."""
    layers: list[nn.Module] = []
    before = 3
    for k in range(4):
        after = width * 2**k
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after, affine=False), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if k else []
        before = after
    return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(before, 10).requires_grad_(False))


def make_turn(images: Tensor, labels: Tensor, width: int, every: int | None) -> Callable[[], None]:
    """Ten steps of a network of its own, measured by a monitor unless ``every`` is None."""
    torch.manual_seed(0)
    model = conv_net(width)
    weights = [name for name, weight in model.named_parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.01, weight_decay=1e-3)
    if every is not None:
        ScaleMonitor(model, optimizer, [SimpleNamespace(names=(name,)) for name in weights], every, delta=0.1).attach()

    def run() -> None:
        for _ in range(TURN):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()

    return run


def main() -> int:
    """Print the table; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each network")
    parser.add_argument("--width", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(128, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (128,), generator=generator)

    runs = {every: make_turn(images, labels, args.width, every) for every in (None, *LIMITS)}
    samples: dict[int | None, list[float]] = {every: [] for every in runs}
    for k in range(args.rounds + 1):
        order = [*runs][k % 3 :] + [*runs][: k % 3]
        for every in order:
            start = time.process_time()
            runs[every]()
            if k:  # the first round warms up
                samples[every].append((time.process_time() - start) / TURN)

    print(f"Processor time of one training step, width {args.width}, torch {torch.__version__}\n")
    print("| monitor | step, ms | ratio | quartiles | promised |\n|---|---|---|---|---|")
    print(f"| none | {statistics.median(samples[None]) * 1e3:.2f} | 1 | | |")
    kept = True
    for every, limit in LIMITS.items():
        ratios = [b / a for a, b in zip(samples[None], samples[every], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        kept &= middle <= limit
        step = statistics.median(samples[every]) * 1e3
        print(f"| every={every} | {step:.2f} | {middle:.3f} | {low:.3f} to {high:.3f} | {limit} |")
    print(f"\nPromise {'kept' if kept else 'BROKEN'}")
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
