"""Which runs are given to one process as one program, and what becomes of each when something is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from thalweg.lab import trial
from thalweg.lab.engine import _parts, pursue
from thalweg.lab.experiment import Ending
from thalweg.lab.plan import request, trials
from thalweg.lab.store import RunFolder, Store
from thalweg.lab.trial import Log, Trial, execute_together


def folders(store: Store, *words: str, name: str = "sphere-regimes") -> list[RunFolder]:
    return [store.open(wanted.point) for wanted in trials(request(name, "quick", words), ())]


def sizes(parts: Sequence[Sequence[RunFolder]]) -> list[int]:
    return [len(part) for part in parts]


def test_runs_of_one_seed_that_differ_in_replicas_only_go_together(lab: Path) -> None:
    found = folders(Store(), "seed=0:3", "elr=0.001,0.01,0.1")
    assert sizes(_parts(found, jobs=1)) == [3, 3, 3]
    for part in _parts(found, jobs=1):
        assert len({folder.point["seed"] for folder in part}) == 1
    other = folders(Store(), "seed=0", "elr=0.001,0.01", "width=8")
    assert sizes(_parts(found + other, jobs=1)) == [3, 3, 3, 2]
    found[0].checkpoint.touch()  # begun: it goes on alone
    assert sorted(sizes(_parts(found, jobs=1))) == [1, 2, 3, 3]
    assert sizes(_parts(folders(Store(), "seed=0:2", name="toy"), jobs=1)) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("seeds", "jobs", "expected"),
    [(1, 2, [4, 4]), (3, 2, [4] * 6), (2, 2, [8, 8]), (2, 3, [3, 3, 2] * 2), (1, 9, [1] * 8)],
)
def test_every_job_gets_its_share(lab: Path, seeds: int, jobs: int, expected: list[int]) -> None:
    found = folders(Store(), f"seed=0:{seeds}")
    parts = _parts(found, jobs)
    assert sizes(parts) == expected
    assert sorted(folder.id for part in parts for folder in part) == sorted(folder.id for folder in found)


def ends(trials: Sequence[Trial], logs: Sequence[Log]) -> list[Ending]:
    for log in logs:
        log.row(epoch=1)
    return [Ending({"error": trial.config.model_dump()["x"]}) for trial in trials]


def breaks(trials: Sequence[Trial], logs: Sequence[Log]) -> list[Ending]:
    for log in logs:
        log.row(epoch=1)
    raise MemoryError("too many at once")


@pytest.fixture
def toy(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy can run many at once."""
    import toy_experiment  # type: ignore[import-not-found]

    monkeypatch.setattr(toy_experiment, "REPLICAS", ("x",), raising=False)
    monkeypatch.setattr(toy_experiment, "run_many", ends, raising=False)
    return lab


def test_a_group_leaves_a_result_in_every_folder(toy: Path) -> None:
    store, rounds = Store(), []

    def show(folders, outcomes):  # type: ignore[no-untyped-def]
        for outcome in outcomes:
            rounds.append((outcome.kind, outcome.message))
            yield outcome

    assert pursue([request("toy", "quick", ["seed=0:2"])], store, jobs=1, show=show) == []
    assert rounds == [("done", "finished")] * 4
    values = [(folder.result() or {})["values"]["error"] for folder in store.folders()]
    assert sorted(values) == [1.0, 1.0, 2.0, 2.0]  # as `ends` has it: `run` adds a draw
    assert [row["epoch"] for folder in store.folders() for row in folder.rows()] == [1] * 4


def test_held_finished_and_begun_runs_are_left_to_themselves(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, together = Store(), []

    def noted(trials: Sequence[Trial], logs: Sequence[Log]) -> list[Ending]:
        together.append(len(trials))
        return ends(trials, logs)

    monkeypatch.setattr("toy_experiment.run_many", noted)
    found = folders(store, "seed=0", "x=1,2,3,4,5", name="toy")
    held, finished, begun = found[:3]
    trial.execute(str(store.path), finished.id)
    begun.checkpoint.touch()
    with held.lock():
        outcomes = execute_together(str(store.path), [folder.id for folder in found])
    assert {outcome.id: outcome.kind for outcome in outcomes} == dict(
        zip((folder.id for folder in found), ("busy", "already done", "done", "done", "done"), strict=True)
    )
    assert together == [2]


def test_when_the_common_attempt_fails_each_runs_alone(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy_experiment.run_many", breaks)
    store = Store()
    found = folders(store, "seed=0", "x=1,2", name="toy")
    assert [o.kind for o in execute_together(str(store.path), [folder.id for folder in found])] == ["done", "done"]
    for folder in found:
        assert [row["epoch"] for row in folder.rows()] == [1, 2]  # the common attempt's row is gone
        assert not folder.error.exists()
