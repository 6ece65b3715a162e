from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import experiment
from thalweg.lab.plan import request, trials
from thalweg.lab.store import RunFolder, Store
from thalweg.lab.trial import Log, execute


def planned(store: Store, *words: str) -> list[RunFolder]:
    return [store.open(trial.point) for trial in trials(request("toy", "quick", list(words)), ())]


def test_a_folder_is_named_by_what_defines_the_run(lab: Path) -> None:
    store = Store()
    first, again = planned(store)[0], planned(Store())[0]
    assert first.path == again.path
    assert json.loads((first.path / "signac_statepoint.json").read_text()) == {
        "experiment": "toy",
        "version": 1,
        "config": {"preset": "quick", "x": 1.0, "how": "well", "epochs": 2},
        "seed": 0,
    }
    assert len({folder.id for folder in planned(store, "x=1,2", "epochs=1,2", "seed=0:3")}) == 12


def test_states_from_planned_to_finished(lab: Path) -> None:
    store = Store()
    good, bad = planned(store, "seed=0", "x=1")[0], planned(store, "seed=0", "x=1", "how=badly")[0]
    assert good.state() == "planned"
    Log(good).row(epoch=1, loss=2.0)
    assert (good.state(), good.progress()) == ("interrupted", 0.5)
    with good.lock():
        assert Store().get(good.id).state() == "running"
    assert execute(str(lab), good.id).kind == execute(str(lab), bad.id).kind == "done"
    assert (good.state(), bad.state()) == ("finished", "diverged")


def test_rows_survive_a_torn_last_line_and_rewinding(lab: Path) -> None:
    folder = planned(Store())[0]
    log = Log(folder)
    log.row(epoch=1, loss=math.inf)
    mark = log.mark()
    log.warn("mind the gap")
    with open(folder.metrics, "a") as file:
        file.write('{"epoch": 2, "lo')
    assert folder.rows() == [{"epoch": 1, "loss": None}, {"warning": "mind the gap"}]
    log.rewind(mark)
    assert folder.rows() == [{"epoch": 1, "loss": None}]


def test_numbers_that_are_not_finite_are_strict_json_and_come_back_as_nan(lab: Path) -> None:
    store = Store()
    folder = planned(store, "seed=0", "x=1", "how=badly")[0]
    execute(str(lab), folder.id)
    text = (folder.path / "result.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["values"] == {"error": None}
    (result,) = store.results(experiment("toy"))
    assert math.isnan(result.values["error"])


@pytest.mark.parametrize("cache", [None, b"not gzip at all", b""])
def test_the_cache_is_rebuilt_when_it_is_deleted_or_broken(lab: Path, cache: bytes | None) -> None:
    store = Store()
    folders = planned(store)
    store.refresh_cache()
    path = lab / ".signac" / "statepoint_cache.json.gz"
    whole = path.read_bytes()
    path.unlink() if cache is None else path.write_bytes(cache)
    fresh = Store()
    assert {folder.id for folder in fresh.folders()} == {folder.id for folder in folders}
    fresh.refresh_cache()
    assert len(path.read_bytes()) == pytest.approx(len(whole), abs=40)  # gzip headers hold a time and a name


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_a_damaged_file_names_the_run_and_the_cure(lab: Path, name: str) -> None:
    store = Store()
    folder = planned(store)[0]
    (folder.path / name).write_text('{"half": \n{')
    with pytest.raises(LabError, match=f"run {folder.id}: {name} is damaged .* `thalweg rm {folder.id}`"):
        folder.result() if name == "result.json" else folder.rows()


def test_a_torn_state_point_names_the_run_and_the_cure(lab: Path) -> None:
    folder = planned(Store())[0]
    (folder.path / "signac_statepoint.json").write_text('{"experiment": "to')
    with pytest.raises(LabError, match=f"run {folder.id}: its state point is damaged: delete .*{folder.id}"):
        Store().folders()


def test_a_folder_whose_maker_was_killed_at_once_is_as_good_as_absent(lab: Path) -> None:
    folder = planned(Store())[0]
    (folder.path / "signac_statepoint.json").unlink()
    assert folder.id not in {other.id for other in Store().folders()}
    assert planned(Store())[0].path == folder.path
    assert folder.id in {other.id for other in Store().folders()}


def test_ids_may_be_shortened_while_they_are_unique(lab: Path) -> None:
    store = Store()
    folders = planned(store, "seed=0:6")
    assert store.get(folders[0].id[:12]).id == folders[0].id
    with pytest.raises(LabError, match="no run has an id that begins with 'xyz'"):
        store.get("xyz")
    with pytest.raises(LabError, match="12 runs have an id that begins with ''"):
        store.get("")


def test_removing_spares_a_run_that_is_running(lab: Path) -> None:
    store = Store()
    folder, other = planned(store, "seed=0")
    with folder.lock(), pytest.raises(LabError, match=f"run {folder.id} is running"):
        Store().remove([folder])
    store.remove([folder, other])
    assert not folder.path.exists()
    assert Store().folders() == []


def test_results_of_another_version_are_left_alone(lab: Path) -> None:
    store = Store()
    folder = store.open({"experiment": "toy", "version": 0, "config": {"preset": "quick", "gone": 1}, "seed": 0})
    folder.write_result({"outcome": "finished", "values": {}, "seconds": 0, "environment": {}})
    assert store.results(experiment("toy")) == []
    assert execute(str(lab), folder.id).kind == "already done"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no user ids on this system")
def test_an_unwritable_folder(lab: Path) -> None:
    lab.mkdir()
    lab.chmod(0o500)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)  # root may write everywhere; nobody may not
    try:
        with pytest.raises(LabError, match="it may not be written: .* name another folder with THALWEG_RUNS"):
            Store()
    finally:
        os.seteuid(me)


def test_a_file_where_a_folder_is_needed(lab: Path) -> None:
    lab.write_text("")
    with pytest.raises(LabError, match="name another folder with THALWEG_RUNS"):
        Store()


def test_a_full_disk(lab: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    folder = planned(Store())[0]
    folder.metrics.symlink_to("/dev/full")
    outcome = execute(str(lab), folder.id)
    assert outcome.kind == "refused"
    assert "the disk is full: free some space, then run `thalweg resume`" in outcome.message
    assert folder.result() is None
    folder.metrics.unlink()
    assert execute(str(lab), folder.id).kind == "done"
