r"""Every optimizer, schedule, initialization and normalization of the lecture, each at its own best learning rate.

One thing is changed at a time: beside the optimizers (constant rate, Kaiming, no normalization) run the schedules, the
initializations and the normalizations under momentum. Every entrant has a grid of learning rates that widens itself
until the best, by training loss, lies inside: at one rate for all, the race would be decided by the rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from thalweg.lab.best_rate import best_rates, chosen, losses_by_rate, widened_grid
from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import MARKERS, PALETTE, curves, figure, legend, logarithmic, styled
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn
    from torch.optim import Optimizer

SOURCE = "seed 004, whole: optimizers, schedules, initializations and normalizations on real images"
TITLE = "A race of the lecture's methods, each at its own best learning rate"
VERSION = 1
KINDS: Mapping[str, Mapping[str, int]] = {  # kind -> entrant -> half-decade at which its grid begins
    "optimizer": {
        "SGD": -2, "momentum": -3, "Nesterov": -3, "AdaGrad": -3, "AdaDelta": 1, "RMSprop": -5, "Adam": -5, "AdamW": -5,
    },
    "schedule": {"exp": -3, "str": -3, "sig": -3, "rep": -3, "trap": -3, "str+": -3, "sig+": -3},
    "initialization": {"printed LeCun": -3, "LeCun": -3, "Glorot": -3},
    "normalization": {"batch before": -3, "batch after": -3, "layer": -3},
}  # fmt: skip
GUESS = {name: guess for names in KINDS.values() for name, guess in names.items()}
KIND = {name: kind for kind, names in KINDS.items() for name in names}
BASE = "momentum"
SWEEP: dict[str, tuple[Any, ...]] = {"optimizer": tuple(GUESS), "lr": ()}  # no rates: the grids find their own


class Config(Settings):
    """A small perceptron, so that a race of a score of entrants ends."""

    optimizer: str = Field(BASE, description="the entrant: what differs from momentum, constant rate, Kaiming, no norm")
    lr: float = Field(0.03, gt=0, description="by each entrant's own grid")
    data: str = Field("digits", description="ours: the lecture names no data")
    samples: int = Field(512, ge=1, description="ours: training images")
    width: int = Field(64, ge=1, description="ours: neurons of each hidden layer")
    depth: int = Field(3, ge=1, description="ours: hidden layers")
    batch: int = Field(64, ge=2, description="ours")
    epochs: int = Field(15, ge=1, description="ours: short, so that speed counts")

    @field_validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in GUESS:
            raise ValueError(f"expected one of {', '.join(GUESS)}")
        return name


PRESETS = {
    "quick": Preset("40 s", 5),
    "laptop": Preset(
        "1 h, estimated", 3, {"data": "fashion-mnist", "samples": 20000, "width": 128, "batch": 128, "epochs": 8}
    ),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Every entrant's grid as far as the results tell by now."""
    base = settings.model_dump(exclude={"optimizer", "lr"})
    return [
        Config(**base, optimizer=name, lr=lr)
        for name in sweep["optimizer"]
        for lr in (sweep["lr"] or widened_grid(name, GUESS[name], seeds, results))
    ]


def run(trial: Trial, log: Log) -> Ending:
    """Train one entrant at one learning rate."""
    from thalweg.lab.training.lecture_networks import perceptron, sets, train_classifier
    from thalweg.optim.schedules import LECTURE_SHAPES

    config: Any = trial.config
    data = sets(trial, config.data, samples=config.samples)
    kind, name = KIND[config.optimizer], config.optimizer
    choice = {kind: name} if kind in ("initialization", "normalization") else {}
    sizes = (data.inputs, *(config.width,) * config.depth, 10)
    model = perceptron(sizes, weights=trial.generator("weights"), **choice)
    steps = config.epochs * -(-config.samples // config.batch)
    return train_classifier(
        trial,
        log,
        model,
        _optimizer(name if kind == "optimizer" else BASE, model, config.lr),
        data,
        epochs=config.epochs,
        batch=config.batch,
        schedule=LECTURE_SHAPES[name](config.lr, steps) if kind == "schedule" else None,
    )


def _optimizer(name: str, model: nn.Module, lr: float) -> Optimizer:
    from torch import optim

    params = model.parameters()
    if name in ("SGD", "momentum", "Nesterov"):
        return optim.SGD(params, lr=lr, momentum=0.0 if name == "SGD" else 0.9, nesterov=name == "Nesterov")
    makers: dict[str, Any] = {
        "AdaGrad": optim.Adagrad,
        "AdaDelta": optim.Adadelta,
        "RMSprop": optim.RMSprop,
        "Adam": optim.Adam,
        "AdamW": optim.AdamW,
    }
    made: Optimizer = makers[name](params, lr=lr)
    return made


def analyse(study: Study) -> Findings:
    """Who wins at equal epochs, the grids' curves, and what the lecture lets one expect."""
    best = best_rates(study)
    ran = chosen(study, best)
    columns = {"train_loss": "training loss", "test_error": "test error", "test_loss": "test loss"}
    formats = {"train_loss": ".2g", "test_error": ".3f", "test_loss": ".2f"}
    frame = mean_std(ran, {"optimizer": "entrant", "lr": "best rate"}, columns, formats=formats)
    frame.insert(0, "kind", [KIND[name] for name in frame["entrant"]])
    rates = {name: losses_by_rate(study, name) for name in KINDS["optimizer"] if name in best}
    axes: dict[str, Any] = {"xlabel": "learning rate", "ylabel": "final training loss, nats"}
    note = f"By kind. The base of the other kinds is {BASE}: constant rate, Kaiming, no normalization."
    return Findings(
        claims=_claims(study, best),
        tables=[Table("Equal epochs, each at its own best learning rate", frame, note)],
        pictures=[
            Picture(
                "ladder",
                "Each at its own best learning rate",
                _ladder(study, best),
                "A small mark for each seed, a large one for the mean. A lower training loss is not a lower error.",
            ),
            Picture(
                "rates",
                "Final training loss against learning rate, the optimizers",
                curves(rates, **axes, logx=True, logy=True),
                "Mean over seeds; the band is their range. Decades lie between the optimizers' best rates.",
            ),
        ],
    )


def _ladder(study: Study, best: Mapping[str, float]) -> Figure:
    """Training loss and test error of every entrant, a line for each."""
    names = [name for name in reversed(GUESS) if name in best]
    drawn = figure(1, 2, width=6.2, height=0.8 + 0.19 * len(names), sharey=True)
    with styled():
        for axes, (key, label) in zip(
            drawn.axes, {"train_loss": "training loss, nats", "test_error": "test error"}.items(), strict=True
        ):
            for place, name in enumerate(names):
                number = list(KINDS).index(KIND[name])
                seen = [v for v in study.by_seed(key, optimizer=name, lr=best[name]).values() if v == v]
                look: dict[str, Any] = {"color": PALETTE[number], "marker": MARKERS[number], "linestyle": "none"}
                axes.plot(seen, [place] * len(seen), markersize=3, alpha=0.5, **look)
                if seen:
                    axes.plot(statistics.fmean(seen), place, markersize=7, **look)
            axes.set_xlabel(label)
        drawn.axes[0].set_yticks(range(len(names)), names)
        for tick, name in zip(drawn.axes[0].get_yticklabels(), names, strict=True):
            tick.set_color(PALETTE[list(KINDS).index(KIND[name])])
        logarithmic(drawn.axes[0], "x")
        for number, kind in enumerate(KINDS):
            drawn.axes[0].plot([], [], color=PALETTE[number], marker=MARKERS[number], linestyle="none", label=kind)
        legend(drawn)
    return drawn


def _claims(study: Study, best: Mapping[str, float]) -> list[Claim]:
    def judge(text: str, where: str, winner: str, loser: str, key: str = "train_loss") -> list[Claim]:
        if not {winner, loser} <= best.keys():
            return []
        a, b = (study.by_seed(key, optimizer=name, lr=best[name]) for name in (winner, loser))
        unit = f"{'training loss' if key == 'train_loss' else 'test error'}, {winner} minus {loser}"
        return [paired("less", a, b, text=text, source=f"seed 004, {where}", unit=unit)]

    own = "each at its own best rate"
    return [
        *judge(f"Momentum speeds descent up, {own}.", "momentum", "momentum", "SGD"),
        *judge(f"Nesterov's gradient at the point ahead improves on momentum, {own}.", "Nesterov", "Nesterov", BASE),
        *judge(f"RMSprop's running mean repairs AdaGrad's slowdown, {own}.", "AdaGrad, RMSprop", "RMSprop", "AdaGrad"),
        *judge(f"AdaDelta repairs AdaGrad's slowdown, {own}.", "AdaGrad, AdaDelta", "AdaDelta", "AdaGrad"),
        *judge(f"Adam, which smooths the gradient too, improves on RMSprop, {own}.", "Adam", "Adam", "RMSprop"),
        *judge(f"Adam improves on momentum, {own}.", "Adam", "Adam", BASE),
        *judge("A rate that decays linearly improves on a constant one.", "learning rate", "str", BASE),
        *judge("A warmup improves on linear decay alone.", "learning rate, str+", "str+", "str"),
        *judge("For ReLU Kaiming's initialization trains faster than Glorot's.", "initialization", BASE, "Glorot"),
        *judge("Batch normalization speeds training up.", "normalization", "batch before", BASE),
        *judge("Batch normalization lowers the test error.", "normalization", "batch before", BASE, "test_error"),
    ]
