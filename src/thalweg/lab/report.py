"""The report: one HTML file that needs nothing else, made of finished studies and their findings.

No script, no request, no clock: style and figures are inline, the date is given, and equal input gives equal bytes.
What a template would have to compute is computed here, so that the template only says where things stand.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from thalweg.lab.claims import Claim, Verdict
from thalweg.lab.experiment import Findings, Picture, Study, Table
from thalweg.lab.figures import svg
from thalweg.lab.files import write_atomic
from thalweg.lab.tables import cells, numeric

__all__ = ["command", "render", "write"]

VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "undecided")


def render(studies: Sequence[tuple[Study, Findings]], *, environment: Mapping[str, Any], generated: str) -> str:
    """The whole report as HTML.

    Args:
        studies: what was run and what it says, in the order of the report.
        environment: what the numbers were made with: versions, processor, threads; shown as it comes.
        generated: the date, as it is to be read.

    Returns:
        An HTML document.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from thalweg import __version__

    engine = Environment(
        loader=PackageLoader("thalweg.lab"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    engine.filters["minus"] = lambda text: str(text).replace("-", "−")
    sections = [_Section(study, findings, f"study-{number}") for number, (study, findings) in enumerate(studies, 1)]
    verdicts = Counter(claim.verdict for section in sections for claim in section.claims)
    return engine.get_template("report.html.j2").render(
        sections=sections,
        counts={verdict: verdicts[verdict] for verdict in VERDICTS},
        environment={"thalweg": __version__, **environment},
        generated=generated,
    )


def write(
    path: str | os.PathLike[str],
    studies: Sequence[tuple[Study, Findings]],
    *,
    environment: Mapping[str, Any],
    generated: str,
) -> Path:
    """Write the report to ``path`` in one step, making its folder; the arguments are `render`'s."""
    target = Path(path)
    text = render(studies, environment=environment, generated=generated)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, text)
    return target


def command(study: Study) -> str:
    """What to type for the same numbers: preset, changed settings, and sweep and seeds where they are not the preset's.

    An experiment that plans its own grid plans it again, so its swept values are left out.
    """
    own = study.experiment
    words = ["thalweg", "run", own.name, "--preset", study.preset]
    words += [f"{key}={_word(value)}" for key, value in study.changes.items()]
    if own.plan is None:
        for key, wanted in own.swept(study.preset).items():
            seen = dict.fromkeys(getattr(result.config, key) for result in study.results)
            if set(seen) != set(wanted):
                words.append(f"{key}={','.join(map(_word, seen))}")
    seeds = sorted({result.seed for result in study.results})
    if seeds and seeds != list(range(own.presets[study.preset].seeds)):
        in_a_row = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
        words.append(f"seed={seeds[0]}:{seeds[-1] + 1}" if in_a_row else f"seed={','.join(map(str, seeds))}")
    return shlex.join(words)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class _Setting:
    name: str
    value: str
    origin: str
    instead_of: str = ""
    swept: bool = False


@dataclass(frozen=True)
class _Grid:
    """A `Table` as text, and which of its columns are numbers."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]


@dataclass(frozen=True)
class _Section:
    """A study as the template reads it. ``anchor`` is unique in the report, and so are the ids made from it."""

    study: Study
    findings: Findings
    anchor: str

    @property
    def claims(self) -> Sequence[Claim]:
        return self.findings.claims

    @property
    def badge(self) -> str:
        """Whether these are the published setting's numbers, which only the unchanged ``paper`` preset's are."""
        own = self.study.experiment.presets
        if "paper" not in own:
            return f"{self.study.preset} preset" + (": there is no paper preset" if len(own) > 1 else ", the only one")
        if self.study.preset != "paper":
            return f"{self.study.preset} preset: not the published setting"
        return "paper preset, changed: not the published setting" if self.study.changes else "the published setting"

    @property
    def short_badge(self) -> str:
        """The preset and what was changed, for the list of all claims."""
        changed = [f"{key} = {value}" for key, value in self.study.changes.items()]
        return ", ".join([self.study.preset, *(changed if len(changed) < 4 else [f"{len(changed)} settings changed"])])

    @property
    def published(self) -> bool:
        return self.study.preset == "paper" and not self.study.changes

    @property
    def about(self) -> list[tuple[str, bool]]:
        """What the experiment says of itself, its module's docstring: paragraphs, and whether each is a formula."""
        text = inspect.getdoc(inspect.getmodule(self.study.experiment.run)) or ""
        paragraphs = [part for part in re.sub(r"`+", "", text).split("\n\n") if part.strip()]
        return [(inspect.cleandoc(part), part.startswith("    ")) for part in paragraphs]

    @property
    def command(self) -> str:
        return command(self.study)

    @cached_property
    def settings(self) -> list[_Setting]:
        own = self.study.experiment
        preset = own.settings(self.study.preset)
        fields = own.config.model_fields
        rows = []
        for name in fields:
            origin = fields[name].description or ""
            if name in own.presets[self.study.preset].values and name not in self.study.changes:
                usual = fields[name].default
                origin = f"the {self.study.preset} preset; {usual} by default" + (f" ({origin})" if origin else "")
            if name in self.study.settings:
                instead_of = str(getattr(preset, name)) if name in self.study.changes else ""
                rows.append(_Setting(name, str(self.study.settings[name]), origin, instead_of))
            else:
                seen = dict.fromkeys(str(getattr(result.config, name)) for result in self.study.results)
                rows.append(_Setting(name, ", ".join(seen), origin, swept=True))
        return rows

    @property
    def swept(self) -> list[str]:
        return [setting.name for setting in self.settings if setting.swept]

    @property
    def tables(self) -> list[_Grid]:
        return [_grid(table) for table in self.findings.tables]

    @property
    def pictures(self) -> list[tuple[Picture, str]]:
        return [
            (picture, svg(picture.figure, f"{self.anchor}-figure-{number}", title=picture.title))
            for number, picture in enumerate(self.findings.pictures, 1)
        ]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """Each warning once, with the runs that gave it."""
        givers: dict[str, list[str]] = {}
        for run in self.study.results:
            values = [f"{key} {getattr(run.config, key)}" for key in self.study.experiment.sweep]
            for text in dict.fromkeys(run.warnings):
                givers.setdefault(text, []).append(", ".join([*values, f"seed {run.seed}"]))
        return [(text, "; ".join(who)) for text, who in givers.items()]

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [
            {
                "id": run.id,
                "seed": run.seed,
                "swept": [str(getattr(run.config, name)) for name in self.swept],
                "outcome": run.outcome,
                "seconds": f"{run.seconds:.1f}",
            }
            for run in self.study.results
        ]

    @property
    def outcomes(self) -> str:
        """Say "6 runs: 5 finished, 1 diverged", or "6 runs" where all finished."""
        counts = Counter(run.outcome for run in self.study.results)
        total = f"{len(self.study.results)} run{'' if len(self.study.results) == 1 else 's'}"
        if set(counts) <= {"finished"}:
            return total
        return f"{total}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items(), reverse=True))

    @property
    def environments(self) -> list[str]:
        """What the runs were made with, each different environment once."""
        return list(
            dict.fromkeys(
                ", ".join(f"{key} {value}" for key, value in sorted(run.environment.items()))
                for run in self.study.results
                if run.environment
            )
        )


def _grid(table: Table) -> _Grid:
    headings, rows = cells(table.frame)
    return _Grid(table.title, table.note, headings, rows, [numeric(rows, column) for column in range(len(headings))])
