"""What the sample-size curve |L_{k+1} - L_k| costs: ratios to the published procedure, for N = 10,000 and P = 100.

Run as ``python -m benchmarks.loss_increments``. The published procedure (kisnikser/landscape-hessian) takes the samples
one by one: image to tensor, normalisation, `functional_call` with a batch of one, loss; then for each order it draws a
list of all losses, sums it cumulatively and takes differences. A part of it is measured and scaled up: ``--forwards``
of the N samples, which cost alike, and ``--orders`` of the P orders. The other side starts from the same bytes and
returns a band as well; it takes batches one after another, as a loader gives them, and leaves the channels last, as the
bytes have them. Both take turns in one loop on one thread; a sample is processor time (wall time on an accelerator,
synchronised), a ratio that of one turn, and the median counts.

The promise checked here, made for CPUs: network and orders together at least 10 times as fast as published, for every
network. The more work in one sample, the less a batch saves.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.clock import plain_arithmetic, seconds
from thalweg.landscape import expected_increments, loss_increments, per_sample_losses

N, P, LIMIT = 10_000, 100, 10.0


def convnet() -> nn.Module:
    """Three convolutions of stride 2 and two linear layers: 94,000 parameters on CIFAR images."""
    layers: list[nn.Module] = []
    for c_in, c_out in [(3, 16), (16, 32), (32, 32)]:
        layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 149), nn.ReLU(), nn.Linear(149, 10)).eval()


def perceptron(pixels: int) -> nn.Module:
    """The published network of the figures: depth 5 and width 16, without biases."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise([pixels, 16, 16, 16, 16, 16, 16]):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 10, bias=False)).eval()


NETWORKS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "published MLP, MNIST": (perceptron(784), (28, 28, 1)),
    "published MLP, CIFAR-10": (perceptron(3072), (32, 32, 3)),
    "CNN, CIFAR-10": (convnet(), (32, 32, 3)),
}


def normalised(images: np.ndarray, device: str) -> Tensor:
    """Bytes (…, height, width, channels) as numbers between -1 and 1, channels before the rest."""
    return torch.from_numpy(images).to(device).movedim(-1, -3).float().mul_(1 / 127.5).sub_(1.0)


class Batches:
    """Normalised images and their labels, 500 at a time; no batch is kept."""

    def __init__(self, images: np.ndarray, labels: list[int], device: str) -> None:
        self.images, self.labels, self.device = images, labels, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(0, len(self.labels), 500):
            labels = torch.tensor(self.labels[i : i + 500], device=self.device)
            yield normalised(self.images[i : i + 500], self.device), labels


@torch.no_grad()
def one_by_one(model: nn.Module, images: np.ndarray, labels: list[int], device: str) -> list[float]:
    """Losses as published: a batch of one after another."""
    losses, weights = [], list(model.parameters())
    for image, label in zip(images, labels, strict=True):
        params = dict(zip((name for name, _ in model.named_parameters()), weights, strict=True))
        output = functional_call(model, params, normalised(image, device).contiguous().unsqueeze(0))
        losses.append(cross_entropy(output, torch.tensor([label], device=device)).item())
    return losses


def one_order(losses: list[float]) -> np.ndarray:
    """One order as published: a list of all losses, its cumulative means and their differences."""
    drawn = random.sample(losses, len(losses))
    means = np.cumsum(drawn) / np.arange(1, len(drawn) + 1)
    return np.abs(np.diff(means))


def turn(
    model: nn.Module, images: np.ndarray, labels: list[int], forwards: int, orders: int, device: str
) -> dict[str, float]:
    """Seconds of every part, the published ones scaled up to N and P."""
    losses = torch.zeros(N, device=device)

    def clock(run: Callable[[], object]) -> float:
        return seconds(run, device)

    def batched() -> None:
        losses.copy_(per_sample_losses(model, cross_entropy, Batches(images, labels, device)))

    part = {"network, ours": clock(batched)}
    alone = clock(lambda: one_by_one(model, images[:forwards], labels[:forwards], device))
    part["network, published"] = alone * N / forwards
    listed = losses.tolist()
    part["orders, published"] = clock(lambda: [one_order(listed) for _ in range(orders)]) * P / orders
    part["orders, ours"] = clock(lambda: loss_increments(losses, permutations=P))
    return part


def main() -> int:
    """Print the table; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forwards", type=int, default=1000, help="batches of one that are measured")
    parser.add_argument("--orders", type=int, default=10, help="published orders that are measured")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    plain_arithmetic()
    torch.manual_seed(0)
    labels = torch.randint(10, (N,)).tolist()
    device = args.device
    print(f"Seconds for N = {N:,} and P = {P}, median of {args.turns} turns; {device}, torch {torch.__version__}\n")
    print("| network | part | published | ours | ratio (lowest) |")
    print("|---|---|---|---|---|")
    medians: dict[str, float] = {}
    for name, (model, shape) in NETWORKS.items():
        images = np.random.default_rng(0).integers(0, 256, (N, *shape), dtype=np.uint8)
        model.to(device)
        alone = torch.tensor(one_by_one(model, images[:50], labels[:50], device))
        together = per_sample_losses(model, cross_entropy, Batches(images[:50], labels[:50], device)).cpu()
        assert (alone - together).abs().max() < 1e-5, "the two sides compute different losses"
        turn(model, images, labels, 20, 1, device)  # the first calls allocate
        turns = [turn(model, images, labels, args.forwards, args.orders, device) for _ in range(args.turns)]
        for part in turns:
            part["whole, published"] = part["network, published"] + part["orders, published"]
            part["whole, ours"] = part["network, ours"] + part["orders, ours"]
        for row in ("network", "orders", "whole"):
            theirs, ours = ([part[f"{row}, {side}"] for part in turns] for side in ("published", "ours"))
            ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
            print(
                f"| {name} | {row} | {statistics.median(theirs):.3g} | {statistics.median(ours):.3g} "
                f"| {statistics.median(ratios):.1f} ({min(ratios):.1f}) |"
            )
        medians[name] = statistics.median(ratios)
        losses = per_sample_losses(model, cross_entropy, Batches(images, labels, device))
        closed = seconds(partial(expected_increments, losses), device)
        print(f"| {name} | closed form with band, instead of orders | - | {closed:.3g} | - |")
    ratio = min(medians.values())
    print(f"\nThe curve is at least {ratio:.1f} times as fast as published; promised {LIMIT}: ", end="")
    print("kept" if ratio >= LIMIT else "BROKEN")
    return int(ratio < LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
