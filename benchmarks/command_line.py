"""What the command line costs before any training: help, the list of experiments, the state of a thousand runs.

Run as ``python -m benchmarks.command_line``. Every command is a fresh process; its processor time is user + system of
that process, its wall time is the clock's, and the minimum of the repeats counts: a shared machine only adds.

The promises checked here: ``--help`` takes under 0.3 processor seconds, ``status`` of 1,000 runs under 1 s by either
clock, and none of the commands imports torch.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from thalweg.lab.experiment import experiment
from thalweg.lab.store import Store
from thalweg.lab.trial import Log

PROGRAM = "from thalweg.lab.cli import main; main()"
SPY = f"""
import sys
try:
    {PROGRAM}
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
COMMANDS = {  # words -> most processor seconds, most wall seconds
    ("--help",): (0.3, None),
    ("list",): (None, None),
    ("status",): (1.0, 1.0),
}


def fill(store: Store, runs: int) -> None:
    """Runs of one experiment, every other one finished, each with three rows of metrics."""
    wanted = experiment("csgd-autoencoder")
    for k in range(runs):
        config = wanted.settings("quick", lr=(k + 1) / 1000)
        point = {"experiment": wanted.name, "version": wanted.version, "config": config.model_dump(mode="json")}
        folder = store.open({**point, "seed": 0})
        log = Log(folder)
        for epoch in range(3):
            log.row(epoch=epoch, train_loss=1 / (epoch + 1), test_mse=15.0, lr=config.model_dump()["lr"], seconds=epoch)
        if k % 2:
            folder.write_result({"outcome": "finished", "values": {"train_loss": 0.5}, "seconds": 3.0})
    assert len(store.folders()) == runs, "some runs were defined by the same settings"


def start(program: str, words: tuple[str, ...], runs: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line on the store and insist that it ends well."""
    environment = {**os.environ, "THALWEG_RUNS": str(runs)}
    return subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=True
    )


def measure(words: tuple[str, ...], runs: Path) -> tuple[float, float]:
    """Processor seconds of the child and wall seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    start(PROGRAM, words, runs)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def imports_torch(words: tuple[str, ...], runs: Path) -> bool:
    return start(SPY, words, runs).stderr.split()[-1] == "True"


def main() -> int:
    """Print the table; the exit status says whether the promises are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="stored runs")
    parser.add_argument("--rounds", type=int, default=7, help="repeats of each command")
    args = parser.parse_args()
    kept = True
    with tempfile.TemporaryDirectory() as path:
        runs = Path(path)
        fill(Store(runs), args.runs)
        print(f"Best of {args.rounds} fresh processes; a store of {args.runs} runs\n")
        print("| command | processor, s | wall, s | promised | imports torch |\n|---|---|---|---|---|")
        for words, limits in COMMANDS.items():
            samples = [measure(words, runs) for _ in range(args.rounds)]
            best = tuple(min(column) for column in zip(*samples, strict=True))
            torch = imports_torch(words, runs)
            promised = [
                f"{clock} < {limit:g}"
                for clock, limit in zip(("processor", "wall"), limits, strict=True)
                if limit is not None
            ]
            kept = kept and not torch
            kept = kept and all(limit is None or value < limit for value, limit in zip(best, limits, strict=True))
            cells = (f"`thalweg {' '.join(words)}`", f"{best[0]:.2f}", f"{best[1]:.2f}", ", ".join(promised) or "none")
            print("| " + " | ".join(cells) + f" | {'YES' if torch else 'no'} |")
    print(f"\nPromises: {'kept' if kept else 'BROKEN'}")
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
