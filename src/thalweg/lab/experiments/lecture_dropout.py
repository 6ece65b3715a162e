r"""Dropout: its masks, equality in expectation, the average of 2ᴺ networks, and which p is good.

    classic   training r ⊙ x,  prediction (1 - p) x          inverted   training r ⊙ x/(1 - p),  prediction x

"Equivalent to averaging 2ᴺ models" is tested on a hidden layer of N neurons whose masks are all listed: on the linear
output, on its softmax (arithmetic and geometric mean), and behind one more ReLU layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import PALETTE, curves, figure, styled
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "seed 004, regularization: dropout"
TITLE = "Dropout: masks, expectation, the average of 2^N models, recommended p"
VERSION = 1
SWEEP: dict[str, tuple[Any, ...]] = {"p_input": (0.0, 0.2, 0.5), "p_hidden": (0.0, 0.2, 0.5, 0.8)}
KINDS = {
    "linear": "linear output, arithmetic mean",
    "geometric": "softmax, geometric mean",
    "softmax": "softmax, arithmetic mean",
    "behind ReLU": "behind a ReLU layer, arithmetic mean",
}
SHOWN = (20, 8)  # training examples and neurons of the figure of masks
DRAWN = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Config(Settings):
    """A perceptron with more neurons than its few images need."""

    p_input: float = Field(0.0, ge=0, lt=1, description="swept; the lecture recommends 0.1 to 0.2")
    p_hidden: float = Field(0.5, ge=0, lt=1, description="swept; the lecture recommends 0.2 to 0.5")
    neurons: int = Field(8, ge=1, le=16, description="ours: N of the 2ᴺ networks that are listed")
    data: str = Field("digits", description="ours: the lecture names no data")
    samples: int = Field(300, ge=1, description="ours: few training images, so that there is something to regularize")
    width: int = Field(128, ge=1, description="ours: neurons of each of two hidden layers")
    lr: float = Field(0.03, gt=0, description="ours: SGD with momentum 0.9")
    batch: int = Field(50, ge=1, description="ours")
    epochs: int = Field(30, ge=1, description="ours")


PRESETS = {
    "quick": Preset("10 s", 8),
    "laptop": Preset("20 min, estimated", 5, {"data": "fashion-mnist", "samples": 3000, "width": 512}),
}


def plan(
    settings: Settings, sweep: Mapping[str, Sequence[Any]], seeds: Sequence[int], results: Sequence[Result]
) -> list[Settings]:
    """Inputs or hidden neurons, one at a time; both together only if nothing else is asked for."""
    base = settings.model_dump(exclude={"p_input", "p_hidden"})
    grid = [{"p_input": a, "p_hidden": b} for a in sweep["p_input"] for b in sweep["p_hidden"]]
    return [Config(**base, **p) for p in [p for p in grid if not all(p.values())] or grid]


def run(trial: Trial, log: Log) -> Ending:
    """Train with dropout; the comparisons without training use the same seed."""
    import torch
    from torch.optim import SGD

    from thalweg.lab.training.lecture_dropout import averages, expectation
    from thalweg.lab.training.lecture_networks import perceptron, sets, train_classifier
    from thalweg.lecture import keep_mask

    config: Any = trial.config
    data = sets(trial, config.data, samples=config.samples)
    p = (config.p_input, config.p_hidden)
    sizes = (data.inputs, config.width, config.width, 10)
    model = perceptron(sizes, weights=trial.generator("weights"), masks=trial.generator("masks"), dropout=p)
    optimizer = SGD(model.parameters(), lr=config.lr, momentum=0.9)
    ended = train_classifier(trial, log, model, optimizer, data, epochs=config.epochs, batch=config.batch)
    final = {key: ended.values[key] for key in ("train_loss", "test_loss", "test_error")}
    hidden = config.p_hidden
    for count, distance in zip(DRAWN, expectation(hidden, DRAWN, trial.generator("expectation")), strict=True):
        log.row(epoch=count, distance=distance)
    for example, mask in enumerate(keep_mask(torch.ones(*SHOWN), hidden, generator=trial.generator("shown")).tolist()):
        log.row(epoch=example, **{f"neuron {j}": kept for j, kept in enumerate(mask)})
    gaps = averages(config.neurons, hidden, trial.generator("average"))
    return Ending(final | gaps, ended.outcome, ended.seconds, ended.data)


def analyse(study: Study) -> Findings:
    """Where the lecture's equivalences are exact, and the test error by p."""
    by = {"p_input": "p of the inputs", "p_hidden": "p of hidden neurons"}
    columns = {"test_error": "test error", "test_loss": "test loss", "train_loss": "training loss"}
    errors = mean_std(
        study.results, by, columns, formats={"test_error": ".3f", "test_loss": ".2f", "train_loss": ".2g"}
    )
    plain = [result for result in study.results if result.config.p_input == 0 and result.config.p_hidden]  # type: ignore[attr-defined]
    hidden: dict[float, list[Any]] = {}
    for result in plain:
        hidden.setdefault(result.config.p_hidden, []).append(result)  # type: ignore[attr-defined]
    average = mean_std(plain, {"p_hidden": "p"}, KINDS, formats=dict.fromkeys(KINDS, ".1e"))
    near = {f"p = {p:g}": [r.series("distance") for r in runs] for p, runs in hidden.items()}
    by_p = {"of hidden neurons": _by_p(study, "p_hidden", "p_input"), "of inputs": _by_p(study, "p_input", "p_hidden")}
    return Findings(
        claims=_claims(study),
        tables=[
            Table(
                "Scaling the weights against averaging all masks: largest difference",
                average,
                "Relative to the largest output. Exact means rounding in float64, about 1e-16.",
            ),
            Table("Test error by p, of the inputs or of the hidden neurons", errors),
        ],
        pictures=[
            Picture(
                "masks",
                "Which neurons stay: a column of masks for each training example",
                _masks({p: runs[0] for p, runs in hidden.items()}),
                "Large: the neuron stays. Small: it is dropped. Every example thins the network anew.",
            ),
            Picture(
                "expectation",
                "Mean output of inverted dropout against the prediction",
                curves(near, xlabel="masks averaged, n", ylabel="relative distance", logx=True, logy=True),
                "Mean over seeds; the band is their range. The mean closes in on the prediction like √(p/(1 - p)/n).",
            ),
            Picture(
                "p",
                "Test error by p, of the hidden neurons or of the inputs",
                curves(by_p, xlabel="p", ylabel="test error", logy=True),
                "Mean over seeds; the band is their range. The lecture recommends 0.1 to 0.2 for inputs, 0.2 to 0.5 "
                "for hidden neurons.",
            ),
        ],
    )


def _by_p(study: Study, swept: str, other: str) -> list[tuple[list[float], list[float]]]:
    """The test error by one p where the other is 0, a run for each seed."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for result in study.where(**{other: 0.0}):
        rows.setdefault(result.seed, []).append((getattr(result.config, swept), result.values["test_error"]))
    return [([x for x, _ in sorted(row)], [y for _, y in sorted(row)]) for row in rows.values()]


def _masks(runs: Mapping[float, Result]) -> Figure:
    """A panel for each p: examples along x, neurons along y."""
    drawn = figure(len(runs), 1, height=0.55 + 1.15 * len(runs), sharex=True)
    with styled():
        for number, (axes, (p, run)) in enumerate(zip(drawn.axes, runs.items(), strict=True)):
            places = [(x, j, kept) for j in range(SHOWN[1]) for x, kept in zip(*run.series(f"neuron {j}"), strict=True)]
            for stays, size in ((1.0, 6.0), (0.0, 1.5)):
                x, y, _ = zip(*[place for place in places if place[2] == stays], strict=True)
                axes.plot(x, y, "o", markersize=size, color=PALETTE[number])
            axes.set_title(f"p = {p:g}", loc="left", fontsize=9)
            axes.set(xticks=range(0, SHOWN[0], 5), yticks=[], ylabel="neuron", ylim=(-0.7, SHOWN[1] - 0.3))
            axes.grid(visible=False)
        drawn.axes[-1].set_xlabel("training example")
    return drawn


def _claims(study: Study) -> list[Claim]:
    def judge(text: str, side: str, a: dict[int, float], b: dict[int, float], unit: str) -> list[Claim]:
        return [paired(side, a, b, text=text, source="seed 004, dropout", unit=unit)] if a and b else []  # type: ignore[arg-type]

    def error(p_input: float, p_hidden: float) -> dict[int, float]:
        return study.by_seed("test_error", p_input=p_input, p_hidden=p_hidden)

    found = []
    for kind, name in KINDS.items():
        gap = study.by_seed(kind, p_input=0.0, p_hidden=0.5)
        text = f"Dropout is equivalent to averaging 2ᴺ models: {name}, to rounding (10⁻¹²)."
        found += judge(text, "less", gap, dict.fromkeys(gap, 1e-12), "relative difference minus 10⁻¹²")
    none, what = error(0.0, 0.0), "test error, minus that at p ="
    return [
        *found,
        *judge("p = 0.5 of hidden neurons lowers the test error.", "less", error(0.0, 0.5), none, f"{what} 0"),
        *judge("p = 0.2 of hidden neurons lowers the test error.", "less", error(0.0, 0.2), none, f"{what} 0"),
        *judge("p = 0.2 of the inputs lowers the test error.", "less", error(0.2, 0.0), none, f"{what} 0"),
        *judge(
            "Beyond the recommended range of hidden neurons, 0.8, the test error is higher than at 0.5.",
            "greater", error(0.0, 0.8), error(0.0, 0.5), f"{what} 0.5",
        ),
        *judge(
            "Dropping inputs loses information: at 0.5, beyond the range, the test error is higher than at 0.2.",
            "greater", error(0.5, 0.0), error(0.2, 0.0), f"{what} 0.2",
        ),
    ]  # fmt: skip
