from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from thalweg.lab.engine import pursue, unfinished_requests
from thalweg.lab.errors import LabError
from thalweg.lab.plan import request
from thalweg.lab.store import Store


def states(store: Store) -> list[str]:
    return [folder.state() for folder in store.folders()]


def test_a_request_is_kept_until_it_is_done(lab: Path) -> None:
    store = Store()
    good, bad = request("toy", "quick", ["seed=0"]), request("toy", "quick", ["seed=0", "how=crash", "x=1"])
    failures = pursue([good, bad], store, jobs=1)
    assert [failure.kind for failure in failures] == ["failed"]
    assert sorted(states(store)) == ["failed", "finished", "finished"]
    assert {wish.name for wish in unfinished_requests(store)} == {good.name, bad.name}
    assert pursue([good], store, jobs=1) == []
    assert [wish.name for wish in unfinished_requests(store)] == [bad.name]


def test_overlapping_requests_run_a_trial_once(lab: Path) -> None:
    store, seen = Store(), []

    def show(folders, outcomes):  # type: ignore[no-untyped-def]
        seen.extend(folder.id for folder in folders)
        return outcomes

    pursue([request("toy", "quick", ["seed=0:2"]), request("toy", "quick", ["seed=1:3"])], store, jobs=1, show=show)
    assert len(seen) == len(set(seen)) == 6


def test_a_run_that_another_process_works_on_is_left_to_it_and_waited_for(lab: Path) -> None:
    store, rounds = Store(), []
    wish = request("toy", "quick", ["seed=0"])
    first = store.open({"experiment": "toy", "version": 1, "config": _config(), "seed": 0})
    held = first.lock()
    held.acquire()

    def show(folders, outcomes):  # type: ignore[no-untyped-def]
        rounds.append([folder.id for folder in folders])
        for outcome in outcomes:
            if outcome.kind == "busy":
                held.release()
            yield outcome

    assert pursue([wish], store, jobs=1, show=show) == []
    assert [len(ids) for ids in rounds] == [2, 1]
    assert rounds[1] == [first.id]
    assert states(store) == ["finished", "finished"]


def _config() -> dict[str, object]:
    return {"preset": "quick", "x": 1.0, "how": "well", "epochs": 2}


@pytest.mark.slow
def test_slurm_goes_through_submitit_which_falls_back_to_local_processes(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    store = Store()
    with pytest.raises(LabError, match="no sbatch here"):
        pursue([request("toy", "quick", ["seed=0"])], store, jobs=2, engine="slurm")
    monkeypatch.setattr("thalweg.lab.engine.shutil", SimpleNamespace(which=str))  # submitit itself must not see one
    assert pursue([request("toy", "quick", ["seed=0"])], store, jobs=2, engine="slurm") == []
    assert states(store) == ["finished", "finished"]


@pytest.mark.slow
def test_ray_runs_the_same_trials(lab: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'thalweg[ray]'")
    store = Store()
    assert pursue([request("toy", "quick", ["seed=0"])], store, jobs=2, engine="ray") == []
    assert states(store) == ["finished", "finished"]


@pytest.mark.parametrize(("engine", "module", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_an_engine_that_is_not_installed(
    lab: Path, monkeypatch: pytest.MonkeyPatch, engine: str, module: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LabError, match=rf"pip install 'thalweg\[{extra}\]'"):
        pursue([request("toy", "quick", ["seed=0"])], Store(), jobs=1, engine=engine)
