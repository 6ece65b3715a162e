"""Classification accuracy of six weight regularizations: both tables of seed 002.

The slides print mean ± spread for ResNet-34 and ResNet-50 on CIFAR-10, CIFAR-100 and SVHN; they do not give the frame
bounds, the coefficient, the initialization, the optimizer's settings or the number of seeds. Every rival has the
coefficient and schedule published for it and weight decay; the frame penalty has none (slide 15: it "allowed to drop"
weight decay) and starts from tight frames, because from He's initialization it collapses (see frame-anatomy).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Ending, Findings, Picture, Preset, Study, Table
from thalweg.lab.figures import panels
from thalweg.lab.frame_settings import CIFAR, FRAMES, METHODS, TIGHT, FrameSettings, Init, Method
from thalweg.lab.tables import mean_std
from thalweg.lab.trial import Log, Trial

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "seed 002, slide 12: both accuracy tables"
TITLE = "Accuracy of the frame penalty against MHE, SO, SRIP, OCNN and none"
VERSION = 2
HEADLINE = True
RIVALS = ("none", "mhe", "so", "srip", "ocnn")
SWEEP: dict[str, tuple[Any, ...]] = {
    "network": ("resnet34", "resnet50"),
    "data": ("cifar10", "cifar100", "svhn"),
    "method": (*RIVALS, "frame"),
}
PRINTED = {  # slide 12: mean and spread in per cent, in the order of SWEEP
    ("resnet34", "cifar10"): "94.53 ± 0.03, 94.58 ± 0.04, 94.59 ± 0.04, 94.72 ± 0.03, 95.03 ± 0.04, 95.17 ± 0.05",
    ("resnet34", "cifar100"): "75.58 ± 0.08, 75.78 ± 0.08, 75.98 ± 0.08, 76.24 ± 0.09, 76.57 ± 0.06, 77.61 ± 0.07",
    ("resnet34", "svhn"): "96.50 ± 0.03, 96.59 ± 0.03, 96.51 ± 0.02, 96.57 ± 0.03, 96.66 ± 0.02, 96.85 ± 0.02",
    ("resnet50", "cifar10"): "94.83 ± 0.04, 94.88 ± 0.03, 94.92 ± 0.04, 95.01 ± 0.03, 95.29 ± 0.03, 95.25 ± 0.04",
    ("resnet50", "cifar100"): "77.20 ± 0.07, 77.34 ± 0.06, 77.38 ± 0.06, 77.40 ± 0.07, 77.77 ± 0.07, 78.35 ± 0.06",
    ("resnet50", "svhn"): "96.92 ± 0.03, 96.94 ± 0.02, 96.91 ± 0.03, 96.95 ± 0.03, 97.01 ± 0.02, 97.10 ± 0.02",
}
NAMES = {
    "plain8": "plain CNN",
    "resnet8": "ResNet-8",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
}


class Config(FrameSettings):
    """The seed's comparison."""

    method: Method = Field("none", description="slide 12; polyak and spectral are ours")
    decay: float = Field(5e-4, ge=0, description="of the rivals and of none; not in the slides, the CIFAR recipes'")
    frame_decay: float = Field(0.0, ge=0, description="of the frame penalties; slide 15: dropped")
    frame_init: Init = Field("frame", description="of frame and polyak; not in the slides, ours; the others have He's")


PRESETS = {
    "quick": Preset("25 s", 3, {"epochs": 10}, {"network": ("plain8",), "data": ("digits",)}),
    "laptop": Preset(
        "10 min",
        3,
        {**CIFAR, "width": 16, "augment": True, "epochs": 15},
        {"network": ("resnet8",), "data": ("cifar10",)},
    ),
    "paper": Preset("GPU weeks, estimated", 3, {"width": 64, "augment": True, "epochs": 200}),
}


def run(trial: Trial, log: Log) -> Ending:
    """Train one network with one method on one set."""
    from thalweg.lab.training.classification import train_regularized

    config: Any = trial.config
    return train_regularized(
        trial,
        log,
        method=config.method,
        init=config.frame_init if config.method in TIGHT else "he",
        decay=config.frame_decay if config.method in FRAMES else config.decay,
    )


def analyse(study: Study) -> Findings:
    """A table for each network, measured beside printed, and the order of the methods."""
    pairs = list(
        dict.fromkeys((r.config.model_dump()["network"], r.config.model_dump()["data"]) for r in study.results)
    )
    networks = list(dict.fromkeys(network for network, _ in pairs))
    titled = {f"{NAMES.get(n, n)}, {NAMES.get(d, d)}": (n, d) for n, d in pairs}
    methods = [m for m in METHODS if study.where(method=m)]
    views = {
        title: {METHODS[m]: [r.series("accuracy") for r in study.where(network=n, data=d, method=m)] for m in methods}
        for title, (n, d) in titled.items()
    }
    note = "Test accuracy in per cent after the last epoch."
    if any(pair in PRINTED for pair in pairs):
        note += " Printed: slide 12; whether its ± is a deviation is not said."
    return Findings(
        claims=[claim for pair in pairs for claim in _claims(study, *pair)],
        tables=[Table(f"Accuracy, {NAMES.get(n, n)}", _table(study, n, methods), note) for n in networks],
        pictures=[
            Picture(
                "accuracy",
                "Test accuracy by epoch",
                panels(
                    views,
                    columns=min(3, len(views)),
                    xlabel="epoch",
                    ylabel="accuracy, %",
                    width=4.8 if len(views) < 3 else 7.2,
                ),
                "Mean over seeds; the band is their range.",
            )
        ],
    )


def _table(study: Study, network: str, methods: list[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame({"method": [METHODS[m] for m in methods]})
    for data in dict.fromkeys(r.config.model_dump()["data"] for r in study.where(network=network)):
        own = study.where(network=network, data=data)
        found = mean_std(own, ["method"], ["accuracy"], formats={"accuracy": ".2f"}).set_index("method")
        name = NAMES.get(data, data)
        frame[name] = [found["accuracy"].get(m) for m in methods]
        if "not averaged" in found:
            frame[f"{name}, not averaged"] = [found["not averaged"].get(m, "") for m in methods]
        if (network, data) in PRINTED:
            printed = _printed(network, data)
            frame[f"{name}, printed"] = [printed.get(m) for m in methods]
    frame["seeds"] = len({r.seed for r in study.where(network=network)})
    return frame


def _printed(network: str, data: str) -> dict[str, str]:
    """Method -> cell of the slide; nothing for a column that it does not have."""
    cells = PRINTED.get((network, data))
    return dict(zip(SWEEP["method"], cells.split(", "), strict=True)) if cells else {}


def _claims(study: Study, network: str, data: str) -> list[Claim]:
    accuracy = {
        m: found for m in SWEEP["method"] if (found := study.by_seed("accuracy", network=network, data=data, method=m))
    }
    printed = {m: float(cell.split()[0]) for m, cell in _printed(network, data).items()}
    place = f"{NAMES.get(network, network)}, {NAMES.get(data, data)}"
    claims = []
    for rival in RIVALS if "frame" in accuracy else ():
        if rival not in accuracy:
            continue
        gap = printed["frame"] - printed[rival] if printed else 1.0
        claims.append(
            paired(
                "greater" if gap > 0 else "less",
                accuracy["frame"],
                accuracy[rival],
                text=f"{place}: the frame penalty is {'more' if gap > 0 else 'less'} accurate than "
                f"{'no penalty' if rival == 'none' else METHODS[rival]}.",
                source="seed 002, slide 12",
                unit=f"accuracy in points, frame minus {METHODS[rival]}",
                printed=f"{gap:+.2f}" if printed else "",
            )
        )
    reference = printed or {m: float(rank) for rank, m in enumerate(SWEEP["method"])}
    if len(accuracy) == len(SWEEP["method"]):
        agreement = {seed: _kendall(reference, {m: a[seed] for m, a in accuracy.items()}) for seed in accuracy["frame"]}
        order = "the printed table's" if printed else "that of the ResNet-34 table on CIFAR-10"
        claims.append(
            paired(
                "greater",
                agreement,
                dict.fromkeys(agreement, 0.0),
                text=f"{place}: the order of the six methods is {order}.",
                source="seed 002, slide 12",
                unit="Kendall's τ between the two orders",
            )
        )
    return claims


def _kendall(a: dict[str, float], b: dict[str, float]) -> float:
    """Share of pairs in the same order minus share in the opposite one.

    >>> _kendall({"x": 1.0, "y": 2.0, "z": 3.0}, {"x": 5.0, "y": 7.0, "z": 6.0})
    0.3333333333333333
    """
    signs = [(a[m] - a[n]) * (b[m] - b[n]) for m, n in product(a, a) if m < n]
    return sum((s > 0) - (s < 0) for s in signs) / len(signs)
