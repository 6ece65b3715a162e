"""What each weight penalty costs: forward and backward, relative to the layers' own at batch 128.

Run as ``python -m benchmarks.penalties``. The layers are the 33 convolutions 3x3 of ResNet-34 for CIFAR; of equal ones
only one is timed and counts as many times. Layers and penalties take turns in one process, a sample is processor time
(wall time on an accelerator, synchronised), and the median over rounds of the ratio of sums counts. A penalty does not
depend on the batch: at batch 512 the ratios are about a quarter of these.

The promise checked here, made for CPUs: every penalty costs at most 0.7 of the layers, and `ConvOrthogonality` at most
0.75 of its published formula, the convolution of each kernel with itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from benchmarks.clock import plain_arithmetic, seconds
from benchmarks.frame_penalty import LAYERS
from thalweg.regularize import (
    L1,
    L2,
    SRIP,
    ConvOrthogonality,
    DoubleSoftOrthogonality,
    HypersphericalEnergy,
    MutualCoherence,
    Penalty,
    SoftOrthogonality,
)

LIMIT, GAIN = 0.7, 0.75
PENALTIES: dict[str, Penalty] = {
    "L1": L1(),
    "L2": L2(),
    "soft orthogonality": SoftOrthogonality(),
    "double soft orthogonality": DoubleSoftOrthogonality(),
    "mutual coherence": MutualCoherence(),
    "SRIP": SRIP(),
    "hyperspherical energy, s = 0": HypersphericalEnergy(),
    "hyperspherical energy, a2, half space": HypersphericalEnergy(power=2, angular=True, half_space=True),
    "orthogonal convolutions": ConvOrthogonality(),
}
LAYER, PUBLISHED, OWN = "the layers themselves", "orthogonal convolutions, published formula", "orthogonal convolutions"


def published(layer: nn.Conv2d) -> Tensor:
    """|Conv(K, K) - I₀|_F² as the paper writes it, with its padding."""
    stride = layer.stride[0]
    padding = 2 // stride * stride
    out = conv2d(layer.weight, layer.weight, stride=stride, padding=padding)
    target = torch.zeros_like(out)
    target[:, :, padding // stride, padding // stride] = torch.eye(len(out), device=out.device)
    return (out - target).square().sum()


def contestants(layer: nn.Conv2d, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Everything that is timed, as functions that return the scalar to differentiate."""
    runs: dict[str, Callable[[], Tensor]] = {LAYER: lambda: layer(images).sum()}
    runs |= {name: lambda penalty=penalty: penalty(layer) for name, penalty in PENALTIES.items()}
    runs[PUBLISHED] = lambda: published(layer)
    return runs


def main() -> int:
    """Print the table; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    plain_arithmetic()

    times: dict[str, list[list[float]]] = {}  # name -> layer -> rounds
    for channels, filters, size, stride, count in LAYERS:
        layer = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False, device=args.device)
        images = torch.randn(args.batch, channels, size, size, device=args.device, requires_grad=True)
        runs = contestants(layer, images)
        for name, run in runs.items():
            run().backward()  # the first call allocates
            times.setdefault(name, []).append([])
        for _ in range(args.rounds):
            for name, run in runs.items():
                times[name][-1].append(count * seconds(lambda run=run: run().backward(), args.device))
                layer.weight.grad = images.grad = None
    sums = {name: [sum(row) for row in zip(*rows, strict=True)] for name, rows in times.items()}
    ratio = {
        name: statistics.median(a / b for a, b in zip(values, sums[LAYER], strict=True))
        for name, values in sums.items()
    }
    print(
        f"Forward and backward over the 33 convolutions, batch {args.batch}; {args.device}, torch {torch.__version__}\n"
    )
    print("| | ratio | ms |")
    print("|---|---|---|")
    for name, values in sums.items():
        print(f"| {name} | {ratio[name]:.3f} | {statistics.median(values) * 1e3:.3g} |")
    worst = max(ratio[name] for name in PENALTIES)
    gain = ratio[OWN] / ratio[PUBLISHED]
    kept = worst <= LIMIT and gain <= GAIN
    print(
        f"\nThe dearest penalty costs {worst:.2f} of the layers (promised {LIMIT}), ConvOrthogonality {gain:.2f} of "
        f"its published formula (promised {GAIN}): {'kept' if kept else 'BROKEN'}"
    )
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
