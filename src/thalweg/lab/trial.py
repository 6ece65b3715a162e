"""One run: its identity, its random draws, its log, and its execution behind a lock."""

from __future__ import annotations

import hashlib
import json
import platform
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import thalweg
from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Ending, Experiment, Settings, experiment
from thalweg.lab.files import explained
from thalweg.lab.store import RunFolder, Store

if TYPE_CHECKING:
    import torch

__all__ = ["Log", "Outcome", "Trial", "execute", "execute_together"]


@dataclass(frozen=True)
class Trial:
    """Experiment, version, resolved settings and seed: equal trials have equal results."""

    experiment: str
    version: int
    config: Settings
    seed: int
    data_dir: Path | None = None
    runs: Path | None = None

    @property
    def point(self) -> dict[str, Any]:
        """The state point; where the data lie is not a part of it."""
        config = self.config.model_dump(mode="json")
        return {"experiment": self.experiment, "version": self.version, "config": config, "seed": self.seed}

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on the seed and the purpose only.

        Runs of one seed draw the same initial weights and the same batch order, whatever else they differ in.
        """
        import torch

        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def sibling(self, **changes: Any) -> Path:
        """The checkpoint of the finished run that differs from this one in ``changes`` only: a tree's parent.

        Raises:
            LabError: that run is not finished, or its checkpoint is gone.
        """
        parent = replace(self, config=self.config.model_copy(update=changes))
        folder = Store(self.runs).open(parent.point)
        if folder.result() is None or not folder.checkpoint.exists():
            told = ", ".join(f"{key}={value}" for key, value in changes.items())
            raise LabError(f"this run continues run {folder.id} ({told}), which is not there: run that one first")
        return folder.checkpoint


class Log:
    """What a run writes while it works: metrics rows, warnings, the place of its checkpoint."""

    def __init__(self, folder: RunFolder) -> None:
        self.checkpoint = folder.checkpoint
        self.rows = folder.rows
        self._path = folder.metrics

    def row(self, **values: float) -> None:
        """Append one line of metrics; numbers that are not finite are written as null."""
        plain = {key: value if abs(value) < float("inf") else None for key, value in values.items()}
        self._append(plain)

    def warn(self, text: str) -> None:
        """Append a warning; the report shows it."""
        self._append({"warning": text})

    def mark(self) -> int:
        """The length of the metrics so far, for `rewind`."""
        return self._path.stat().st_size if self._path.exists() else 0

    def rewind(self, mark: int) -> None:
        """Drop what was written after ``mark``: a resumed run writes it again."""
        if self.mark() > mark:
            with open(self._path, "r+b") as file:
                file.truncate(mark)

    def _append(self, row: Mapping[str, Any]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a run ended: "done", "already done", "busy", "failed" (a bug), "refused" (a `LabError`).

    ``message`` is the error's, or the run's outcome when it is done.
    """

    id: str
    kind: str
    message: str = ""


def execute(runs: str, run_id: str, *, data_dir: str | None = None, wait: bool = False) -> Outcome:
    """Run one trial to its end, unless it has ended already; called in worker processes.

    Args:
        runs: the store's folder.
        run_id: the run.
        data_dir: where to look for data first.
        wait: when another process works on the run, wait for it instead of answering "busy".
    """
    from filelock import Timeout

    try:
        folder = Store(runs).get(run_id)
        with explained(folder.path), folder.lock().acquire(timeout=-1 if wait else 0):
            if folder.result() is not None:
                return Outcome(run_id, "already done")
            return _attempt(folder, Path(data_dir) if data_dir else None, Path(runs))
    except Timeout:
        return Outcome(run_id, "busy")
    except LabError as error:
        return Outcome(run_id, "refused", str(error))


def execute_together(runs: str, run_ids: Sequence[str], *, data_dir: str | None = None) -> list[Outcome]:
    """`execute` for runs of one experiment that may be trained as one program; each keeps its folder and its lock.

    Runs that another process works on, have ended or have begun are left to `execute`. So are all if the common
    attempt fails: each then goes on from its checkpoint, and says by itself what is wrong.
    """
    ended: list[Outcome] = []
    with ExitStack() as held, suppress(Exception):
        folders = [folder for folder in map(Store(runs).get, run_ids) if _acquired(folder, held)]
        fresh = [folder for folder in folders if folder.result() is None and not folder.checkpoint.exists()]
        if len(fresh) > 1:
            _run_many(fresh, Path(data_dir) if data_dir else None, Path(runs))
            ended = [Outcome(folder.id, "done", (folder.result() or {})["outcome"]) for folder in fresh]
    done = {outcome.id for outcome in ended}
    return ended + [execute(runs, run_id, data_dir=data_dir) for run_id in run_ids if run_id not in done]


def _acquired(folder: RunFolder, held: ExitStack) -> bool:
    from filelock import Timeout

    try:
        held.enter_context(folder.lock().acquire(timeout=0))
    except Timeout:
        return False
    return True


def _run_many(folders: Sequence[RunFolder], data_dir: Path | None, runs: Path) -> None:
    known = [_trial(folder, data_dir, runs) for folder in folders]
    run_experiment, _ = known[0]
    assert run_experiment.run_many is not None
    started = time.time()
    endings = run_experiment.run_many([trial for _, trial in known], [_fresh_log(folder) for folder in folders])
    for folder, ending in zip(folders, endings, strict=True):
        _finish(folder, ending, started)


def _attempt(folder: RunFolder, data_dir: Path | None, runs: Path) -> Outcome:
    run_experiment, trial = _trial(folder, data_dir, runs)
    try:
        with explained(folder.path):
            started = time.time()
            _finish(folder, run_experiment.run(trial, _fresh_log(folder)), started)
    except LabError as error:
        _note_failure(folder, str(error))
        raise
    except Exception as error:
        _note_failure(folder, traceback.format_exc())
        return Outcome(folder.id, "failed", f"{type(error).__name__}: {error} (details in {folder.error})")
    result = folder.result()
    return Outcome(folder.id, "done", result["outcome"] if result else "")


def _trial(folder: RunFolder, data_dir: Path | None, runs: Path) -> tuple[Experiment, Trial]:
    import torch

    torch.set_num_threads(1)  # results are bit-identical for equal thread counts only
    run_experiment = experiment(folder.point["experiment"])
    if folder.point["version"] != run_experiment.version:
        raise LabError(
            f"run {folder.id} belongs to version {folder.point['version']} of {run_experiment.name}, which is now at "
            f"{run_experiment.version}: remove it with `thalweg rm {folder.id}`"
        )
    config = run_experiment.config(**folder.point["config"])
    version, seed = run_experiment.version, folder.point["seed"]
    return run_experiment, Trial(run_experiment.name, version, config, seed, data_dir, runs)


def _fresh_log(folder: RunFolder) -> Log:
    for litter in folder.path.glob(".*.part"):  # of an attempt that was killed while it wrote
        litter.unlink()
    log = Log(folder)
    if not folder.checkpoint.exists():
        log.rewind(0)
    return log


def _finish(folder: RunFolder, ending: Ending, started: float) -> None:
    folder.write_result(
        {
            "outcome": ending.outcome,
            "values": dict(ending.values),
            "seconds": ending.seconds,
            "started": started,
            "finished": time.time(),
            "environment": environment() | {f"data: {name}": mark for name, mark in ending.data.items()},
        }
    )


def _note_failure(folder: RunFolder, text: str) -> None:
    with suppress(OSError):  # a full disk must not hide the error itself
        folder.error.write_text(text)


def environment() -> dict[str, Any]:
    """What the numbers were made with."""
    import numpy
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "thalweg": thalweg.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": torch.get_num_threads(),
    }
