"""What the report's tests are made of: a made-up experiment, its runs, and what they say. Nothing here trains."""

from __future__ import annotations

import math
from functools import cache

import pandas as pd
import pytest
from pydantic import Field

from thalweg.lab.claims import Claim, paired
from thalweg.lab.experiment import Experiment, Findings, Picture, Preset, Result, Settings, Study, Table
from thalweg.lab.figures import curves
from thalweg.lab.report import render
from thalweg.lab.tables import mean_std

ENVIRONMENT = {"python": "3.11.7", "torch": "2.13.0", "device": "CPU", "threads": 2}


class SyntheticConfig(Settings):
    optimizer: str = Field("sgd", description="seed 000, section 5: the two methods compared")
    lr: float = Field(0.1, description="seed 000, section 4.3")
    epochs: int = Field(100, description="seed 000, section 4.3")
    latent: int = Field(16, description="seed 000, section 4.3: latent_dim")


def synthetic_result(optimizer: str, seed: int, *, outcome: str = "finished", **settings: object) -> Result:
    config = SyntheticConfig(preset="quick", optimizer=optimizer, **settings)
    speed = 0.35 if optimizer == "csgd" else 0.18
    rows = [
        {
            "epoch": float(t),
            "loss": 30 * math.exp(-speed * t) + 12 + seed * 0.4 + 0.3 * math.sin(3 * t + seed * (1 + speed)),
        }
        for t in range(1, 21)
    ]
    if outcome == "diverged":
        rows = [*rows[:6], {"epoch": 7.0, "loss": math.nan}]
    mse = rows[-1]["loss"]
    return Result(
        id=f"{optimizer}{seed}".ljust(32, "0"),
        config=config,
        seed=seed,
        outcome=outcome,
        values={"mse": mse, "ssim": 9 / mse},
        rows=rows,
        seconds=1.5 + seed,
        warnings=["the learning rate is above 2 / (h (1 + s²))"],
        environment=ENVIRONMENT,
    )


def synthetic_analyse(study: Study) -> Findings:
    runs = {name: study.where(optimizer=key) for name, key in (("SGD", "sgd"), ("CSGD", "csgd"))}
    mse, ssim = (
        {name: {r.seed: r.values[value] for r in of} for name, of in runs.items()} for value in ("mse", "ssim")
    )
    loss = {
        name: [([w["epoch"] for w in r.rows], [w["loss"] for w in r.rows]) for r in of] for name, of in runs.items()
    }
    claims: list[Claim] = [
        paired(side, of["CSGD"], of["SGD"], text=text, source="seed 000, section 5.2", unit=unit, printed=printed)
        for side, of, text, unit, printed in (
            (
                "less",
                mse,
                "CSGD reconstructs test images with a smaller error than SGD.",
                "test MSE, CSGD minus SGD",
                "−2.7",
            ),
            ("less", ssim, "CSGD reconstructs structure worse than SGD.", "test SSIM, CSGD minus SGD", "0.05"),
        )
    ]
    claims.append(
        paired(
            "less",
            {0: 1.0},
            {0: 2.0},
            text="CSGD converges in fewer epochs.",
            source="seed 000, section 5.1",
            unit="epochs",
        )
    )
    frame = mean_std(study.results, {"optimizer": "Method"}, {"mse": "MSE", "ssim": "SSIM"}, formats={"mse": ".2f"})
    wide = pd.DataFrame({f"noise level {level}": [level / 7, level / 3] for level in range(12)})
    drawing = curves(loss, xlabel="epoch", ylabel="training MSE", logy=True)
    return Findings(
        claims=claims,
        tables=[
            Table(
                "Test errors after training", frame, note="MSE is summed over 784 pixels; ± is one standard deviation."
            ),
            Table("A wide table", wide),
        ],
        pictures=[Picture("loss", "Training error by epoch", drawing, "The band is the range over seeds.")],
        notes=["The rule that halves the learning rate is the seed's, read as relative change of the training error."],
    )


SYNTHETIC = Experiment(
    name="autoencoder-loss",
    source="seed 000, figure 2 and table 1",
    title="CSGD against SGD on the Fashion-MNIST autoencoder",
    version=1,
    headline=True,
    sweep={"optimizer": ("sgd", "csgd")},
    config=SyntheticConfig,
    presets={"quick": Preset("10 s", 3, {"epochs": 20}), "paper": Preset("1 h", 3)},
    run=lambda *_: pytest.fail("nothing here trains"),
    analyse=synthetic_analyse,
    plan=None,
)


def synthetic_studies() -> list[tuple[Study, Findings]]:
    """Two studies: the quick preset, and one with changed settings in which a run diverged."""
    studies = []
    for changes in ({}, {"lr": 0.5}):
        results = [
            synthetic_result(
                optimizer,
                seed,
                epochs=20,
                outcome="diverged" if changes and (optimizer, seed) == ("csgd", 1) else "finished",
                **changes,
            )
            for optimizer in ("sgd", "csgd")
            for seed in range(3)
        ]
        settings = {"preset": "quick", "lr": 0.1, "epochs": 20, "latent": 16, **changes}
        study = Study(SYNTHETIC, settings, results)
        studies.append((study, synthetic_analyse(study)))
    return studies


@cache
def synthetic_report() -> str:
    """The report of the two studies."""
    return render(synthetic_studies(), environment=ENVIRONMENT, generated="21 November 2026")
