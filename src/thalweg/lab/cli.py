"""The command line: ``thalweg list run reproduce status resume table figure report lecture data doctor rm``.

Exit code 0: done, 1: a run failed, 2: bad input. Only commands that train, and ``lecture TOPIC``, which measures,
import torch.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import thalweg
from thalweg.lab.errors import LabError

if TYPE_CHECKING:
    from thalweg.lab.experiment import Findings, Study
    from thalweg.lab.plan import Request

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Data sets: what is known, where it was found, whether it is whole.", no_args_is_help=True)
app.add_typer(data_app, name="data")

TableStyle = Literal["text", "markdown", "csv", "latex", "json"]
Preset = Annotated[str, typer.Option("--preset", "-p", help="quick, laptop or paper.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes at once; default: one per core.")]
Engine = Annotated[Literal["local", "ray", "slurm"], typer.Option(help="Who runs the processes.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Look for data here first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> NoReturn:
    """Run the command line; every foreseeable trouble ends in one sentence and exit code 2."""
    try:
        app()
    except LabError as error:
        print(f"thalweg: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("thalweg: the disk is full: free some space, then run `thalweg resume`", file=sys.stderr)
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(f"thalweg {thalweg.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A laboratory for the geometry of neural-network training."""


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The experiments, what they reproduce, and how long each preset takes on two cores."""
    from thalweg.lab.experiment import experiment, experiment_names

    found = [experiment(name) for name in experiment_names()]
    rows = [
        {
            "experiment": entry.name,
            "reproduces": entry.source,
            "title": entry.title,
            "presets": {name: preset.time for name, preset in entry.presets.items()},
        }
        for entry in found
    ]
    _print(rows, as_json)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="An experiment; `thalweg list` names them.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Lists sweep: lr=0.1,0.3 seed=0:5")
    ] = None,
    preset: Preset = "quick",
    jobs: Jobs = None,
    engine: Engine = "local",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Run one experiment and print its findings; finished runs are never run again."""
    from thalweg.lab.plan import request

    wish = request(name, preset, settings or [])
    _pursue([wish], jobs, engine, data_dir)
    _show(wish, as_json)


@app.command()
def reproduce(
    preset: Preset = "quick",
    headline: Annotated[bool, typer.Option("--headline", help="One experiment per seed.")] = False,
    jobs: Jobs = None,
    engine: Engine = "local",
    data_dir: DataDir = None,
) -> None:
    """Run every experiment, then write the report."""
    from thalweg.lab.experiment import experiment, experiment_names
    from thalweg.lab.plan import request

    found = [experiment(name) for name in experiment_names()]
    wanted = [entry for entry in found if (entry.headline or not headline) and preset in entry.presets]
    if not wanted:
        raise LabError.unknown(
            "preset called", preset, dict.fromkeys(name for entry in found for name in entry.presets)
        )
    _pursue([request(entry.name, preset) for entry in wanted], jobs, engine, data_dir)
    report()


@app.command()
def resume(jobs: Jobs = None, engine: Engine = "local", data_dir: DataDir = None) -> None:
    """Go on with whatever was interrupted."""
    from thalweg.lab.engine import unfinished_requests
    from thalweg.lab.store import Store

    waiting = unfinished_requests(Store(create=False))
    if not waiting:
        print("nothing was interrupted")
        return
    _pursue(waiting, jobs, engine, data_dir)


@app.command()
def status(
    runs: Annotated[bool, typer.Option("--runs", help="A line for every run.")] = False, as_json: AsJson = False
) -> None:
    """How many runs of each experiment are finished, running, interrupted, failed."""
    from thalweg.lab.progress import describe
    from thalweg.lab.store import STATES, Store

    folders = [(folder, folder.state()) for folder in Store(create=False).folders()]
    if runs:
        rows: list[dict[str, Any]] = [
            {"run": folder.id, "state": state, **folder.point}
            if as_json
            else {"run": folder.id[:12], "state": state, "preset": folder.point["config"]["preset"]}
            | {"settings": describe(folder)}
            for folder, state in folders
        ]
    else:
        keys = [(folder.point["experiment"], folder.point["config"]["preset"]) for folder, _ in folders]
        rows = []
        for key in sorted(set(keys)):
            states = [state for (_, state), its_key in zip(folders, keys, strict=True) if its_key == key]
            counts = {state: states.count(state) for state in STATES if state in states}
            rows.append({"experiment": key[0], "preset": key[1], "runs": len(states), **counts})
    _print(rows, as_json)


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="An experiment.")],
    style: Annotated[TableStyle, typer.Option("--format", help="How to write it.")] = "text",
) -> None:
    """Print the tables of an experiment's finished runs, the last one with its claims and their verdicts."""
    from thalweg.lab.tables import claims_table, render

    for study, findings in _findings(name):
        if style in ("text", "markdown"):
            print(f"\n{_heading(study)}\n")
        claims = [claims_table(findings.claims)] if findings.claims else []
        for entry in [*findings.tables, *claims]:
            print(render(entry, style))


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="An experiment.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")] = Path("figures"),
    style: Annotated[Literal["svg", "png"], typer.Option("--format", help="How to write them.")] = "svg",
) -> None:
    """Write the figures of an experiment's finished runs, one file each."""
    from thalweg.lab.figures import save
    from thalweg.lab.files import explained

    for study, findings in _findings(name):
        folder = out / name / "-".join([study.preset, *(f"{key}={value}" for key, value in study.changes.items())])
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for picture in findings.pictures:
                path = folder / f"{picture.name}.{style}"
                save(picture, path)
                print(path)


@app.command()
def report() -> None:
    """Write one self-contained HTML page with every finished run's findings."""
    from thalweg.lab.experiment import experiment_names
    from thalweg.lab.files import explained
    from thalweg.lab.report import write
    from thalweg.lab.store import Store

    store = Store(create=False)
    present = {folder.point["experiment"] for folder in store.folders() if folder.result() is not None}
    entries = [entry for name in experiment_names() if name in present for entry in _findings(name)]
    path = store.path / "report.html"
    with explained(path):
        write(path, entries, environment=_environment(entries), generated=time.strftime("%d %B %Y"))
    print(f"report: {path}")


@app.command()
def rm(
    which: Annotated[list[str], typer.Argument(help="Run ids (or their beginnings), or names of experiments.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete runs; an experiment's name deletes all of its runs and what was asked for but not done."""
    from thalweg.lab.engine import unfinished_requests
    from thalweg.lab.experiment import experiment_names
    from thalweg.lab.store import Store

    store = Store(create=False)
    names = experiment_names()
    folders = [folder for word in which for folder in (store.folders(word) if word in names else [store.get(word)])]
    if folders and not yes:
        typer.confirm(f"Delete {len(folders)} runs?", abort=True)
    store.remove(folders)
    for wish in unfinished_requests(store):
        if wish.experiment in which:
            store.forget(wish.name)
    print(f"deleted {len(folders)} runs")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check torch, devices, threads, optional parts and data."""
    from thalweg.lab.doctor import examine

    _print(examine(), as_json)


@app.command()
def lecture(
    topic: Annotated[str | None, typer.Argument(help="A topic; without one, the list of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """The lecture of seed 004 by topic: formulas, torch calls, where the two differ, and the experiment."""
    from thalweg.lab.lecture import TOPICS, checked, find, shown

    if topic is None:
        rows = [{"topic": key, "title": entry.title, "experiment": entry.experiment} for key, entry in TOPICS.items()]
        _print(rows, as_json)
    elif as_json:
        wanted = find(topic)
        print(json.dumps({**asdict(wanted), "experiment": wanted.experiment, "rows": checked(wanted)}, indent=1))
    else:
        print(shown(find(topic)))


@data_app.command("list")
def data_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Known data sets and where each was found."""
    from thalweg.lab.data.catalogue import names, where

    rows = [{"data set": name, "found in": str(where(name, data_dir) or "not found")} for name in names()]
    _print(rows, as_json)


@data_app.command("fetch")
def data_fetch(name: str, data_dir: DataDir = None) -> None:
    """Download a data set unless it is there already."""
    from thalweg.lab.data.catalogue import fetch

    print(f"{name}: {fetch(name, data_dir=data_dir)}")


@data_app.command("verify")
def data_verify(name: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Compare a data set's files with their published sizes and checksums; exit code 1 if one differs."""
    from thalweg.lab.data.catalogue import verify

    rows = verify(name, data_dir)
    _print(rows or [{"data set": name, "state": "comes with a package: there are no files to verify"}], as_json)
    if any(row["state"].startswith("wrong") for row in rows):
        raise typer.Exit(1)


def _pursue(requests: Sequence[Request], jobs: int | None, engine: str, data_dir: Path | None) -> None:
    """Run requests with a progress display; exit code 1 if a run failed."""
    from thalweg.lab.engine import cores, pursue
    from thalweg.lab.progress import follow
    from thalweg.lab.store import Store

    where = str(data_dir) if data_dir else None
    try:
        failures = pursue(requests, Store(), jobs=jobs or cores(), engine=engine, data_dir=where, show=follow)
    except KeyboardInterrupt:
        print("interrupted: nothing is lost, `thalweg resume` goes on", file=sys.stderr)
        raise typer.Exit(1) from None
    messages = {kind: [one.message for one in failures if one.kind == kind] for kind in ("failed", "refused")}
    for message, count in Counter(messages["failed"]).items():
        print(f"{count} run{'s' if count > 1 else ''} failed: {message}", file=sys.stderr)
    if refused := messages["refused"]:
        raise LabError("; ".join(dict.fromkeys(refused)))
    if failures:
        raise typer.Exit(1)


def _findings(name: str) -> list[tuple[Study, Findings]]:
    from thalweg.lab.experiment import experiment
    from thalweg.lab.plan import studies
    from thalweg.lab.store import Store

    wanted = experiment(name)
    found = studies(wanted, Store(create=False).results(wanted))
    if not found:
        raise LabError(f"{name} has no finished runs: start some with `thalweg run {name}`")
    return [(study, wanted.analyse(study)) for study in found]


def _environment(entries: Sequence[tuple[Study, Findings]]) -> dict[str, str]:
    """What the runs were made with; where they differ, every value."""
    seen: dict[str, dict[str, None]] = {}
    for study, _ in entries:
        for result in study.results:
            for key, value in result.environment.items():
                seen.setdefault(key, {})[str(value)] = None
    return {key: ", ".join(values) for key, values in seen.items()}


def _show(wish: Request, as_json: bool) -> None:
    """The findings of the studies that a request is a part of."""
    from thalweg.lab.plan import bases
    from thalweg.lab.tables import render

    asked = bases(wish)
    found = [(study, findings) for study, findings in _findings(wish.experiment) if study.settings in asked]
    if as_json:
        claims = [
            {"experiment": wish.experiment, "preset": study.preset, "changes": study.changes, **asdict(claim)}
            for study, findings in found
            for claim in findings.claims
        ]
        print(json.dumps(claims, indent=1))
        return
    for study, findings in found:
        print(f"\n{_heading(study)}\n")
        for entry in findings.tables:
            print(render(entry, "text"))
        for claim in findings.claims:
            because = f" ({claim.reason})" if claim.reason else ""
            print(f"{claim.verdict:>9}  {claim.text}\n           {claim.reading}{because}")
        for note in findings.notes:
            print(f"note: {note}")


def _heading(study: Study) -> str:
    changed = "".join(f", {key}={value}" for key, value in study.changes.items())
    return f"{study.experiment.name}: {study.experiment.title} [{study.preset} preset{changed}]"


def _print(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        # a path that is cut off cannot be copied, nor a name that is broken
        grid.add_column(column, overflow="fold", no_wrap=column == "experiment")
    for row in rows:
        grid.add_row(*(Text(_cell(row.get(column, ""))) for column in columns))  # Text: brackets are not markup
    Console().print(grid)


def _cell(value: Any) -> str:
    return ", ".join(f"{key}: {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
