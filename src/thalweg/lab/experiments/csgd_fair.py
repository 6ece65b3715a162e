"""CSGD and its rivals, each at its own best learning rate: the comparison that seed 000 did not make.

The seed runs SGD and CSGD at one learning rate, 0.1, which for a loss averaged over pixels is some 300 times too small
for SGD. CSGD's step is at least as long in every direction (its preconditioner's eigenvalues are 1 + s²), so at equal
learning rate it has to win early on. Here every optimizer has a grid of its own that widens itself until the best rate
lies strictly inside, and there is a control: SGD with each matrix's step lengthened by 1 + mean s², as CSGD's is on
average over the singular directions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from thalweg.lab.best_rate import best_rates, chosen, grid_table, losses_by_rate, stopped_at, widened_grid
from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.experiments.csgd_autoencoder import FORMATS, TERMS, Autoencoding
from thalweg.lab.figures import curves
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

SOURCE = "seed 000, sections 4.5 and 6, at best learning rates"
TITLE = "CSGD against SGD, momentum, Adam and Muon, each at its own best learning rate"
VERSION = 1
NAMES = {
    "sgd": "SGD",
    "csgd": "CSGD",
    "lengthened": "SGD, step x (1 + mean s²)",
    "momentum": "SGD, momentum 0.9",
    "adam": "Adam",
    "muon": "Muon",
}
SWEEP: dict[str, tuple[Any, ...]] = {"optimizer": tuple(NAMES), "lr": ()}  # no rates: the grids find their own
GUESS = {
    "sgd": 2,
    "csgd": 0,
    "lengthened": 1,
    "momentum": 0,
    "adam": -6,
    "muon": -4,
}  # half-decades: 2 is a learning rate of 10


NOTE = f"{TERMS} Last s: the largest singular value of the last layer's weight."


class Config(Autoencoding):
    """The seed's network, batch and data; no learning-rate rule, so that every run has the same epochs."""

    optimizer: Literal["sgd", "csgd", "lengthened", "momentum", "adam", "muon"] = Field(
        "sgd", description="the seed's two, the control, and what people use"
    )
    epochs: int = Field(20, ge=1, description="ours: enough for the order of the optimizers to settle")


PRESETS = {
    "quick": Preset("50 s", 3, {"data": "digits", "batch": 32, "epochs": 30}),
    "laptop": Preset("20 min", 3),
    "paper": Preset("3 h, estimated", 5, {"epochs": 100}),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Every optimizer's grid as far as the results tell by now; SGD and the control also run at CSGD's rates."""
    grids = {name: widened_grid(name, GUESS[name], seeds, results) for name in sweep["optimizer"]}
    for name in {"sgd", "lengthened"} & grids.keys():
        grids[name] = sorted({*grids[name], *grids.get("csgd", [])})
    base = settings.model_dump(exclude={"optimizer", "lr"})
    return [Config(**base, optimizer=name, lr=lr) for name, rates in grids.items() for lr in (sweep["lr"] or rates)]


def run(trial: Trial, log: Log) -> Ending:
    """Train one autoencoder at a constant learning rate."""
    from thalweg.lab.training.reconstruction import train_autoencoder

    config: Any = trial.config
    return train_autoencoder(trial, log, lambda model: _optimizers(config.optimizer, model, config.lr))


def _optimizers(name: str, model: nn.Module, lr: float) -> list[Optimizer]:
    from torch import optim

    from thalweg.optim import CSGD

    params = list(model.parameters())
    if name == "muon":  # knows matrices only; the biases go to Adam at torch's default rate
        matrices, biases = [p for p in params if p.ndim == 2], [p for p in params if p.ndim == 1]
        return [optim.Muon(matrices, lr=lr, weight_decay=0.0), optim.Adam(biases)]
    if name == "momentum":
        return [optim.SGD(params, lr=lr, momentum=0.9)]
    if name == "lengthened":
        return [_lengthened(params, lr)]
    return [{"sgd": optim.SGD, "csgd": CSGD, "adam": optim.Adam}[name](params, lr=lr)]


def _lengthened(params: Sequence[nn.Parameter], lr: float) -> Optimizer:
    """SGD with lr (1 + mean s²) on each matrix; the mean over its min(m, n) singular values is |A|² / min(m, n)."""
    from torch.optim import SGD

    def lengthen(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            (weight,) = group["params"]
            if weight.ndim == 2:
                group["lr"] = lr * (1 + float(weight.detach().square().sum()) / min(weight.shape))

    optimizer = SGD([{"params": [param]} for param in params], lr=lr)
    optimizer.register_step_pre_hook(lengthen)
    return optimizer


def analyse(study: Study) -> Findings:
    """Who wins at equal epochs and at equal time, and the grids that the best rates come from."""
    best = best_rates(study)
    seconds = {name: statistics.median(r.seconds for r in study.where(optimizer=name, lr=best[name])) for name in best}
    fastest = min(seconds, key=lambda name: seconds[name])
    timed = stopped_at(study, seconds[fastest])
    by = {"optimizer": "optimizer", "lr": "best rate"}
    columns = {"test_mse": "test MSE", "ssim": "SSIM", "train_loss": "training loss", "s_max decoder 2": "last s"}
    formats = FORMATS | {"s_max decoder 2": ".1f", "epoch": ".1f"}
    at_epochs = mean_std(chosen(study, best), by, columns, formats=formats)
    columns = {"test_mse": "test MSE", "train_loss": "training loss", "epoch": "epochs done"}
    at_time = mean_std(chosen(timed, best_rates(timed)), by, columns, formats=formats)
    clock = (
        f"All are stopped after {seconds[fastest]:.3g} s of training, in which {NAMES[fastest]} does all its epochs."
    )
    training = {NAMES[n]: [r.series("train_loss") for r in study.where(optimizer=n, lr=best[n])] for n in best}
    rates = {NAMES[name]: losses_by_rate(study, name) for name in best}
    error = "squared error per pixel"
    needed = [NAMES[name] for name in ("sgd", "csgd", "lengthened") if name not in best]
    return Findings(
        claims=[] if needed else _claims(study, timed, best),
        notes=[f"The claims also need runs of: {', '.join(needed)}."] if needed else [],
        tables=[
            Table("Equal epochs, each at its own best learning rate", at_epochs.replace({"optimizer": NAMES}), NOTE),
            Table("Equal time, each at its own best learning rate", at_time.replace({"optimizer": NAMES}), clock),
            Table("The grids: mean final training loss by learning rate", grid_table(study, NAMES), "†: a lost run."),
        ],
        pictures=[
            Picture(
                "training-error",
                "Training error, each at its own best learning rate",
                curves(training, xlabel="epoch", ylabel=error, logy=True),
                "Mean over seeds; the band is their range.",
            ),
            Picture(
                "learning-rates",
                "Final training error against learning rate",
                curves(rates, xlabel="learning rate", ylabel=error, logx=True, logy=True),
                "Where each optimizer works; at the rate after a cross runs were lost.",
            ),
        ],
    )


def _claims(study: Study, timed: Study, best: Mapping[str, float]) -> list[Claim]:
    in_time, same = best_rates(timed), dict.fromkeys(best, best["csgd"])
    longer = "its direction helps, not only its length: at its best rate it beats SGD with steps as long in test MSE"

    def judge(
        says: str, source: str, rival: str, where: Study, rates: Mapping[str, float], ssim: bool = False
    ) -> Claim:
        key = "ssim" if ssim else "test_mse"
        a, b = (where.by_seed(key, optimizer=name, lr=rates[name]) for name in ("csgd", rival))
        unit = f"{'SSIM' if ssim else 'test MSE'}, CSGD minus {NAMES[rival]}"
        return paired(
            "greater" if ssim else "less", a, b, text=f"CSGD: {says}.", source=f"seed 000, section {source}", unit=unit
        )

    own = "each at its own best rate"
    return [
        judge("at its best learning rate it has the lower test MSE than SGD at that rate", "5.2", "sgd", study, same),
        judge(longer, "4.5", "lengthened", study, same),
        judge(f"{own}, it has the lower test MSE than SGD after equal epochs", "6", "sgd", study, best),
        judge(f"{own}, it has the higher SSIM than SGD after equal epochs", "6", "sgd", study, best, ssim=True),
        judge(f"{own}, it has the lower test MSE than SGD after equal time", "6", "sgd", timed, in_time),
    ]
