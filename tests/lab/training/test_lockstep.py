"""A sweep trained together against its runs one by one: rows, values, checkpoints; what ends early; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thalweg.invariance import ScaleMonitor
from thalweg.lab.data.batches import Batches
from thalweg.lab.engine import pursue
from thalweg.lab.experiment import Result, experiment
from thalweg.lab.experiments.sphere_regimes import Config
from thalweg.lab.plan import request
from thalweg.lab.store import Store
from thalweg.lab.training import lockstep, on_sphere, whole_space
from thalweg.lab.training.lockstep import Run, choose, fit_together, tasks
from thalweg.lab.training.monitored import EpochMeans
from thalweg.lab.training.replicas import Replicas, products
from thalweg.lab.training.scale_invariant import Task
from thalweg.lab.trial import Log, Trial
from thalweg.optim import SphereSGD

RATES = (0.003, 0.03, 0.3)  # one in each regime
SMALL: dict[str, Any] = {"preset": "quick", "epochs": 20, "samples": 300, "width": 16}


def trials(**changes: Any) -> list[Trial]:
    return [Trial("sphere-regimes", 1, Config(**{**SMALL, **changes, "elr": rate}), 0) for rate in RATES]


def makers() -> list[Any]:
    return [partial(SphereSGD, elr=rate) for rate in RATES]


exact = pytest.mark.skipif(torch.cuda.is_available(), reason="on accelerators runs are equal up to rounding only")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Programs seem to take no time; the list gets what was chosen."""
    chosen: list[Any] = []
    probe = lockstep._probe

    def timeless(works: Sequence[Task], makers: Any, program: Any) -> tuple[float, list[Tensor]]:
        return float(program is None), probe(works, makers, program)[1]

    def noted(*args: Any) -> Any:
        chosen.append(choose(*args))
        return chosen[-1]

    monkeypatch.setattr(lockstep, "_probe", timeless)
    monkeypatch.setattr(on_sphere, "choose", noted)
    monkeypatch.setattr(whole_space, "choose", noted)
    return chosen


def sweep(runs: Path) -> list[Result]:
    store, wanted = Store(runs), experiment("sphere-regimes")
    words = [f"{key}={value}" for key, value in SMALL.items() if key != "preset"]
    words += [f"elr={','.join(map(str, RATES))}", "seed=0"]
    assert pursue([request("sphere-regimes", "quick", words)], store, jobs=1) == []
    assert len(store.results(wanted)) == len(RATES)
    return sorted(store.results(wanted), key=lambda result: result.config.model_dump()["elr"])


def one_by_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    with monkeypatch.context() as patch:
        patch.setattr("thalweg.lab.experiments.sphere_regimes.REPLICAS", ())
        patch.delattr("thalweg.lab.experiments.sphere_regimes.run_many")
        return sweep(runs)


def numbers(result: Result, folder: Path) -> tuple[Any, ...]:
    """All that a run leaves, without the seconds it took: values, rows, weights."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.rows]
    state = torch.load(folder / "workspace" / result.id / "checkpoint.pt", weights_only=True)
    weights = {name: tensor.tolist() for name, tensor in state["parts"]["model"].items()}
    return json.dumps(dict(result.values)), json.dumps(rows), weights, state["place"]["epoch"]


@exact
def test_a_sweep_leaves_what_its_runs_leave_one_by_one(
    lab: Path, eager: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit in single precision: where a program rounds otherwise, `choose` must refuse it."""
    together, alone = sweep(lab / "a"), one_by_one(lab / "b", monkeypatch)
    assert eager in ([products], [None])  # None where BLAS rounds a product by its neighbours
    for one, other in zip(alone, together, strict=True):
        assert one.id == other.id
        assert numbers(one, lab / "b") == numbers(other, lab / "a")


@exact
def test_an_interrupted_sweep_goes_on_run_by_run_from_its_checkpoints(
    lab: Path, eager: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = one_by_one(lab / "b", monkeypatch)
    given, take = count(), Batches._take
    monkeypatch.setitem(fit_together.__kwdefaults__, "checkpoint_every", 0.0)
    monkeypatch.setattr(lockstep, "RARITY", 0)

    def until_interrupted(self: Batches, tensor: Tensor) -> Tensor:
        if next(given) == 41:  # two tensors a batch, three batches an epoch: in the seventh epoch
            raise RuntimeError("interrupted")
        return take(self, tensor)

    monkeypatch.setattr(Batches, "_take", until_interrupted)
    together = sweep(lab / "a")
    if eager == [None]:
        pytest.skip("BLAS rounds a product by its neighbours here: nothing is trained together")
    assert next(given) > 41 + 3 * 2 * 3 * 13 - 6  # the others' last thirteen epochs, one by one
    assert next(given) < 41 + 3 * 2 * 3 * 15  # and no more: nothing began again
    for one, other in zip(alone, together, strict=True):
        assert numbers(one, lab / "b") == numbers(other, lab / "a")


@exact
def test_training_in_the_whole_space_too(lab: Path, eager: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name, words = "periodic", ["lr=0.3,1.0", "wd=0.03", "elr=0,0.02,0.1", "epochs=20", "width=16", "seed=0"]
    wanted = experiment(name)
    found = {}
    for runs in ("together", "alone"):
        store = Store(lab / runs)
        assert pursue([request(name, "quick", words)], store, jobs=1) == []
        found[runs] = {result.id: numbers(result, lab / runs) for result in store.results(wanted)}
        monkeypatch.setattr(on_sphere, "choose", lambda *args: None)
        monkeypatch.setattr(whole_space, "choose", lambda *args: None)
    assert eager
    assert set(eager) in ({products}, {None})
    assert found["together"] == found["alone"]


def log(folder: Path) -> Log:
    class Folder:
        checkpoint, metrics = folder / "checkpoint.pt", folder / "metrics.jsonl"

        def rows(self) -> list[dict[str, Any]]:
            return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    folder.mkdir(parents=True)
    return Log(Folder())  # type: ignore[arg-type]


def test_a_run_that_diverges_ends_and_the_others_go_on(tmp_path: Path) -> None:
    def runs() -> Iterator[Run]:
        for work, make in zip(tasks(trials()), makers(), strict=True):
            monitor = ScaleMonitor(work.model, own := make(work.invariant), work.groups)
            means = EpochMeans(monitor)
            yield Run(work, own, monitor, [means], log(tmp_path / str(next(number))), lambda epoch: {})

    number = count()

    def breaking(replicas: Replicas, x: Tensor, targets: Tensor) -> Tensor:
        losses = products(replicas, x, targets)
        if len(replicas) == len(RATES):  # as long as the second is there
            losses[1] = torch.nan
        return losses

    whole, broken = [*runs()], [*runs()]
    assert [(f.epochs, f.outcome) for f in fit_together(whole, products, epochs=3)] == [(3, "finished")] * 3
    fits = fit_together(broken, breaking, epochs=3)
    assert [(f.epochs, f.outcome) for f in fits] == [(3, "finished"), (1, "diverged"), (3, "finished")]
    for k, (one, other) in enumerate(zip(whole, broken, strict=True)):
        assert len(other.log.rows()) == 1 + fits[k].epochs
        if k != 1:
            pairs = zip(one.work.model.parameters(), other.work.model.parameters(), strict=True)
            assert all(torch.allclose(a, b) for a, b in pairs)  # bit for bit, unless a stack's size matters
    assert broken[1].log.rows()[-1]["train_loss"] is None


def test_programs_are_refused_where_they_do_not_fit(eager: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own, rates = tasks(trials()), makers()
    assert choose([], []) is None
    assert choose(own[:1], rates[:1]) is None
    assert tasks([]) == []
    assert tasks(trials(samples=257)) == []  # a last batch of one image
    assert tasks([*trials(), trials(samples=299)[0]]) == []  # other images
    if not torch.cuda.is_available():
        assert tasks(trials(affine=True)) == []
    assert len({id(work.batches.inputs) for work in own}) == 1
    before = [tensor.clone() for tensor in own[0].model.state_dict().values()]
    choose(own, rates)
    assert all(a.equal(b) for a, b in zip(before, own[0].model.state_dict().values(), strict=True))
    monkeypatch.setattr(lockstep, "products", inexact)
    assert choose(own, rates) is None


def inexact(replicas: Replicas, x: Tensor, targets: Tensor) -> Tensor:
    losses = products(replicas, x, targets)
    replicas.grads["hidden.4.weight"].mul_(1 + 1e-3)
    return losses
