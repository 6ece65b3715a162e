"""A checkpoint is whole or absent, carries every random state, and runs no code."""

from __future__ import annotations

import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thalweg.lab.errors import LabError
from thalweg.lab.training.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint

LABORER = """
import sys
from pathlib import Path
import torch
from thalweg.lab.training.checkpoint import save_checkpoint
k = 0
while True:
    k += 1
    save_checkpoint(Path(sys.argv[1]), {"k": k, "tensor": torch.full((4_000_000,), float(k))})
"""


def killed_while_writing(path: Path) -> bool:
    """Start a process that does nothing but write checkpoints, kill it when one is half written; True if it was."""
    for litter in path.parent.glob(".*.part"):
        litter.unlink()
    process = subprocess.Popen([sys.executable, "-c", LABORER, str(path)])
    try:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        while time.monotonic() < deadline:
            if any(part.stat().st_size > 0 for part in _parts(path)):
                break
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return bool(_parts(path))


def _parts(path: Path) -> list[Path]:
    return [part for part in path.parent.glob(".*.part") if part.exists()]


def test_killed_in_the_middle_of_writing_the_last_whole_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    attempts = 0
    while not killed_while_writing(path):  # the rename came first: try again
        attempts += 1
        assert attempts < 10
    state = load_checkpoint(path)
    assert state["k"] >= 1
    assert torch.equal(state["tensor"], torch.full((4_000_000,), float(state["k"])))


def test_an_error_while_writing_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"k": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"k": 2, "not data": lambda: None})
    assert load_checkpoint(path) == {"k": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_a_training_has_comes_back(tmp_path: Path) -> None:
    model = torch.nn.BatchNorm1d(3)
    state = {
        "model": model.state_dict(),
        "place": {"epoch": 3, "seconds": 0.5, "outcome": "running"},
        "list": [(1, "a")],
    }
    save_checkpoint(tmp_path / "c", state)
    found = load_checkpoint(tmp_path / "c")
    assert (found["place"], found["list"]) == (state["place"], state["list"])
    for name, value in model.state_dict().items():
        assert torch.equal(found["model"][name], value)


def draws() -> tuple[Any, ...]:
    return (
        random.random(),
        random.gauss(0, 1),  # keeps its twin for the next call
        np.random.rand(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        torch.rand(3).tolist(),
        torch.randn(1).item(),
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), before=st.integers(0, 3))
def test_the_random_states_travel_through_the_file(tmp_path: Path, seed: int, before: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    for _ in range(before):
        draws()
    save_checkpoint(tmp_path / "c", {"random": random_state()})
    expected = [draws(), draws()]
    random.seed(0)
    draws()
    restore_random_state(load_checkpoint(tmp_path / "c")["random"])
    assert [draws(), draws()] == expected


def test_reading_the_random_states_draws_nothing() -> None:
    torch.manual_seed(0)
    first = random_state()
    second = random_state()
    assert torch.equal(first["torch"], second["torch"])
    assert first["python"] == second["python"]
    assert torch.equal(first["numpy"][1], second["numpy"][1])


class Intruder:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", ["torch.save", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, write: str) -> None:
    path, mark = tmp_path / "run7" / "checkpoint.pt", tmp_path / "owned"
    path.parent.mkdir()
    if write == "pickle":
        path.write_bytes(pickle.dumps({"parts": Intruder(mark)}))
    else:
        torch.save({"parts": Intruder(mark)}, path, _use_new_zipfile_serialization=write == "torch.save")
    with pytest.raises(
        LabError, match="run run7: checkpoint.pt is damaged or is not a checkpoint: .*`thalweg rm run7`"
    ):
        load_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if write != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()  # the intruder was a real one


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_torn_file_names_the_run_and_the_cure(tmp_path: Path, share: float) -> None:
    path = tmp_path / "abc123" / "checkpoint.pt"
    path.parent.mkdir()
    save_checkpoint(path, {"tensor": torch.arange(5000.0), "k": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(LabError, match="run abc123: checkpoint.pt is damaged .*`thalweg rm abc123`"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"\n", b"hello, world", b"\x80\x05", bytes(100), b"PK\x03\x04" + bytes(60)])
def test_anything_else_is_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "abc123" / "checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LabError, match="run abc123: checkpoint.pt is damaged or is not a checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "checkpoint.pt")
