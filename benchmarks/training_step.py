"""What the laboratory adds to a training step: `fit` over a loop that a person would write by hand.

Run as ``python -m benchmarks.training_step``. Both train the autoencoder of seed 000, section 4.1, by SGD on synthetic
images; `fit` also writes its metrics and takes its checkpoints. After every epoch of `fit` the loop by hand does the
same epoch, on one thread, or on the accelerator that `fit` takes where there is one; a sample is processor time (there
wall time), and the median of the paired ratios counts. What `fit` does once, setting up and ending, takes some 6 ms and
is left out.

The promise checked here, made for CPUs: an epoch of `fit` takes at most 1.05 times as long at batch sizes 32 and 128.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import SGD

from thalweg.lab.data.batches import Batches
from thalweg.lab.store import RunFolder
from thalweg.lab.training.loop import device, fit
from thalweg.lab.trial import Log
from thalweg.nn import Autoencoder

LIMIT = 1.05
LR = 0.1


def by_hand(images: Tensor, batch: int) -> Iterator[float]:
    """The plain kind of loop; yields the mean loss of every epoch."""
    generator = torch.Generator().manual_seed(0)
    model = Autoencoder((1, 28, 28), generator=generator).to(images.device)
    optimizer = SGD(model.parameters(), lr=LR)
    while True:
        total = 0.0
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for i in range(0, len(images), batch):
            inputs = images[order[i : i + batch]]
            optimizer.zero_grad()
            loss = mse_loss(model(inputs), inputs)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(inputs)
        yield total / len(images)


def compare(images: Tensor, batch: int, epochs: int) -> tuple[float, float, float]:
    """Median seconds of a step by hand and in `fit`, and the median ratio; the first epoch warms up."""
    generator = torch.Generator().manual_seed(0)
    model = Autoencoder((1, 28, 28), generator=generator)
    model.to(images.device)  # before the optimizer sees its parameters
    rival, losses = by_hand(images, batch), []
    now = time.process_time if images.device.type == "cpu" else time.perf_counter  # both loops end an epoch by reading
    clock = [now()]  # turns: `fit` ends an epoch, the hand ends one, `fit` ends one, …

    def turn(epoch: int) -> dict[str, float]:
        clock.append(now())
        losses.append(next(rival) if epoch else 0.0)
        clock.append(now())
        return {}

    with tempfile.TemporaryDirectory() as path:
        log = Log(RunFolder(Path(path), {}))
        batches = Batches(images, images, batch_size=batch, generator=generator)
        fit(model, [SGD(model.parameters(), lr=LR)], mse_loss, batches, epochs=epochs + 1, log=log, measure=turn)
        rows = log.rows()
    assert [row["train_loss"] for row in rows[1:]] == losses[1:], "the two loops do not train alike, bit for bit"
    times = [later - earlier for earlier, later in itertools.pairwise(clock)]
    fitted, hand = times[4::2], times[5::2]  # after row 0 and the first epoch
    steps = -(-len(images) // batch)
    ratio = statistics.median(a / b for a, b in zip(fitted, hand, strict=True))
    return statistics.median(hand) / steps, statistics.median(fitted) / steps, ratio


def main() -> int:
    """Print the table; the exit status says whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000, help="synthetic images in an epoch")
    parser.add_argument("--epochs", type=int, default=15, help="pairs of epochs for each batch size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.rand(args.images, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(device())

    print(f"One training step on {device()}; {args.images} images an epoch, torch {torch.__version__}\n")
    print("| batch | by hand, ms | fit, ms | ratio |\n|---|---|---|---|")
    worst = 0.0
    for batch in (32, 128):
        hand, fitted, ratio = compare(images, batch, args.epochs)
        print(f"| {batch} | {hand * 1e3:.3f} | {fitted * 1e3:.3f} | {ratio:.3f} |", flush=True)
        worst = max(worst, ratio)
    print(f"\nfit is at most {worst:.3f} times as slow; promised {LIMIT}: {'kept' if worst <= LIMIT else 'BROKEN'}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
