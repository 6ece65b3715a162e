"""What the frame penalty costs in training: ratios to forward and backward of the layers it regularizes.

Run as ``python -m benchmarks.frame_penalty``. The layers are all 3 x 3 convolutions of ResNet-34 for CIFAR with batch
128; each distinct layer is measured once and counted as often as it occurs. Rivals take turns in one loop, a sample is
processor time (wall time on an accelerator, synchronised), and the minimum counts. The penalty does not depend on the
batch: at 512 its ratios are a quarter.

Promises checked on a CPU: exact penalty and gradient at most 1.1 of the layers; 0.15 in the cheap settings of training,
``every=4`` (no noise) and ``sample=1/8`` (its noise is measured); 0.1 in the spectral form with its default probes. On
any device: no dependence on the map's size, 8 to 64, beyond 10 %; the dense definition, whose matrix is the layer's
answers to unit images, at least 100 times slower for 512 channels on a 4 x 4 map, which takes minutes on a CPU
(``--dense-channels 0`` leaves it out). Filled in from the taps that matrix costs less; its Gram matrix with gradient
alone has 98 times the multiply-adds of the exact form. On an accelerator the cost ratios are printed only: there
launching kernels takes the time, not their arithmetic.

The exit status is 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.autograd import grad

from benchmarks.clock import peak_memory, plain_arithmetic, seconds
from thalweg.operators import LayerOperator
from thalweg.regularize.frame import FrameRegularizer

LAYERS = [  # in, out, map, stride, how often
    (3, 64, 32, 1, 1),
    (64, 64, 32, 1, 6),
    (64, 128, 32, 2, 1),
    (128, 128, 16, 1, 7),
    (128, 256, 16, 2, 1),
    (256, 256, 8, 1, 11),
    (256, 512, 8, 2, 1),
    (512, 512, 4, 1, 5),
]
SETTINGS: dict[str, dict[str, object]] = {
    "exact": {},
    "interior": {"boundary": "interior"},
    "sample 1/8": {"sample": 1 / 8},
    "spectral": {"form": "spectral"},
    "spectral, 4 probes": {"form": "spectral", "probes": 4},
    "spectral, 8 probes": {"form": "spectral", "probes": 8},
}
PROMISES = {("exact", 1): 1.1, ("exact", 4): 0.15, ("sample 1/8", 1): 0.15, ("spectral", 1): 0.1}  # (setting, every)


def penalty_step(conv: nn.Conv2d, size: int, options: dict[str, object]) -> Callable[[], object]:
    penalty = FrameRegularizer(0.5, 2.0, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]
    penalty.prepare(conv, torch.zeros(1, conv.in_channels, size, size, device=conv.weight.device))
    return lambda: grad(penalty(conv), conv.weight)


def contestants(layer: tuple[int, ...], batch: int, device: str) -> dict[str, Callable[[], object]]:
    """Forward and backward of one layer, and its penalties."""
    inputs, outputs, size, stride, _ = layer
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, device=device)
    nn.init.kaiming_normal_(conv.weight)
    x = torch.randn(batch, inputs, size, size, device=device, requires_grad=True)
    y = torch.randn_like(conv(x))
    runs: dict[str, Callable[[], object]] = {"layer": lambda: grad(conv(x), (x, conv.weight), y)}
    return runs | {name: penalty_step(conv, size, options) for name, options in SETTINGS.items()}


def measure(runs: dict[str, Callable[[], object]], *, device: str, rounds: int, warm: bool = True) -> dict[str, float]:
    """Minimum seconds of each, over interleaved rounds; a first one, which allocates, counts only without ``warm``."""
    best = dict.fromkeys(runs, float("inf"))
    for done in range(rounds + 1):
        for name, run in runs.items():
            time = seconds(run, device)
            if done or not warm:
                best[name] = min(best[name], time)
    return best


def peak(run: Callable[[], object], device: str) -> float:
    """MiB allocated at the same time by one call, from torch's own record of allocations."""
    if device != "cpu":
        return peak_memory(run)
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    now = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 2**20


def noise(options: dict[str, object], device: str, *, draws: int, rounds: int) -> float:
    """Standard deviation, relative to the gradient, of the mean gradient of so many draws: 64 channels, 8 x 8, He's."""
    conv = nn.Conv2d(64, 64, 3, 1, 1, bias=False, device=device)
    nn.init.kaiming_normal_(conv.weight)
    draw = penalty_step(conv, 8, options)
    means = torch.stack([torch.stack([draw()[0] for _ in range(draws)]).mean(0) for _ in range(rounds)])  # type: ignore[index]
    center = means.mean(0)
    variance = (means - center).square().sum() / (rounds - 1)
    # The norm of the mean has its own share of noise.
    return float((variance / (center.square().sum() - variance / rounds)).sqrt())


def dense_ratios(channels: int, device: str) -> dict[str, float]:
    """Dense definition over exact penalty, both with gradient, on a 4 x 4 map.

    The matrix W is the layer's answers to unit images, as the definition reads, or is filled in from the taps.
    """
    conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False, device=device)
    operator = LayerOperator.of(conv, (channels, 4, 4))
    units = torch.eye(16 * channels, device=device).view(-1, channels, 4, 4)

    def dense(matrix: Callable[[], torch.Tensor]) -> object:
        W = matrix()
        V = W.mT @ W
        v = V.diagonal()
        off = V.abs().sum(1) - v
        return grad(((v - off - 0.5).clamp(max=0) ** 2 + (2.0 - v - off).clamp(max=0) ** 2).mean(), conv.weight)

    exact = measure({"exact": penalty_step(conv, 4, {})}, device=device, rounds=2)["exact"]
    on_cpu = device == "cpu"  # where one run of a minute is enough
    runs: dict[str, Callable[[], object]] = {
        "unit images": lambda: dense(lambda: conv(units).flatten(1).mT),
        "taps": lambda: dense(operator.dense),
    }
    times = measure(runs, device=device, rounds=0 if on_cpu else 2, warm=not on_cpu)
    return {name: time / exact for name, time in times.items()}


def main() -> int:
    """Print the tables; the exit status says whether the promises are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dense-channels", type=int, default=512, help="fewer for a quicker, less telling comparison; 0: none"
    )
    args = parser.parse_args()
    plain_arithmetic()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "the Gershgorin form will shrink")  # He's initialization is timed, not trained
    columns = ["layer", *SETTINGS]
    total = dict.fromkeys(columns, 0.0)
    print(f"Milliseconds (ratio to the layer); batch {args.batch}, {args.device}, torch {torch.__version__}\n")
    print("| in, out, map, stride | times | layer | " + " | ".join(SETTINGS) + " | peak MiB: exact, spectral |")
    print("|---" * (4 + len(SETTINGS)) + "|")
    for layer in LAYERS:
        runs = contestants(layer, args.batch, args.device)
        best = measure(runs, device=args.device, rounds=args.rounds)
        memory = f"{peak(runs['exact'], args.device):.0f}, {peak(runs['spectral'], args.device):.0f}"
        cells = [", ".join(map(str, layer[:4])), str(layer[4]), f"{best['layer'] * 1e3:.0f}"]
        cells += [f"{best[name] * 1e3:.3g} ({best[name] / best['layer']:.3g})" for name in SETTINGS]
        print(f"| {' | '.join(cells)} | {memory} |")
        total = {name: total[name] + layer[4] * best[name] for name in columns}
    ratio = {name: value / total["layer"] for name, value in total.items()}
    print(
        f"| **all** | 33 | {total['layer'] * 1e3:.0f} | "
        + " | ".join(f"**{ratio[name]:.3f}**" for name in SETTINGS)
        + " | |"
    )

    def verdict(holds: bool) -> str:
        return "kept" if holds else "BROKEN"

    kept = []
    print()
    for (name, every), limit in PROMISES.items():
        cost = ratio[name] / every
        if args.device == "cpu" and args.batch == 128:
            kept.append(cost <= limit)
            print(f"{name}, every={every}: {cost:.3f}, promised {limit}: {verdict(kept[-1])}")
        else:
            print(f"{name}, every={every}: {cost:.3f} (promised {limit} for batch 128 on a CPU)")
    for name in ("sample 1/8", "spectral"):
        one, eight = (noise(SETTINGS[name], args.device, draws=n, rounds=30) for n in (1, 8))
        print(
            f"{name}, 64 channels on 8 x 8: the standard deviation of a gradient is {one:.2f} of the gradient's norm, "
            f"of the mean of 8 steps {eight:.2g}"
        )

    sizes = (8, 64)
    convs = [nn.Conv2d(128, 128, 3, 1, 1, bias=False, device=args.device) for _ in sizes]
    maps = {str(size): penalty_step(conv, size, {}) for size, conv in zip(sizes, convs, strict=True)}
    times = measure(maps, device=args.device, rounds=4 * args.rounds)
    growth = times["64"] / times["8"]
    kept.append(0.9 <= growth <= 1.1)
    print(f"128 channels, map 64 against 8: {growth:.2f}, promised within 10 %: {verdict(kept[-1])}")

    if args.dense_channels:
        slower = dense_ratios(args.dense_channels, args.device)
        kept.append(slower["unit images"] >= 100 or args.dense_channels < 512)
        promise = f"promised 100: {verdict(kept[-1])}" if args.dense_channels >= 512 else "100 promised for 512"
        print(
            f"dense definition, {args.dense_channels} channels on 4 x 4: {slower['unit images']:.0f} times slower, "
            f"{promise}; with W filled in from the taps {slower['taps']:.0f} times"
        )
    return int(not all(kept))


if __name__ == "__main__":
    raise SystemExit(main())
