"""Training in the whole space, shortened: what is measured, against the definitions, and the ablation's equality."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.invariance.norm import joint_norm
from thalweg.lab.engine import pursue
from thalweg.lab.experiment import Result, experiment
from thalweg.lab.experiments.periodic import Config
from thalweg.lab.plan import request, studies
from thalweg.lab.store import Store
from thalweg.lab.training.scale_invariant import task
from thalweg.lab.training.whole_space import loss_spikes
from thalweg.lab.trial import Trial
from thalweg.optim import SphereSGD


def run(name: str, words: list[str]) -> list[Result]:
    store, wanted = Store(), experiment(name)
    assert pursue([request(name, "quick", words)], store, jobs=1) == []
    (study,) = studies(wanted, store.results(wanted))
    assert wanted.analyse(study).tables
    return list(study.results)


@given(seed=st.integers(0, 2**31), spikes=st.integers(0, 6), factor=st.floats(20, 1e4))
def test_every_tenfold_rise_is_one_spike(seed: int, spikes: int, factor: float) -> None:
    noise = np.random.default_rng(seed).uniform(0.5, 1.0, 40 * (spikes + 1))
    noise[40::40][:spikes] *= factor
    assert loss_spikes(noise, 1) == spikes
    assert loss_spikes(np.ones(100), 10) == 0


def test_cycles_are_found_and_the_equations_hold_along_them(lab: Path) -> None:
    (found,) = run("periodic", ["lr=1.0", "wd=0.03", "elr=0", "seed=0", "epochs=60"])
    values = found.values
    assert values["cycles"] >= 10
    assert values["period"] == pytest.approx(0.8 / 0.03, rel=0.3)  # 0.53 to 0.91 over ηλ on all networks seen
    assert values["inside"] == 1
    assert values["within_exact"] == 1  # by construction
    assert values["within_printed"] < 1  # which leaves out (1 - ηλ)
    rows = [row for row in found.rows if "in_period" in row]
    assert len(rows) > 10
    for row, after in pairwise(rows):
        if after["in_period"] == row["in_period"] + 1:  # (4): the norm cannot fall faster than by weight decay
            assert after["squared_norm"] > row["squared_norm"] * (1 - 0.03) ** 2 * (1 - 1e-6)
        assert row["least_step"] <= row["largest_step"]


def test_fixing_the_norm_is_rescaling_after_every_step(lab: Path) -> None:
    """The ablation's definition, (1 - ηλ)x - η∇f rescaled to |x|, against the sphere optimizer it is run with."""
    lr, wd = 1.0, 0.03
    weights = []
    for by_hand in (True, False):
        work = task(Trial("periodic", 1, Config(preset="quick", lr=lr, wd=wd, samples=256), 0))
        parameters = work.invariant
        norm = joint_norm(parameters).item()
        optimizer: Any = (
            torch.optim.SGD(parameters, lr=lr, weight_decay=wd)
            if by_hand
            else SphereSGD(parameters, lr / ((1 - lr * wd) * norm**2))
        )
        for images, labels in work.batches:
            optimizer.zero_grad()
            work.loss_fn(work.model(images), labels).backward()
            optimizer.step()
            if by_hand:
                with torch.no_grad():
                    scale = norm / joint_norm(parameters).item()
                    for parameter in parameters:
                        parameter.mul_(scale)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert torch.allclose(*weights, rtol=1e-4, atol=1e-6)  # two steps in single precision


def test_a_fixed_norm_has_no_cycles_to_find(lab: Path) -> None:
    free, fixed = run("periodic-fixed-norm", ["wd=0.03", "seed=0", "epochs=40"])
    assert free.config.norm == "free"  # type: ignore[attr-defined]
    assert free.values["cycles"] > 0
    assert "cycles" not in fixed.values
    assert fixed.values["final_loss"] < free.values["final_loss"]
