"""Run folders: a signac project in which a run is a folder named by the hash of what defines it.

    signac_statepoint.json   experiment, version, config, seed: what defines the run
    metrics.jsonl            one JSON object a line, append-only
    checkpoint.pt            the training state, replaced atomically
    result.json              written last, atomically: its presence is what "finished" means
    error.txt                why the last attempt failed, if it did
    lock                     held by the process that works on the run

Folders are the truth. signac's cache of state points only speeds up queries; deleted or broken, it is rebuilt.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Experiment, Result
from thalweg.lab.files import explained, write_atomic

__all__ = ["STATES", "RunFolder", "Store"]

STATES = ("finished", "diverged", "dead", "failed", "running", "interrupted", "planned")


@dataclass(frozen=True)
class RunFolder:
    """One run's folder and its state point."""

    path: Path
    point: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def error(self) -> Path:
        return self.path / "error.txt"

    def lock(self) -> Any:
        """A filelock on the run; the operating system drops it when its holder dies."""
        from filelock import FileLock

        return FileLock(self.path / "lock")

    def result(self) -> dict[str, Any] | None:
        """The contents of result.json, or None while the run is not finished."""
        try:
            text = (self.path / "result.json").read_text()
        except FileNotFoundError:
            return None
        try:
            result: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise self._damaged("result.json") from error
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Finish the run."""
        write_atomic(self.path / "result.json", json.dumps(_plain(result), indent=1, allow_nan=False) + "\n")
        self.error.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics; a last line torn by a kill is left out, as the resumed run writes it again."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().split("\n")
        try:
            return [json.loads(line) for line in lines[:-1]]
        except json.JSONDecodeError as error:
            raise self._damaged("metrics.jsonl") from error

    def state(self) -> str:
        """One of `STATES`."""
        result = self.result()
        if result is not None:
            return str(result["outcome"])
        if self._held():
            return "running"
        if self.error.exists():
            return "failed"
        return "interrupted" if self.metrics.exists() else "planned"

    def progress(self) -> float:
        """The share of the epochs done, from the last metrics row."""
        epochs = self.point["config"].get("epochs")
        rows = self.rows() if epochs else []
        return next((row["epoch"] / epochs for row in reversed(rows) if "epoch" in row), 0.0)

    def _held(self) -> bool:
        from filelock import Timeout

        if not (self.path / "lock").exists():
            return False
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True

    def _damaged(self, name: str) -> LabError:
        return LabError(
            f"run {self.id}: {name} is damaged and cannot be read: remove the run with `thalweg rm {self.id}` and "
            "run its experiment again"
        )


class Store:
    """All runs below one folder: ``$THALWEG_RUNS``, or ``runs`` in the working folder."""

    def __init__(self, path: Path | str | None = None, *, create: bool = True) -> None:
        import signac
        from filelock import FileLock

        self.path = Path(path or os.environ.get("THALWEG_RUNS") or "runs").absolute()
        if not create and not self.path.is_dir():
            raise LabError(f"there are no runs in {self.path}: start some with `thalweg run`, or set THALWEG_RUNS")
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")  # signac would read what another process has half written
            with self._lock:
                self._project = signac.init_project(str(self.path))
            self.requests.mkdir(exist_ok=True)
            self._drop_broken_cache()

    @property
    def requests(self) -> Path:
        return self.path / "requests"

    def open(self, point: Mapping[str, Any]) -> RunFolder:
        """The run's folder, made if it is new."""
        job = self._project.open_job(dict(point))
        with explained(self.path), self._readable(job.id), self._lock:
            job.init()
        return RunFolder(Path(job.path), point)

    def get(self, run_id: str) -> RunFolder:
        """The run whose id is, or alone begins with, ``run_id``."""
        ids = [name for name in self._ids() if name.startswith(run_id)]
        if len(ids) != 1:
            count = "no run has" if not ids else f"{len(ids)} runs have"
            raise LabError(f"{count} an id that begins with {run_id!r}: `thalweg status --runs` lists them")
        return self._folder(ids[0])

    def folders(self, experiment: str | None = None) -> list[RunFolder]:
        """Every run, or those of one experiment."""
        folders = [self._folder(run_id) for run_id in self._ids()]
        return [folder for folder in folders if experiment in (None, folder.point["experiment"])]

    def results(self, experiment: Experiment) -> list[Result]:
        """The finished runs of an experiment's present version."""
        return list(self._results(experiment))

    def _results(self, experiment: Experiment) -> Iterator[Result]:
        for folder in self.folders(experiment.name):
            if folder.point["version"] != experiment.version or (result := folder.result()) is None:
                continue
            rows = folder.rows()
            yield Result(
                id=folder.id,
                config=experiment.config(**folder.point["config"]),
                seed=folder.point["seed"],
                outcome=result["outcome"],
                values=_numbers(result["values"]),
                rows=[_numbers(row) for row in rows if "warning" not in row],
                seconds=result["seconds"],
                warnings=[row["warning"] for row in rows if "warning" in row],
                environment=result["environment"],
            )

    def remove(self, folders: Iterable[RunFolder]) -> None:
        """Delete runs; one that is being worked on is refused."""
        for folder in folders:
            if folder._held():
                raise LabError(f"run {folder.id} is running in another process: stop that process first")
            with explained(folder.path):
                shutil.rmtree(folder.path)

    def forget(self, name: str) -> None:
        """Drop a request."""
        (self.requests / name).unlink(missing_ok=True)

    def refresh_cache(self) -> None:
        """Bring signac's cache of state points up to date."""
        with self._lock:
            self._project.update_cache()

    def _drop_broken_cache(self) -> None:
        cache = Path(self._project.fn(self._project.FN_CACHE))
        try:
            if cache.exists():
                json.loads(gzip.decompress(cache.read_bytes()))
        except (OSError, EOFError, ValueError):
            cache.unlink(missing_ok=True)  # signac would refuse every query; it is rebuilt by `refresh_cache`

    def _ids(self) -> list[str]:
        workspace = Path(self._project.workspace)
        if not workspace.is_dir():
            return []
        begun = (entry for entry in workspace.iterdir() if any(entry.iterdir()))  # empty: killed while it was made
        return sorted(entry.name for entry in begun)

    def _folder(self, run_id: str) -> RunFolder:
        with self._readable(run_id):
            return RunFolder(Path(self._project.workspace) / run_id, self._project.open_job(id=run_id).statepoint())

    @contextmanager
    def _readable(self, run_id: str) -> Iterator[None]:
        """Name the run and the cure when its state point is torn."""
        from signac.errors import JobsCorruptedError

        try:
            yield
        except (JobsCorruptedError, json.JSONDecodeError, KeyError) as error:
            folder = Path(self._project.workspace) / run_id
            raise LabError(
                f"run {run_id}: its state point is damaged: delete {folder} and run its experiment again"
            ) from error


def _plain(value: Any) -> Any:
    """JSON's values only: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items()}
