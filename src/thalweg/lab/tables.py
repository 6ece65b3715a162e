"""Tables: "mean ± std" over seeds, and one table in the five forms readers ask for.

The standard deviation has n - 1 in its denominator. Only finished runs are averaged; runs that diverged or died are
counted and named in a column of their own.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from thalweg.lab.claims import Claim
from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Result, Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STYLES", "Style", "cells", "claims_table", "mean_std", "numeric", "render"]

Style = Literal["text", "markdown", "csv", "latex", "json"]
STYLES: tuple[Style, ...] = ("text", "markdown", "csv", "latex", "json")
NOTHING = "–"


def mean_std(
    results: Iterable[Result],
    by: Sequence[str] | Mapping[str, str],
    columns: Sequence[str] | Mapping[str, str],
    *,
    formats: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """One row for each combination of the settings ``by``, in order of first appearance; cells to be read.

    Args:
        results: trials of one preset; their seeds are averaged over.
        by: fields of the config, or {field: heading}.
        columns: names in ``Result.values``, or {name: heading}.
        formats: {name: format of its numbers}; where none is given, the standard deviation has two digits.

    Returns:
        The settings, "mean ± std" cells (just the number for one seed), "seeds" (how many were averaged), and, where a
        run did not finish, "not averaged" naming it. A finished run without the number makes its cell say "(2 of 3)".

    Raises:
        LabError: no finished run has the value asked for.
    """
    import pandas as pd

    by, columns, formats = _headings(by), _headings(columns), formats or {}
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(getattr(result.config, key) for key in by), []).append(result)
    finished = [result for group in groups.values() for result in group if result.outcome == "finished"]
    for name in columns:
        if finished and not any(name in result.values for result in finished):
            raise LabError.unknown("value called", name, sorted({key for result in finished for key in result.values}))
    rows = []
    for key, group in groups.items():
        good = [result for result in group if result.outcome == "finished"]
        lost = sorted((result for result in group if result.outcome != "finished"), key=lambda result: result.seed)
        row: dict[str, Any] = dict(zip(by.values(), key, strict=True))
        for name, heading in columns.items():
            numbers = [result.values.get(name, math.nan) for result in good]
            row[heading] = _cell(numbers, formats.get(name))
        row["seeds"] = len(good)
        row["not averaged"] = ", ".join(f"seed {result.seed} {result.outcome}" for result in lost)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*by.values(), *columns.values(), "seeds", "not averaged"])
    return frame if any(row["not averaged"] for row in rows) else frame.drop(columns="not averaged")


def _headings(names: Sequence[str] | Mapping[str, str]) -> Mapping[str, str]:
    return names if isinstance(names, Mapping) else {name: name for name in names}


def _cell(numbers: Sequence[float], shape: str | None) -> str:
    """Give "mean ± std" of the finite numbers, saying so where some are not.

    >>> _cell([1.0, 2.0, 3.0], ".1f"), _cell([2.0], ".1f"), _cell([1.0, 3.0, math.nan], ".1f"), _cell([], ".1f")
    ('2.0 ± 1.0', '2.0', '2.0 ± 1.4 (2 of 3)', '–')
    >>> _cell([0.69161, 0.70955, 0.6734], None), _cell([0.5, 0.5], None), _cell([12345.6, 12300.0], None)
    ('0.692 ± 0.018', '0.5 ± 0', '12323 ± 32')
    """
    import numpy as np

    finite = [number for number in numbers if math.isfinite(number)]
    if not finite:
        return NOTHING
    std = float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0
    if shape is None:
        digits = max(0, 1 - math.floor(math.log10(std))) if std else 9
        shape = f".{digits}f" if digits < 7 else ".4g"
    spread = f" ± {std:{shape}}" if len(finite) > 1 else ""
    part = f" ({len(finite)} of {len(numbers)})" if len(finite) < len(numbers) else ""
    return f"{np.mean(finite):{shape}}{spread}{part}"


def cells(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a frame as text: an index that says something is a column, floats have four digits.

    >>> import pandas as pd
    >>> cells(pd.DataFrame({"lr": [0.1, 0.3], "loss": [1 / 3, float("nan")]}))
    (['lr', 'loss'], [['0.1', '0.3333'], ['0.3', '–']])
    """
    flat = _flat(frame)
    rows = [[_text(value) for value in row] for row in flat.itertuples(index=False, name=None)]
    return list(flat.columns), rows


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    flat = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    names = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in flat.columns]
    return flat.set_axis(names, axis=1)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def claims_table(claims: Sequence[Claim]) -> Table:
    """The verdicts as a table: effects with their 95% intervals, and what each effect is."""
    import pandas as pd

    rows = [
        {
            "claim": claim.text,
            "verdict": claim.verdict,
            "effect, 95% interval": claim.measured,
            "effect is": claim.unit,
            "seeds": claim.seeds,
            "printed": claim.printed,
            "remark": claim.reason,
        }
        for claim in claims
    ]
    return Table("Claims", pd.DataFrame(rows))


def render(table: Table, style: Style, *, width: int | None = None) -> str:
    """The table as text for a terminal, Markdown, CSV, LaTeX (booktabs) or JSON; the last is for machines.

    CSV and JSON keep full precision; the others read as `cells`. ``width`` bounds the terminal's text, which otherwise
    is as wide as the table.

    Raises:
        LabError: ``style`` is none of these.

    >>> import pandas as pd
    >>> print(render(Table("Errors", pd.DataFrame({"method": ["SGD"], "MSE": ["15.1 ± 0.2"]})), "markdown"), end="")
    **Errors**
    <BLANKLINE>
    | method | MSE |
    | :--- | ---: |
    | SGD | 15.1 ± 0.2 |
    """
    if style == "text":
        return _terminal(table, width)
    if style == "markdown":
        return _markdown(table)
    if style == "csv":
        return _flat(table.frame).to_csv(index=False, lineterminator="\n")
    if style == "latex":
        return _latex(table)
    if style == "json":
        rows = [{key: _json(value) for key, value in row.items()} for row in _flat(table.frame).to_dict("records")]
        data = {"title": table.title, "note": table.note, "rows": rows}
        return json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    raise LabError.unknown("table style called", style, STYLES)


def _json(value: Any) -> Any:
    """A number, a truth, a text, or null for what is not finite.

    >>> _json(0.5), _json(math.inf), _json(True), _json((1, 2))
    (0.5, None, True, '(1, 2)')
    """
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column reads as numbers, and so is aligned to the right: most cells start with a digit.

    >>> rows = [["SGD", "15.1 ± 0.2"], ["CSGD", "–"], ["Adam", "∞"]]
    >>> numeric(rows, 0), numeric(rows, 1)
    (False, True)
    """
    entries = [row[column].strip("+-−<>≥≤≈ †") for row in rows if row[column] not in ("", NOTHING)]
    return bool(entries) and all(entry[0].isdigit() or entry == "∞" for entry in entries if entry)


def _terminal(table: Table, width: int | None) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    headings, rows = cells(table.frame)
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, heading in enumerate(headings):
        grid.add_column(Text(heading), justify="right" if numeric(rows, column) else "left")
    for row in rows:
        grid.add_row(*map(Text, row))  # Text: brackets in a cell are not markup
    stream = io.StringIO()
    console = Console(file=stream, width=width or 10_000, color_system=None, legacy_windows=False)
    console.print(grid)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([table.title, "", *lines, *(["", table.note] if table.note else [])]) + "\n"


def _markdown(table: Table) -> str:
    headings, rows = cells(table.frame)
    rule = ["---:" if numeric(rows, column) else ":---" for column in range(len(headings))]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [headings, *rows]]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join([f"**{table.title}**", "", *lines, *(["", table.note] if table.note else [])]) + "\n"


def _latex(table: Table) -> str:
    headings, rows = cells(table.frame)
    align = "".join("r" if numeric(rows, column) else "l" for column in range(len(headings)))
    body = [" & ".join(map(_tex, row)) + r" \\" for row in [headings, *rows]]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        body[0],
        r"\midrule",
        *body[1:],
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip {{\footnotesize {_tex(table.note)}}}"] if table.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    special = {character: "\\" + character for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "−": "$-$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(special.get(character, character) for character in text)
