"""Every sample's Gauss-Newton matrix and the exact trace, in gradients, against Hutchinson's estimate of the trace.

Run as ``python -m benchmarks.per_sample``. Network, data and clock are those of ``benchmarks.curvature``: 92,939
parameters, 500 images of CIFAR-10 (``THALWEG_DATA``; random images where there is none), one thread, rivals in turns,
median time. Hutchinson takes 100 products from a double backward pass whose first half is kept, the cheapest
plain way. What both reach is stated: the exact trace has float32's error, checked in float64; Hutchinson's standard
error comes from its own samples, and with it the products that 1% would take.

The promises checked here, made for CPUs: per_sample_ggn costs at most 14 gradients, and the exact trace at most 1/12 of
Hutchinson.
"""

from __future__ import annotations

import argparse
import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.clock import plain_arithmetic
from benchmarks.curvature import images, timed, trained
from thalweg.curvature.exact_trace import exact_trace
from thalweg.curvature.per_sample import per_sample_ggn

GRADIENTS, RATIO = 14.0, 12.0


def gradient(model: nn.Module, x: Tensor, y: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()), create_graph=create_graph)


def hutchinson(model: nn.Module, x: Tensor, y: Tensor, products: int) -> tuple[float, float]:
    """Mean of vᵀHv over random signs, and its standard error."""
    draw = torch.Generator().manual_seed(0)
    params, grads = list(model.parameters()), gradient(model, x, y, create_graph=True)
    values = []
    for _ in range(products):
        v = [torch.randint(2, p.shape, generator=draw).to(p) * 2 - 1 for p in params]
        Hv = torch.autograd.grad(grads, params, v, retain_graph=True)
        values.append(sum(float((a * b).sum()) for a, b in zip(v, Hv, strict=True)))
    samples = torch.tensor(values, dtype=torch.float64)
    return float(samples.mean()), float(samples.std() / math.sqrt(products))


def main() -> int:
    """Print the table; the exit status says whether the promises are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--products", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100, help="of training before the measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    plain_arithmetic()
    x, y, source = images(args.samples)
    x, y = x.to(args.device), y.to(args.device)
    model = trained(x, y, args.steps)

    exact_name, rival = "exact_trace", f"Hutchinson, {args.products} products"
    seconds = timed(
        {
            "gradient": lambda: gradient(model, x, y),
            "per_sample_ggn": lambda: per_sample_ggn(model, cross_entropy, (x, y)),
            exact_name: lambda: exact_trace(model, cross_entropy, (x, y)),
            rival: lambda: hutchinson(model, x, y, args.products),
        },
        args.rounds,
        args.device,
    )
    value = exact_trace(model, cross_entropy, (x, y))
    truth = exact_trace(copy.deepcopy(model).double(), cross_entropy, (x.double(), y))
    estimate, error = hutchinson(model, x, y, args.products)
    needed = args.products * (error / (0.01 * truth)) ** 2
    reached = {
        "per_sample_ggn": "every norm, trace and eigenvalue, exactly",
        exact_name: f"{value:.6g}, off by {abs(value / truth - 1):.0e}",
        rival: f"{estimate:.4g}, off by {abs(estimate / truth - 1):.1%}; standard error {error / truth:.1%}",
    }
    print(f"{args.samples} of {source}; {args.device}, torch {torch.__version__}\n")
    print("| | gradients | ms | reached |\n|---|---|---|---|")
    for name, time in seconds.items():
        print(f"| {name} | {time / seconds['gradient']:.1f} | {time * 1e3:.3g} | {reached.get(name, '')} |")
    cost, ratio = seconds["per_sample_ggn"] / seconds["gradient"], seconds[rival] / seconds[exact_name]
    print(f"\nA standard error of 1% would take Hutchinson about {needed:.0f} products.")
    kept = cost <= GRADIENTS and ratio >= RATIO
    print(
        f"per_sample_ggn takes {cost:.1f} gradients; promised {GRADIENTS:.0f}. The exact trace is {ratio:.0f} times "
        f"cheaper than {rival}; promised {RATIO:.0f}: {'kept' if kept else 'BROKEN'}"
    )
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
