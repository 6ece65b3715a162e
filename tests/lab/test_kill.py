"""Kill -9 at any moment, two processes on one run, orphaned workers: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from thalweg.lab.store import Store

PROGRAM = "from thalweg.lab.cli import main; main()"
TRAINING = ("run", "csgd-autoencoder", "optimizer=csgd", "seed=0", "epochs=120", "--jobs", "1")


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts() -> None:
    """A shell's background job, as the tests may be, ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out + err


def numbers(runs: Path) -> tuple[Any, Any, Any]:
    """Everything a run computed: final values and every metrics row, without the seconds it took; and the weights."""
    (folder,) = Store(runs).folders()
    result = folder.result()
    assert result is not None
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in folder.rows()]
    import torch

    state = torch.load(folder.checkpoint, weights_only=True)["parts"]
    return result["values"], rows, {key: value.tolist() for key, value in state["model"].items()}


@pytest.mark.slow
def test_killed_at_random_moments_then_resumed_is_bit_identical(lab: Path, tmp_path: Path) -> None:
    finish(start(*TRAINING, THALWEG_RUNS=str(tmp_path / "whole")))
    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")
    moments = random.Random(seed)
    torn = str(tmp_path / "torn")
    kills = 0
    while kills < 4:
        process = start(*(("resume", "--jobs", "1") if kills else TRAINING), THALWEG_RUNS=torn)
        folder = Path(torn, "workspace")
        while process.poll() is None and not list(folder.glob("*/metrics.jsonl")):
            time.sleep(0.05)  # importing takes most of the first seconds: aim at the training
        try:
            process.wait(timeout=moments.uniform(0.0, 2.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    finish(start("resume", "--jobs", "1", THALWEG_RUNS=torn))
    whole, resumed = numbers(tmp_path / "whole"), numbers(Path(torn))
    assert resumed == whole
    assert len(whole[1]) > 50


@pytest.mark.slow
def test_a_terminal_shows_how_far_each_run_has_come(lab: Path) -> None:
    said = finish(start("run", "toy", "how=slowly", "seed=0:2", "epochs=3", FORCE_COLOR="1", COLUMNS="160"))
    assert "Traceback" not in said
    assert "of 4 runs" in said


@pytest.mark.slow
def test_two_processes_share_the_runs_and_do_none_twice(lab: Path) -> None:
    words = ("run", "toy", "how=slowly", "seed=0:3", "--jobs", "2")
    both = [start(*words), start(*words)]
    for process in both:
        assert "Small is small." in finish(process)
    folders = Store(lab).folders()
    assert [folder.state() for folder in folders] == ["finished"] * 6
    attempts = [(folder.path / "attempts").read_text().split() for folder in folders]
    assert [len(tries) for tries in attempts] == [1] * 6


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(lab: Path) -> None:
    process = start("run", "toy", "how=slowly", "seed=0:20", "--jobs", "2")
    workspace = lab / "workspace"
    while not list(workspace.glob("*/attempts")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(3.0)  # the workers look every half second; one second of work may be under way
    states = [folder.state() for folder in Store(lab).folders()]
    assert "running" not in states
    assert states.count("planned") > 20
    workers = {int(pid) for path in workspace.glob("*/attempts") for pid in path.read_text().split()}
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
def test_interrupting_by_hand_says_how_to_go_on(lab: Path) -> None:
    process = start("run", "toy", "how=slowly", "seed=0:20", "--jobs", "1")
    while not list((lab / "workspace").glob("*/attempts")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted: nothing is lost, `thalweg resume` goes on" in err
    waiting = [json.loads(path.read_text())["experiment"] for path in (lab / "requests").glob("*.json")]
    assert waiting == ["toy"]
