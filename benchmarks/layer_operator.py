"""What a layer as an operator costs: its products beside the bare calls of torch, its spectrum beside the dense SVD.

Run as ``python -m benchmarks.layer_operator``; ``--channels 512`` takes the widest layer of a ResNet, whose dense SVD
takes minutes of one thread. Ratios of products are medians of pairs of processor times (wall times on an accelerator,
synchronised), taken in turns in one process: a shared machine touches both alike.

The promises checked here, made for CPUs: matvec and rmatvec together cost at most 1.05 times the convolution and the
transposed convolution they consist of, on two images of each kind of 3 x 3 layer of a CIFAR ResNet-34; and the spectral
norm by products costs at most 1/20 of the dense SVD of a layer of 256 channels on a 4 x 4 map.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d

from benchmarks.clock import plain_arithmetic, seconds
from thalweg.operators import Extremes, LayerOperator, extreme_singular_values

PRODUCTS, SPECTRUM = 1.05, 1 / 20
LAYERS = {  # in, out, map, stride
    "64, 32 x 32": (64, 64, 32, 1),
    "128, 16 x 16": (128, 128, 16, 1),
    "256, 8 x 8": (256, 256, 8, 1),
    "512, 4 x 4": (512, 512, 4, 1),
    "64 to 128, 32 x 32, stride 2": (64, 128, 32, 2),
}


def build(c_in: int, c_out: int, size: int, stride: int, device: str) -> LayerOperator:
    """A 3 x 3 layer from He's initialization."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False).requires_grad_(False)
    nn.init.kaiming_normal_(conv.weight, generator=generator)
    return LayerOperator.of(conv.to(device), (c_in, size, size))


def pairs(
    first: Callable[[], object], second: Callable[[], object], rounds: int, device: str
) -> tuple[float, float, float]:
    """Median of first / second, and their median seconds; the order changes from pair to pair."""
    first(), second()
    samples = []
    for k in range(rounds):
        if k % 2:
            b, a = seconds(second, device), seconds(first, device)
        else:
            a, b = seconds(first, device), seconds(second, device)
        samples.append((a, b))
    return median(a / b for a, b in samples), median(a for a, _ in samples), median(b for _, b in samples)


def products(rounds: int, device: str) -> float:
    """Print the table of products; return the worst ratio."""
    print("| layer | matvec + rmatvec, ms | bare calls, ms | ratio |\n|---|---|---|---|")
    worst = 0.0
    for name, (c_in, c_out, size, stride) in LAYERS.items():
        op = build(c_in, c_out, size, stride, device)
        x = torch.randn(2, *op.input_shape, generator=torch.Generator().manual_seed(1)).to(device)
        y = op.matvec(x)

        def ours(op: LayerOperator = op, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            for _ in range(5):
                op.matvec(x), op.rmatvec(y)

        def bare(W: torch.Tensor = op.weight, s: int = stride, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            for _ in range(5):
                conv2d(x, W, None, s, 1), conv_transpose2d(y, W, None, s, 1, s - 1)

        ratio, mine, theirs = pairs(ours, bare, rounds, device)
        print(f"| {name} | {mine * 200:.2f} | {theirs * 200:.2f} | {ratio:.3f} |")
        worst = max(worst, ratio)
    return worst


def spectrum(channels: int, device: str) -> float:
    """Print what the spectrum of one layer costs; return the share of the spectral norm in the dense SVD."""
    op = build(channels, channels, 4, 1, device)
    units = torch.eye(op.shape[1], device=device).view(-1, *op.input_shape)
    tame = build(
        channels, channels, 4, 1, device
    )  # orthogonal at the centre tap, and noise: as a frame penalty keeps it
    noise = torch.randn(channels, channels, generator=torch.Generator().manual_seed(2))
    tame.weight.mul_(0.1)[:, :, 1, 1].add_(torch.linalg.qr(noise).Q.to(device))
    rows: dict[str, Callable[[], object]] = {
        "spectral norm, by products": lambda: extreme_singular_values(op),
        "both ends of a well-conditioned layer, by products": lambda: extreme_singular_values(tame, smallest=1),
        "both ends from He's initialization, by products": lambda: extreme_singular_values(op, smallest=1),
        "dense matrix, from the taps": op.dense,
        "dense matrix, from unit maps": lambda: torch.cat([op.matvec(part) for part in torch.split(units, 256)]),
        "dense SVD": lambda: torch.linalg.svdvals(op.dense()),
    }
    print(f"\n| {channels} channels, 4 x 4: m = n = {op.shape[0]} | s | of the SVD | vectors |\n|---|---|---|---|")
    cost: dict[str, float] = {}
    spent: dict[str, str] = {}
    for name, run in rows.items():
        if device != "cpu":
            run()  # the first call of a kernel on an accelerator loads it
        results: list[object] = []
        cost[name] = seconds(lambda run=run, results=results: results.append(run()), device)  # type: ignore[misc]
        found = results[0]
        if isinstance(found, Extremes):
            spent[name] = f"{found.vectors}{'' if found.converged else ', not converged'}"
    for name, value in cost.items():
        print(f"| {name} | {value:.3g} | {value / cost['dense SVD']:.4f} | {spent.get(name, '')} |")
    return cost["spectral norm, by products"] / cost["dense SVD"]


def main() -> int:
    """Print the tables; the exit status says whether the promises are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=21, help="pairs for each layer")
    parser.add_argument("--channels", type=int, default=256, help="of the layer whose spectrum is taken")
    args = parser.parse_args()
    plain_arithmetic()
    print(f"{args.device}, torch {torch.__version__}\n")
    worst = products(args.rounds, args.device)
    share = spectrum(args.channels, args.device)
    kept = worst <= PRODUCTS and share <= SPECTRUM
    print(f"\nProducts at most {worst:.3f} (promised {PRODUCTS}), spectral norm {share:.4f} of the dense SVD ", end="")
    print(f"(promised {SPECTRUM:.3f}): {'kept' if kept else 'BROKEN'}")
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
