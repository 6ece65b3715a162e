"""A laboratory in a temporary folder, with one more experiment that a plugin brings: ``toy``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOY = '''
"""A run that ends as its settings say, without training."""
import errno
import os
import time
from typing import Literal

from pydantic import Field

from thalweg.lab.claims import paired
from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Ending, Findings, Preset, Settings, Table
from thalweg.lab.tables import mean_std

SOURCE, TITLE, VERSION = "no seed", "a toy", 1
SWEEP = {"x": (1.0, 2.0)}


class Config(Settings):
    x: float = Field(1.0, gt=0, description="made up")
    how: Literal["well", "badly", "crash", "refuse", "full", "slowly", "lost"] = "well"
    epochs: int = 2


PRESETS = {"quick": Preset("1 s", 2), "paper": Preset("2 s", 3)}


def run(trial, log):
    for epoch in range(1, trial.config.epochs + 1):
        log.row(epoch=epoch, loss=trial.config.x / epoch)
    if trial.config.how == "slowly":
        with open(log.checkpoint.with_name("attempts"), "a") as file:
            print(os.getpid(), file=file)
        time.sleep(1.0)
    if trial.config.how == "crash":
        raise ZeroDivisionError("a bug")
    if trial.config.how == "refuse":
        raise LabError("the data set is not there: supply it")
    if trial.config.how == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(log.checkpoint))
    if trial.config.how == "lost":
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "a file of the experiment's own")
    if trial.config.how == "badly":
        return Ending({"error": float("nan")}, "diverged")
    draw = float(__import__("torch").rand((), generator=trial.generator("draw")))
    return Ending({"error": trial.config.x + draw}, seconds=1.0)


def analyse(study):
    small, large = study.by_seed("error", x=1.0), study.by_seed("error", x=2.0)
    claim = paired("less", small, large, text="Small is small.", source="toy", unit="error, small minus large")
    return Findings([claim] if small and large else [], [Table("errors", mean_std(study.results, ["x"], ["error"]))])
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fresh store, with the toy experiment installed for this process and its children."""
    plugin = tmp_path / "plugin"
    (plugin / "toy-1.dist-info").mkdir(parents=True)
    (plugin / "toy_experiment.py").write_text(TOY)
    (plugin / "toy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (plugin / "toy-1.dist-info" / "entry_points.txt").write_text("[thalweg.experiments]\ntoy = toy_experiment\n")
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.setenv("PYTHONPATH", str(plugin))
    monkeypatch.setenv("THALWEG_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sys.modules.pop("toy_experiment", None)
    importlib.invalidate_caches()
    return tmp_path / "runs"
