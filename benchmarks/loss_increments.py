"""What the sample-size curve |L_{k+1} - L_k| costs: ratios to the published procedure, for N = 10,000 and P = 100.

Run as ``python -m benchmarks.loss_increments``. The published procedure (kisnikser/landscape-hessian) takes the samples
one by one: image to tensor, normalisation, `functional_call` with a batch of one, loss; then for each order it draws a
list of all losses, sums it cumulatively and takes differences. A part of it is measured and scaled up: ``--forwards``
of the N samples, which cost alike, and ``--orders`` of the P orders. The other side starts from the same bytes and
returns a band as well. Both take turns in one loop on one thread; a sample is processor time, a ratio that of one turn,
and the median counts.

The promise checked here: network and orders together at least 10 times as fast as published, for the network and image
size of the published default. The others are for comparison: the more work in one sample, the less a batch saves.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

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


PUBLISHED = "published MLP, MNIST"
NETWORKS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    PUBLISHED: (perceptron(784), (28, 28, 1)),
    "published MLP, CIFAR-10": (perceptron(3072), (32, 32, 3)),
    "CNN, CIFAR-10": (convnet(), (32, 32, 3)),
}


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def normalised(images: np.ndarray) -> Tensor:
    """Bytes (…, height, width, channels) as numbers between -1 and 1."""
    return torch.from_numpy(images).movedim(-1, -3).contiguous().float().mul_(1 / 127.5).sub_(1.0)


@torch.no_grad()
def one_by_one(model: nn.Module, images: np.ndarray, labels: list[int]) -> list[float]:
    """Losses as published: a batch of one after another."""
    losses, weights = [], list(model.parameters())
    for image, label in zip(images, labels, strict=True):
        params = dict(zip((name for name, _ in model.named_parameters()), weights, strict=True))
        output = functional_call(model, params, normalised(image).unsqueeze(0))
        losses.append(cross_entropy(output, torch.tensor([label])).item())
    return losses


def one_order(losses: list[float]) -> np.ndarray:
    """One order as published: a list of all losses, its cumulative means and their differences."""
    drawn = random.sample(losses, len(losses))
    means = np.cumsum(drawn) / np.arange(1, len(drawn) + 1)
    return np.abs(np.diff(means))


def turn(model: nn.Module, images: np.ndarray, labels: list[int], forwards: int, orders: int) -> dict[str, float]:
    """Seconds of every part, the published ones scaled up to N and P."""
    losses = torch.zeros(N)

    def batched() -> None:
        data = [(normalised(images[i : i + 500]), torch.tensor(labels[i : i + 500])) for i in range(0, N, 500)]
        losses.copy_(per_sample_losses(model, cross_entropy, data))

    part = {"network, ours": seconds(batched)}
    part["network, published"] = seconds(lambda: one_by_one(model, images[:forwards], labels[:forwards])) * N / forwards
    listed = losses.tolist()
    part["orders, published"] = seconds(lambda: [one_order(listed) for _ in range(orders)]) * P / orders
    part["orders, ours"] = seconds(lambda: loss_increments(losses, permutations=P))
    part["closed form, 200 sizes"] = seconds(lambda: expected_increments(losses))
    return part


def main() -> int:
    """Print the table; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forwards", type=int, default=1000, help="batches of one that are measured")
    parser.add_argument("--orders", type=int, default=10, help="published orders that are measured")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.randint(10, (N,)).tolist()
    print(f"Processor seconds for N = {N:,} and P = {P}, median of {args.turns} turns; torch {torch.__version__}\n")
    print("| network | part | published | ours | ratio (lowest) |")
    print("|---|---|---|---|---|")
    medians: dict[str, float] = {}
    for name, (model, shape) in NETWORKS.items():
        images = np.random.default_rng(0).integers(0, 256, (N, *shape), dtype=np.uint8)
        alone = torch.tensor(one_by_one(model, images[:50], labels[:50]))
        together = per_sample_losses(model, cross_entropy, (normalised(images[:50]), torch.tensor(labels[:50])))
        assert (alone - together).abs().max() < 1e-5, "the two sides compute different losses"
        turn(model, images, labels, 20, 1)  # the first calls allocate
        turns = [turn(model, images, labels, args.forwards, args.orders) for _ in range(args.turns)]
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
        closed = statistics.median(part["closed form, 200 sizes"] for part in turns)
        print(f"| {name} | closed form with band, instead of orders | - | {closed:.3g} | - |")
    ratio = medians[PUBLISHED]
    print(f"\nThe curve is {ratio:.1f} times as fast as published; promised {LIMIT}: ", end="")
    print("kept" if ratio >= LIMIT else "BROKEN")
    return int(ratio < LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
