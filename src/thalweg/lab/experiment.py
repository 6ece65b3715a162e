"""What an experiment is: a module with a source, a typed ``Config``, ``PRESETS``, ``run`` and ``analyse``.

    SOURCE    the seed and the section, figure or table it reproduces
    TITLE     one line for ``thalweg list``
    VERSION   an integer, raised whenever its results change
    HEADLINE  True for the one experiment of its seed that ``reproduce --headline`` runs
    SWEEP     {field: values}: what varies inside one study, and is compared by ``analyse``
    Config    a `Settings` model; each field's description names where its value comes from
    PRESETS   {"quick" | "laptop" | "paper": Preset}
    run       (trial, log) -> Ending: one training run, one seed
    analyse   (study) -> Findings: tables, figures and claims
    plan      optional: (settings, sweep, seeds, results) -> the settings wanted, for grids that look at results
    REPLICAS  optional: the fields in which runs of one seed may differ to be given to ``run_many`` together
    run_many  optional: (trials, logs) -> an Ending for each: `run` of all of them, with equal results

Experiment modules import torch inside ``run`` only: listing, tables and reports work without it.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thalweg.lab.claims import Claim
from thalweg.lab.errors import LabError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "Ending",
    "Experiment",
    "Findings",
    "Picture",
    "Preset",
    "Result",
    "Settings",
    "Study",
    "Table",
    "experiment",
    "experiment_names",
]

PACKAGE = "thalweg.lab.experiments"


class Settings(BaseModel):
    """Resolved values of one trial; unknown keys are refused. Experiments subclass it as ``Config``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: str = Field(description="the named size that the other values come from")


@dataclass(frozen=True)
class Preset:
    """A named size of an experiment.

    Attributes:
        time: how long it takes on two CPU cores.
        seeds: how many.
        values: settings that differ from the defaults of ``Config``.
        sweep: what varies, where it is not what ``SWEEP`` says; its keys are among those of ``SWEEP``.
    """

    time: str
    seeds: int
    values: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """What ``run`` returns: final numbers, how training ended (see `Result`), its seconds, its data's fingerprints."""

    values: Mapping[str, float]
    outcome: str = "finished"
    seconds: float = 0.0
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What one finished trial left behind.

    ``outcome`` is "finished", "diverged" (NaN or Inf) or "dead" (finite, but trained to ruin). ``values`` are the final
    numbers, ``rows`` the metrics by epoch; numbers that were not finite come back as NaN. ``seconds`` is training time.
    """

    id: str
    config: Settings
    seed: int
    outcome: str
    values: Mapping[str, float]
    rows: Sequence[Mapping[str, float]]
    seconds: float
    warnings: Sequence[str]
    environment: Mapping[str, Any]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs and the metric's values, where it was measured."""
        rows = [row for row in self.rows if key in row]
        return [row["epoch"] for row in rows], [row[key] for row in rows]


@dataclass(frozen=True)
class Study:
    """All results of one experiment that differ in swept fields and seed only; ``settings`` are the shared values."""

    experiment: Experiment
    settings: Mapping[str, Any]
    results: Sequence[Result]

    @property
    def preset(self) -> str:
        return str(self.settings["preset"])

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that differ from the preset's own: a changed preset must not pose as the preset."""
        own = self.experiment.settings(self.preset)
        return {key: value for key, value in self.settings.items() if value != getattr(own, key)}

    def where(self, **values: Any) -> list[Result]:
        """Results whose swept fields have these values, by seed."""
        hits = [r for r in self.results if all(getattr(r.config, key) == value for key, value in values.items())]
        return sorted(hits, key=lambda result: result.seed)

    def by_seed(self, key: str, **values: Any) -> dict[int, float]:
        """Seed -> final value of the results `where` finds; NaN for a run that did not survive."""
        return {r.seed: r.values[key] if r.outcome == "finished" else math.nan for r in self.where(**values)}


@dataclass(frozen=True)
class Table:
    """A table of the report: cells as they are to be read; ``note`` defines its terms."""

    title: str
    frame: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure of the report; ``name`` is its file name, ``caption`` says what it shows and what to see."""

    name: str
    title: str
    figure: Figure
    caption: str = ""


@dataclass(frozen=True)
class Findings:
    """What ``analyse`` returns."""

    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()


Plan = Callable[[Settings, Mapping[str, Sequence[Any]], Sequence[int], Sequence[Result]], Iterable[Settings]]


@dataclass(frozen=True)
class Experiment:
    """An experiment module, checked."""

    name: str
    source: str
    title: str
    version: int
    headline: bool
    sweep: Mapping[str, tuple[Any, ...]]
    config: type[Settings]
    presets: Mapping[str, Preset]
    run: Callable[..., Ending]
    analyse: Callable[[Study], Findings]
    plan: Plan | None
    replicas: tuple[str, ...] = ()
    run_many: Callable[..., list[Ending]] | None = None

    def swept(self, preset: str) -> dict[str, tuple[Any, ...]]:
        """What varies inside one study of this preset: field -> values."""
        return {**self.sweep, **self.presets[preset].sweep}

    def settings(self, preset: str, **overrides: Any) -> Settings:
        """The preset's values with ``overrides``, validated; swept fields take their first value."""
        if preset not in self.presets:
            raise LabError.unknown(f"preset of {self.name} called", preset, self.presets)
        for key in overrides:
            if key not in self.config.model_fields:
                known = [field for field in self.config.model_fields if field != "preset"]
                raise LabError.unknown(f"setting of {self.name} called", key, [*known, "seed"])
        first = {key: values[0] for key, values in self.swept(preset).items() if values}
        try:
            return self.config(**{"preset": preset, **first, **self.presets[preset].values, **overrides})
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"])) or "settings"
            reason = detail["msg"].removeprefix("Value error, ")  # pydantic's, before a sentence of our own
            raise LabError(f"{self.name}: {key}={detail['input']!r} is not accepted: {reason}") from error


def experiment(name: str) -> Experiment:
    """The experiment called ``name``: a module of `thalweg.lab.experiments`, or a plugin's entry point."""
    known = _modules()
    if name not in known:
        raise LabError.unknown("experiment called", name, sorted(known))
    module = importlib.import_module(known[name])
    return Experiment(
        name=name,
        source=module.SOURCE,
        title=module.TITLE,
        version=module.VERSION,
        headline=getattr(module, "HEADLINE", False),
        sweep=module.SWEEP,
        config=module.Config,
        presets=module.PRESETS,
        run=module.run,
        analyse=module.analyse,
        plan=getattr(module, "plan", None),
        replicas=getattr(module, "REPLICAS", ()),
        run_many=getattr(module, "run_many", None),
    )


def experiment_names() -> list[str]:
    """Every experiment that is installed, sorted."""
    return sorted(_modules())


def _modules() -> dict[str, str]:
    package = importlib.import_module(PACKAGE)
    own: Iterator[str] = (info.name for info in pkgutil.iter_modules(package.__path__))
    plugins = {point.name: point.value for point in entry_points(group="thalweg.experiments")}
    return {**plugins, **{name.replace("_", "-"): f"{PACKAGE}.{name}" for name in own}}
