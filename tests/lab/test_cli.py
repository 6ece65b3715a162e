from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from thalweg import __version__
from thalweg.lab.cli import main
from thalweg.lab.experiment import experiment
from thalweg.lab.store import Store

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def thalweg(lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Type a command; get exit code, output and complaints."""

    def type_in(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thalweg", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return type_in


def test_a_study_without_claims_has_no_table_of_them(thalweg: Command) -> None:
    out = thalweg("run", "toy", "x=1", "seed=0", "--jobs", "1")[1]
    assert "errors" in out
    assert "Claims" not in thalweg("table", "toy")[1]
    thalweg("run", "toy", "x=2", "seed=0", "--jobs", "1")
    assert "Claims" in thalweg("table", "toy")[1]


def test_run_then_every_way_to_look_at_it(thalweg: Command, lab: Path, tmp_path: Path) -> None:
    code, out, err = thalweg("run", "toy", "--jobs", "1")
    assert code == 0
    assert "Small is small." in out
    assert re.search(r"errors\n\s+x +error +seeds", out)
    assert err.count(": finished") == 4

    code, out, err = thalweg("run", "toy", "--jobs", "1")
    assert (code, err) == (0, "")  # a finished run is never run again

    code, out, _ = thalweg("status", "--json")
    assert json.loads(out) == [{"experiment": "toy", "preset": "quick", "runs": 4, "finished": 4}]
    code, out, _ = thalweg("status", "--runs", "--json")
    assert [row["state"] for row in json.loads(out)] == ["finished"] * 4

    code, out, _ = thalweg("table", "toy", "--format", "csv")
    assert out.startswith("x,error,seeds\n1.0,")
    code, out, _ = thalweg("report")
    assert (code, out) == (0, f"report: {lab / 'report.html'}\n")
    assert "Small is small." in (lab / "report.html").read_text()
    code, out, _ = thalweg("run", "toy", "--json")
    (claim,) = json.loads(out)
    assert (claim["text"], claim["seeds"], claim["preset"]) == ("Small is small.", 2, "quick")
    thalweg("run", "toy", "epochs=3", "seed=0", "--jobs", "1")
    assert [claim["changes"] for claim in json.loads(thalweg("run", "toy", "--json")[1])] == [{}]
    assert thalweg("rm", Store().results(experiment("toy"))[0].id, "--yes")[0] == 0
    assert thalweg("run", "toy", "--jobs", "2")[0] == 0  # one run is left for two jobs
    thalweg("run", "toy", "epochs=3", "seed=0", "--jobs", "1")

    run_id = Store().folders()[0].id
    assert thalweg("rm", run_id[:10], "--yes")[:2] == (0, "deleted 1 runs\n")
    assert thalweg("rm", "toy", "--yes")[:2] == (0, "deleted 5 runs\n")
    assert Store().folders() == []


def test_figures_are_written_one_file_each(thalweg: Command, tmp_path: Path) -> None:
    words = ("csgd-autoencoder", "epochs=1", "seed=0", "optimizer=sgd")
    assert thalweg("run", *words, "--jobs", "1")[0] == 0
    code, out, _ = thalweg("figure", "csgd-autoencoder", "--out", str(tmp_path / "pictures"))
    paths = [Path(line) for line in out.split()]
    assert code == 0
    assert [path.name for path in paths] == ["training-error.svg", "sharpness.svg"]
    assert all(path.read_text().lstrip().startswith("<svg") for path in paths)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["run", "toi"],
            "there is no experiment called 'toi', did you mean 'toy'? Known: csgd-autoencoder, csgd-fair, ",
        ),
        (["run", "toy", "y=1"], "there is no setting of toy called 'y'. Known: x, how, epochs, seed"),
        (["run", "toy", "x=-1"], "toy: x='-1' is not accepted: Input should be greater than 0"),
        (["run", "toy", "x"], "'x' is not a setting: write key=value, key=value1,value2 or key=first:end"),
        (
            ["run", "toy", "-p", "quik"],
            "there is no preset of toy called 'quik', did you mean 'quick'? Known: quick, paper",
        ),
        (
            ["reproduce", "-p", "quik"],
            "there is no preset called 'quik', did you mean 'quick'? Known: quick, laptop, paper",
        ),
        (["status"], "start some with `thalweg run`, or set THALWEG_RUNS"),
        (["rm", "abc"], "there are no runs in"),
        (["data", "fetch", "digit"], "there is no data set called 'digit', did you mean 'digits'?"),
        (["data", "verify", "mnist", "--data-dir", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(thalweg: Command, words: list[str], says: str) -> None:
    code, out, err = thalweg(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("thalweg: ")
    assert err.count("\n") == 1


def test_unknown_options_exit_with_2(thalweg: Command) -> None:
    assert thalweg("run", "toy", "--engine", "cloud")[0] == 2
    assert thalweg("run", "toy", "--jobs", "0")[0] == 2
    assert thalweg("nonsense")[0] == 2


def test_a_failed_run_exits_with_1_keeps_the_others_and_resumes(thalweg: Command, lab: Path) -> None:
    code, _out, err = thalweg("run", "toy", "how=crash,well", "seed=0", "--jobs", "1")
    assert code == 1
    assert "1 run failed: ZeroDivisionError: a bug (details in " in err
    failed = [folder for folder in Store().folders() if folder.state() == "failed"]
    assert len(failed) == 2
    assert "Traceback" in failed[0].error.read_text()
    assert [folder.state() for folder in Store().folders()].count("finished") == 2
    assert thalweg("resume", "--jobs", "1")[0] == 1  # the bug is still there
    plugin = lab.parent / "plugin" / "toy_experiment.py"
    plugin.write_text(plugin.read_text().replace('raise ZeroDivisionError("a bug")', "pass"))
    del sys.modules["toy_experiment"]
    assert thalweg("resume", "--jobs", "1")[0] == 0
    assert {folder.state() for folder in Store().folders()} == {"finished"}
    assert not failed[0].error.exists()
    assert thalweg("resume")[:2] == (0, "nothing was interrupted\n")


def test_what_was_deleted_is_not_resumed(thalweg: Command) -> None:
    assert thalweg("run", "toy", "how=refuse", "seed=0", "--jobs", "1")[0] == 2
    assert thalweg("rm", "toy", "--yes")[0] == 0
    assert thalweg("resume")[:2] == (0, "nothing was interrupted\n")


def test_data_are_asked_for_once_and_before_anything_starts(thalweg: Command, lab: Path) -> None:
    code, _, err = thalweg("run", "csgd-fair", "data=foo")
    assert (code, err.count("there is no data set called 'foo'")) == (2, 1)
    assert Store().folders() == []
    assert thalweg("resume")[1] == "nothing was interrupted\n"


def test_nothing_to_show_is_said(thalweg: Command) -> None:
    Store()
    code, _, err = thalweg("table", "csgd-fair")
    assert (code, "csgd-fair has no finished runs: start some with `thalweg run csgd-fair`" in err) == (2, True)
    assert "there are no files to verify" in thalweg("data", "verify", "digits")[1]
    assert thalweg("--version")[:2] == (0, f"thalweg {__version__}\n")


def test_a_run_that_misses_a_file_fails_alone(thalweg: Command) -> None:
    code, _, err = thalweg("run", "toy", "how=lost,well", "seed=0", "x=1", "--jobs", "1")
    assert code == 1
    assert "1 run failed: FileNotFoundError: " in err
    assert sorted(folder.state() for folder in Store().folders()) == ["failed", "finished"]


def test_divergence_is_a_result(thalweg: Command) -> None:
    code, out, _ = thalweg("run", "toy", "how=badly", "x=1", "--jobs", "1")
    assert code == 0
    assert "diverged" in out
    assert json.loads(thalweg("status", "--json")[1])[0]["diverged"] == 2


@pytest.mark.parametrize(
    ("how", "says"),
    [("refuse", "the data set is not there: supply it"), ("full", "the disk is full: free some space")],
)
def test_trouble_from_outside_exits_with_2_and_loses_nothing(thalweg: Command, how: str, says: str) -> None:
    code, _, err = thalweg("run", "toy", f"how={how}", "seed=0", "x=1", "--jobs", "1")
    assert code == 2
    assert says in err
    (folder,) = Store().folders()
    assert len(folder.rows()) == 2


def test_reproduce_runs_every_experiment_of_the_preset_then_reports(
    thalweg: Command, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thalweg.lab.experiment.experiment_names", lambda: ["toy"])
    assert thalweg("reproduce", "--jobs", "1")[0] == 0
    assert (lab / "report.html").exists()
    assert thalweg("reproduce", "--headline")[0] == 2  # the toy is no seed's headline


@pytest.mark.parametrize("words", [["--help"], ["list"], ["status"], ["report"], ["data", "list"]])
def test_looking_does_not_import_torch(lab: Path, words: list[str]) -> None:
    Store()
    program = (
        "import sys\nfrom thalweg.lab.cli import main\n"
        f"sys.argv = ['thalweg', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_doctor_and_data_list_have_a_row_for_everything(thalweg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = thalweg("doctor", "--json")
    rows = {row["what"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["torch"]["state"][0].isdigit()
    assert rows["data: fashion-mnist"]["state"] == "not found"
    assert "thalweg data fetch fashion-mnist" in rows["data: fashion-mnist"]["cure"]
    monkeypatch.setattr("thalweg.lab.doctor.find_spec", lambda name: None)
    assert "pip install 'thalweg[ray]'" in thalweg("doctor")[1]
    code, out, _ = thalweg("data", "list", "--json")
    assert {row["data set"] for row in json.loads(out)} >= {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100"}
