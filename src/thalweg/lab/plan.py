"""From a request on the command line to trials: grid x seeds, and back from results to studies."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Experiment, Result, Settings, Study, experiment
from thalweg.lab.trial import Trial

__all__ = ["Request", "bases", "parse", "request", "studies", "trials"]


@dataclass(frozen=True)
class Request:
    """What was asked for: kept in the store until it is done, so that ``thalweg resume`` can go on with it."""

    experiment: str
    preset: str
    overrides: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Sequence[int] = ()

    @property
    def name(self) -> str:
        """A file name: equal requests have equal names."""
        return f"{self.experiment}-{hashlib.sha256(self.to_json().encode()).hexdigest()[:16]}.json"

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Request:
        return cls(**json.loads(text))


def parse(words: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``key=value`` words: commas list values, ``a:b`` is the integers from a up to, not including, b.

    >>> parse(["lr=0.1,0.3", "seed=0:3", "source=notebook"])
    {'lr': ['0.1', '0.3'], 'seed': [0, 1, 2], 'source': ['notebook']}
    """
    values: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals and text):
            raise LabError(f"{word!r} is not a setting: write key=value, key=value1,value2 or key=first:end")
        if key in values:
            raise LabError(f"{key} is given twice: list its values with commas, as in {key}=a,b")
        values[key] = [value for part in text.split(",") for value in _expand(key, part)]
    return values


def _expand(key: str, part: str) -> list[Any]:
    first, colon, end = part.partition(":")
    if not colon:
        return [part]
    try:
        numbers = list(range(int(first), int(end)))
    except ValueError:
        numbers = []
    if not numbers:
        raise LabError(f"{key}={part} is not a range: write first:end with first < end, as in seed=0:5")
    return numbers


def request(name: str, preset: str, words: Sequence[str] = ()) -> Request:
    """A checked request: unknown names and values that do not fit are refused before anything runs."""
    overrides = parse(words)
    if "preset" in overrides:
        raise LabError(f"the preset is an option: write --preset {overrides['preset'][0]}")
    asked = overrides.pop("seed", None)
    wanted = experiment(name)
    wanted.settings(preset)
    try:
        seeds = [int(seed) for seed in asked] if asked else list(range(wanted.presets[preset].seeds))
    except ValueError as error:
        raise LabError(f"seed={','.join(map(str, asked or ()))} is not a list of integers, as in seed=0:5") from error
    wish = Request(name, preset, overrides, seeds)
    trials(wish, ())
    return wish


def trials(wish: Request, results: Sequence[Result]) -> list[Trial]:
    """The trials a request wants, given the results so far; plain grids do not look at them."""
    wanted = experiment(wish.experiment)
    sweep = {
        key: [getattr(wanted.settings(wish.preset, **{key: value}), key) for value in wish.overrides.get(key, values)]
        for key, values in wanted.swept(wish.preset).items()
    }
    found: list[Trial] = []
    for base in _bases(wanted, wish):
        for settings in _grid(wanted, base, sweep, wish.seeds, results):
            found += [Trial(wanted.name, wanted.version, settings, seed) for seed in wish.seeds]
    return found


def bases(wish: Request) -> list[dict[str, Any]]:
    """The shared settings of every study that a request wants."""
    wanted = experiment(wish.experiment)
    return [_shared(wanted, base) for base in _bases(wanted, wish)]


def _bases(wanted: Experiment, wish: Request) -> list[Settings]:
    shared = {key: values for key, values in wish.overrides.items() if key not in wanted.sweep}
    combinations = itertools.product(*shared.values())
    return [wanted.settings(wish.preset, **dict(zip(shared, values, strict=True))) for values in combinations]


def _grid(
    wanted: Experiment,
    base: Settings,
    sweep: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    results: Sequence[Result],
) -> list[Settings]:
    shared = _shared(wanted, base)
    changes = {key: value for key, value in shared.items() if key != "preset"}
    if wanted.plan is None:
        grid = itertools.product(*sweep.values())
        return [wanted.settings(base.preset, **changes, **dict(zip(sweep, values, strict=True))) for values in grid]
    own = [result for result in results if _shared(wanted, result.config) == shared]
    return list(wanted.plan(base, sweep, seeds, own))


def studies(wanted: Experiment, results: Sequence[Result]) -> list[Study]:
    """Group results that differ in swept fields and seed only: presets and changed settings never mix."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps(_shared(wanted, result.config), sort_keys=True, default=str), []).append(result)
    presets = list(wanted.presets)
    found = [
        Study(wanted, _shared(wanted, group[0].config), sorted(group, key=lambda result: _place(wanted, result)))
        for group in groups.values()
    ]
    return sorted(found, key=lambda study: (presets.index(study.preset), len(study.changes), str(study.settings)))


def _place(wanted: Experiment, result: Result) -> tuple[Any, ...]:
    """Sort key of a result inside its study: numbers by size, names in the experiment's order, then the seed."""
    place: list[Any] = []
    for key, values in wanted.sweep.items():
        value = getattr(result.config, key)
        place.append(
            (values.index(value) if value in values else len(values), value) if isinstance(value, str) else value
        )
    return (*place, result.seed)


def _shared(wanted: Experiment, settings: Settings) -> dict[str, Any]:
    return {key: value for key, value in settings.model_dump().items() if key not in wanted.sweep}
