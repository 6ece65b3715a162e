"""From trials to processes: joblib on this machine or a Ray cluster, submitit on Slurm. Existing engines only."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import experiment
from thalweg.lab.files import explained, write_atomic
from thalweg.lab.plan import Request, trials
from thalweg.lab.store import RunFolder, Store
from thalweg.lab.trial import Outcome, execute, execute_together

__all__ = ["cores", "pursue", "unfinished_requests"]

Report = Callable[[Sequence[RunFolder], Iterator[Outcome]], Iterable[Outcome]]


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unfinished_requests(store: Store) -> list[Request]:
    """Requests that were interrupted, oldest first."""
    paths = sorted(store.requests.glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
    return [Request.from_json(path.read_text()) for path in paths]


def pursue(
    requests: Sequence[Request],
    store: Store,
    *,
    jobs: int,
    engine: str = "local",
    data_dir: str | None = None,
    show: Report = lambda folders, outcomes: outcomes,
) -> list[Outcome]:
    """Run what the requests want until nothing is left to run, and return the attempts that failed.

    Plans that look at their own results are asked again after every round. Runs that another process works on are
    left to it and waited for at the end.
    """
    _supply_data(requests, data_dir)
    for wish in requests:
        with explained(store.requests):
            write_atomic(store.requests / wish.name, wish.to_json())
    failures: dict[str, Outcome] = {}
    busy: set[str] = set()
    while True:
        wanted = _wanted(requests, store)
        pending = [folder for folder in wanted if folder.id not in failures]
        free = [folder for folder in pending if folder.id not in busy]
        batch = free or pending
        if not batch:
            break
        outcomes = _map(batch, store, jobs=jobs, engine=engine, data_dir=data_dir, wait=not free)
        busy.clear()
        for outcome in show(batch, outcomes):
            if outcome.kind in ("failed", "refused"):
                failures[outcome.id] = outcome
            elif outcome.kind == "busy":
                busy.add(outcome.id)
    if not failures:
        for wish in requests:
            store.forget(wish.name)
    store.refresh_cache()
    return list(failures.values())


def _supply_data(requests: Sequence[Request], data_dir: str | None) -> None:
    """Find or download every data set before anything starts: one message and one download, not one a run."""
    from thalweg.lab.data.catalogue import fetch

    configs = [trial.config.model_dump() for wish in requests for trial in trials(wish, ())]
    for name in dict.fromkeys(config["data"] for config in configs if "data" in config):
        fetch(name, data_dir=data_dir)


def _wanted(requests: Sequence[Request], store: Store) -> list[RunFolder]:
    """Folders of the trials that the requests want and that are not finished, each once."""
    folders: dict[str, RunFolder] = {}
    for wish in requests:
        results = store.results(experiment(wish.experiment))
        for trial in trials(wish, results):
            folder = store.open(trial.point)
            if folder.result() is None:
                folders[folder.id] = folder
    return list(folders.values())


def _map(
    folders: Sequence[RunFolder], store: Store, *, jobs: int, engine: str, data_dir: str | None, wait: bool
) -> Iterator[Outcome]:
    if engine == "slurm":
        yield from _slurm(folders, store, jobs=jobs, data_dir=data_dir)
        return
    parts = [[folder] for folder in folders] if wait else _parts(folders, jobs)
    from joblib import Parallel, delayed, parallel_config

    task: Callable[..., list[Outcome]] = _execute
    workers = min(jobs, len(parts))
    if engine == "ray":
        _register_ray()
        config = parallel_config(backend="ray", n_jobs=jobs)
    elif workers == 1:
        config = parallel_config(backend="sequential", n_jobs=1)
    else:
        config = parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1)
        task = functools.partial(_attended, os.getpid())
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        with config:
            ended = Parallel(return_as="list" if engine == "ray" else "generator_unordered")(  # Ray's cannot stream
                delayed(task)(str(store.path), [folder.id for folder in part], data_dir=data_dir, wait=wait)
                for part in parts
            )
            for outcomes in ended:
                yield from outcomes
    except TerminatedWorkerError as error:
        raise LabError(
            "a worker process was killed from outside, perhaps for want of memory: go on with `thalweg resume --jobs 1`"
        ) from error


def _parts(folders: Sequence[RunFolder], jobs: int) -> list[list[RunFolder]]:
    """Runs that one program may train together, in parts that share out evenly among the jobs; all others alone."""
    alike: dict[str, list[RunFolder]] = {}
    for folder in folders:
        wanted = experiment(folder.point["experiment"])
        shared = {key: value for key, value in folder.point["config"].items() if key not in wanted.replicas}
        joins = wanted.run_many is not None and not folder.checkpoint.exists()
        key = json.dumps([wanted.name, folder.point["seed"], shared], sort_keys=True) if joins else folder.id
        alike.setdefault(key, []).append(folder)
    cuts = next(cuts for cuts in range(1, jobs + 1) if cuts * len(alike) % jobs == 0)
    return [part for group in alike.values() for i in range(cuts) if (part := group[i::cuts])]


def _execute(runs: str, run_ids: Sequence[str], *, data_dir: str | None, wait: bool) -> list[Outcome]:
    if len(run_ids) > 1:
        return execute_together(runs, run_ids, data_dir=data_dir)
    return [execute(runs, run_id, data_dir=data_dir, wait=wait) for run_id in run_ids]


def _attended(parent: int, runs: str, run_ids: Sequence[str], *, data_dir: str | None, wait: bool) -> list[Outcome]:
    """`_execute` in a worker process that ends when its parent does: an orphan would go on through the whole queue."""
    _watch(parent)
    return _execute(runs, run_ids, data_dir=data_dir, wait=wait)


@functools.cache
def _watch(parent: int) -> None:
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # nothing is lost: the run is resumed from its checkpoint

    threading.Thread(target=look, daemon=True).start()


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise LabError("the ray engine needs Ray: pip install 'thalweg[ray]'") from error
    register_ray()


def _slurm(folders: Sequence[RunFolder], store: Store, *, jobs: int, data_dir: str | None) -> Iterator[Outcome]:
    """One Slurm job a trial, at most ``jobs`` at once; the run folders must lie on a shared file system."""
    try:
        import submitit
    except ImportError as error:
        raise LabError("the slurm engine needs submitit: pip install 'thalweg[slurm]'") from error
    if shutil.which("sbatch") is None:
        raise LabError("the slurm engine needs Slurm, but there is no sbatch here: run this on a login node")
    executor = submitit.AutoExecutor(folder=str(store.path / "slurm"))
    executor.update_parameters(slurm_array_parallelism=jobs, cpus_per_task=1, timeout_min=24 * 60)
    task = functools.partial(execute, str(store.path), data_dir=data_dir, wait=True)
    for job in executor.map_array(task, [folder.id for folder in folders]):
        yield job.result()
