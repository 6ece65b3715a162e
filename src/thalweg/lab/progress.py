"""What a person sees while runs go on: a bar, and how far each running one has come."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import experiment
from thalweg.lab.store import RunFolder
from thalweg.lab.trial import Outcome

__all__ = ["follow"]

REFRESH = 0.5  # seconds between looks at the metrics files


def follow(folders: Sequence[RunFolder], outcomes: Iterator[Outcome]) -> Iterable[Outcome]:
    """Pass the outcomes on, drawing a progress bar on a terminal and printing a line a run elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    count = TextColumn("{task.completed:.1f} of {task.total} runs")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    by_id = {folder.id: folder for folder in folders}
    waiting = dict(by_id)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=len(folders))
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(REFRESH):
                shares = [(folder, folder.progress()) for folder in list(waiting.values())]
                running = [f"{describe(folder)} {share:.0%}" for folder, share in shares if 0 < share < 1]
                done = len(folders) - len(waiting) + sum(share for _, share in shares)
                progress.update(bar, completed=done, description="\n".join(running) or "starting")

        watcher = threading.Thread(target=look, daemon=True)
        if console.is_terminal:
            watcher.start()
        try:
            for ended, outcome in enumerate(outcomes, 1):
                waiting.pop(outcome.id, None)
                progress.update(bar, completed=ended)
                if not console.is_terminal:
                    console.print(f"[{ended}/{len(folders)}] {describe(by_id[outcome.id])}: {said(outcome)}")
                yield outcome
        finally:
            stop.set()


def said(outcome: Outcome) -> str:
    """One word for a line of progress: how a finished run ended, else what became of the attempt."""
    return outcome.message if outcome.kind == "done" else outcome.kind


def describe(folder: RunFolder) -> str:
    """What tells a run from the others: its experiment, the settings that are not the preset's, its seed."""
    config = folder.point["config"]
    try:
        wanted = experiment(folder.point["experiment"])
        own = wanted.settings(config["preset"]).model_dump(mode="json")
        words = [f"{key}={value}" for key, value in config.items() if key in wanted.sweep or own.get(key) != value]
    except LabError:  # a plugin that is gone
        words = []
    return " ".join([folder.point["experiment"], *words, f"seed={folder.point['seed']}"])
