"""Figures: matplotlib ``Figure`` objects in one style, and SVG that lives inside a page.

The palette is Okabe and Ito's (2008) without black, and without yellow, which white paper swallows; orange and sky blue
are darkened until every colour has a contrast of at least 3:1 on white and on the report's dark paper. Line style and
marker differ as well, so nothing rests on colour alone. Ink is black here and ``currentColor`` in the SVG, where axes
and text follow the page's own scheme. Text stays text in the page's font: prefer Unicode ("10⁻²", "η") to mathtext,
whose letters are placed for matplotlib's font.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Picture
from thalweg.lab.svg import settle, svg

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "DASHES",
    "MARKERS",
    "PALETTE",
    "Run",
    "curves",
    "figure",
    "legend",
    "logarithmic",
    "panels",
    "png",
    "save",
    "styled",
    "svg",
    "tracks",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C28400", "#3D9BD1")  # blue, vermilion, green, purple, ...
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

THIN: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.8}
DOTS: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 2.6, "alpha": 0.5, "linestyle": "none"}
CROSS: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 1.8, "linestyle": "none"}

Run = tuple[Sequence[float], Sequence[float]]


def _style() -> Any:  # the keys are a Literal of every matplotlib parameter, of which versions differ
    from cycler import cycler

    return {
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.labelcolor": "black",
        "axes.linewidth": 0.7,
        "axes.prop_cycle": cycler(color=PALETTE) + cycler(linestyle=DASHES),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 9,
        "grid.color": "black",
        "grid.alpha": 0.13,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.7,
        "lines.markersize": 4.5,
        "xtick.major.size": 3,
        "xtick.major.width": 0.7,
        "xtick.minor.width": 0.5,
        "ytick.major.size": 3,
        "ytick.major.width": 0.7,
        "ytick.minor.width": 0.5,
    }


def figure(rows: int = 1, columns: int = 1, *, width: float = 4.8, height: float | None = None, **grid: Any) -> Figure:
    """A blank figure with its axes (``.axes``) in the product's style.

    Args:
        rows: rows of axes.
        columns: columns of axes.
        width: inches; the text is set for 4.8, which reads well from a telephone to a page.
        height: inches; 2.9 a row, less where columns share the width.
        grid: what ``Figure.subplots`` takes besides: sharex, sharey, width_ratios, subplot_kw, ...

    >>> len(figure(1, 2).axes)
    2
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    tall = height if height is not None else rows * (2.9 if columns == 1 else max(1.9, 0.85 * width / columns))
    with mpl.rc_context(_style()):
        blank = Figure(figsize=(width, tall), layout="constrained")
        blank.subplots(rows, columns, **grid)
    return blank


def curves(
    series: Mapping[str, Sequence[Run]],
    *,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    band: Literal["range", "std"] = "range",
    ticks: Sequence[float] = (),
) -> Figure:
    """A line for each name: the mean of its runs, with a band of their range or standard deviation.

    The mean is drawn where every run has a finite value. Beyond (early stopping, divergence) each run goes on as a
    thin line of its own, and a run that stops being finite ends in a cross: a mean over the survivors would flatter.

    Args:
        series: name -> runs; a run is (x, y). Names are the legend's, above the axes.
        xlabel: what is along x, with its unit.
        ylabel: what is along y.
        logx: logarithmic x.
        logy: logarithmic y.
        band: "range", from the lowest to the highest run, or "std", one standard deviation (n - 1) either way.
        ticks: where x has its ticks, for a few values that were chosen; none: matplotlib's choice.

    >>> drawn = curves({"SGD": [([0, 1], [3.0, 2.0]), ([0, 1], [3.0, 1.0])]}, xlabel="epoch", ylabel="loss")
    >>> drawn.axes[0].lines[0].get_ydata().tolist()
    [3.0, 1.5]
    """
    import matplotlib as mpl
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    drawn = figure()
    axes = drawn.axes[0]
    signs: set[str] = set()
    with mpl.rc_context(_style()):
        for index, (name, runs) in enumerate(series.items()):
            signs |= _draw(axes, index, name, runs, band)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        if logx:
            logarithmic(axes, "x")
        if logy:
            logarithmic(axes, "y")
        if ticks:
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
        _legend(drawn, signs)
    return drawn


def tracks(series: Mapping[str, Sequence[Run]], *, xlabel: str, ylabel: str) -> Figure:
    """A phase diagram: a line for each run through its points in their order, both axes logarithmic.

    The last point has the name's marker. Nothing is averaged: two runs are at one place at different times.

    Args:
        series: name -> runs; a run is (x, y), and points that are not positive and finite are left out.
        xlabel: what is along x.
        ylabel: what is along y.

    >>> drawn = tracks({"ELR 1": [([3.0, 1.0, 2.0], [1.0, 0.5, 0.1])]}, xlabel="curvature", ylabel="loss")
    >>> drawn.axes[0].lines[0].get_xdata().tolist()
    [3.0, 1.0, 2.0]
    """
    import matplotlib as mpl
    import numpy as np

    drawn = figure()
    axes = drawn.axes[0]
    with mpl.rc_context(_style()):
        for index, (name, runs) in enumerate(series.items()):
            look: dict[str, Any] = {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index % len(DASHES)]}
            for number, run in enumerate(runs):
                x, y = (np.asarray(values, dtype=float) for values in run)
                seen = (x > 0) & (y > 0) & np.isfinite(x * y)
                end: dict[str, Any] = {
                    "marker": MARKERS[index % len(MARKERS)],
                    "markevery": [-1],
                    "linewidth": 1.1,
                    "alpha": 0.85,
                }
                axes.plot(x[seen], y[seen], label=name if number == 0 else "_", **look, **end)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        _legend(drawn, set())
    return drawn


def panels(
    views: Mapping[str, Mapping[str, Sequence[Run]]],
    *,
    columns: int,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    dots: Sequence[str] = (),
    marks: bool = True,
    **grid: Any,
) -> Figure:
    """Small multiples of `curves`: a title and its named runs for each; a name has one look in all of them.

    Args:
        views: title -> (name -> runs).
        columns: panels side by side.
        xlabel: what is along x, with its unit.
        ylabel: what is along y.
        logx: logarithmic x.
        logy: logarithmic y.
        dots: names whose runs are drawn as points: observations.
        marks: markers on the lines, too.
        grid: what `figure` takes besides: width, height, sharex, sharey, ...

    >>> drawn = panels({"a": {"f": [([0, 1], [3.0, 2.0])]}, "b": {}}, columns=2, xlabel="x", ylabel="y")
    >>> [axes.get_title(loc="left") for axes in drawn.axes]
    ['a', 'b']
    """
    drawn = figure(-(-len(views) // columns), columns, squeeze=False, **grid)
    names = list(dict.fromkeys(name for view in views.values() for name in view))
    lines = [name for name in names if name not in dots]
    signs: set[str] = set()
    with styled():
        for axes, (title, view) in zip(drawn.axes, views.items(), strict=False):
            for name, runs in view.items():
                if name in dots:
                    for run in runs:
                        axes.plot(*run, label=name, zorder=1.5, **DOTS)
                else:
                    signs |= _draw(axes, lines.index(name), name, runs, "range", marks)
            axes.set_title(title, loc="left", fontsize=9)
            for which, wanted in (("x", logx), ("y", logy)):
                if wanted:
                    logarithmic(axes, which)  # type: ignore[arg-type]
        for axes in drawn.axes[len(views) :]:
            axes.set_axis_off()
        drawn.supxlabel(xlabel, fontsize=9)
        drawn.supylabel(ylabel, fontsize=9)
        if len(names) > 1:
            legend(drawn, signs)
    return drawn


def styled() -> AbstractContextManager[None]:
    """The product's style, for what is drawn on the axes of `figure` by other means."""
    import matplotlib as mpl

    return mpl.rc_context(_style())


def legend(drawn: Figure, signs: Collection[str] = ()) -> None:
    """The names of all axes above the figure, each once."""
    from matplotlib.lines import Line2D

    first = drawn.axes[0]
    for axes in drawn.axes[1:]:
        seen = first.get_legend_handles_labels()[1]
        for line in axes.lines:
            name = str(line.get_label())
            if name not in seen and not name.startswith("_"):
                twin = Line2D([], [])
                twin.update_from(line)  # dashes too, of which get_linestyle() knows nothing
                twin.set_label(name)
                first.add_line(twin)
                seen.append(name)
    _legend(drawn, set(signs))


def _legend(drawn: Figure, signs: set[str]) -> None:
    """The names above the axes, in as many columns as the width has room for, and what thin lines and crosses mean."""
    from matplotlib.lines import Line2D

    handles, names = drawn.axes[0].get_legend_handles_labels()
    keys = {"one run": Line2D([], [], color="black", **THIN), "diverged": Line2D([], [], color="black", **CROSS)}
    shown = [key for key in keys if key in signs]
    entries = [*zip(handles, names, strict=True), *((keys[key], key) for key in shown)]
    if not entries:
        return
    columns = _columns([name for _, name in entries], drawn.get_figwidth() * 72)
    entries = [entry for column in range(columns) for entry in entries[column::columns]]  # it fills column by column
    drawn.set_figheight(drawn.get_figheight() + 0.19 * (-(-len(entries) // columns) - 1))
    drawn.legend(*zip(*entries, strict=True), loc="outside upper left", ncols=columns, handlelength=2.8)


def _columns(names: Sequence[str], width: float) -> int:
    """How many columns of a legend fit into ``width`` points: 5.4 a letter of size 9, and 50 for line and gaps.

    >>> _columns(["SGD", "CSGD", "one run", "diverged"], 346), _columns(["a name that needs the whole width"] * 3, 346)
    (4, 1)
    """
    for columns in range(len(names), 1, -1):
        if sum(50 + 5.4 * max(map(len, names[column::columns])) for column in range(columns)) <= width:
            return columns
    return 1


def _draw(axes: Axes, index: int, name: str, runs: Sequence[Run], band: str, marks: bool = True) -> set[str]:
    """Draw one name; which of the legend's signs its runs made necessary."""
    import numpy as np

    look: dict[str, Any] = {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index % len(DASHES)]}
    marker = MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]  # shifted each time the colours come round
    arrays = [(np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for x, y in runs]
    x, values = _shared(arrays)
    middle = values.mean(axis=0)
    step = max(1, len(x) // 7)
    marker = marker if marks else ""
    axes.plot(x, middle, marker=marker, markevery=(index * 3 % step, step), label=name, **look)
    if len(arrays) > 1 and len(x):
        spread = values.std(axis=0, ddof=1)
        low, high = (values.min(axis=0), values.max(axis=0)) if band == "range" else (middle - spread, middle + spread)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
    signs: set[str] = set()
    end = x[-1] if len(x) else -math.inf
    for xs, ys in arrays:
        finite = np.isfinite(ys)
        rest = finite & (xs >= end)
        if rest.sum() > 1 or not len(x):
            axes.plot(xs[rest], ys[rest], **THIN, **look)
            signs.add("one run")
        if finite.any() and not finite[-1]:
            last = int(np.flatnonzero(finite)[-1])
            axes.plot(xs[last], ys[last], color=look["color"], zorder=5, **CROSS)
            signs.add("diverged")
    return signs


def _shared(runs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[NDArray[np.float64], ...]:
    """The x at which every run has a finite y, and those y: (runs, x)."""
    import numpy as np

    common: set[float] = set.intersection(*({*x[np.isfinite(y)].tolist()} for x, y in runs)) if runs else set()
    x = np.asarray(sorted(common))
    rows = [np.asarray([dict(zip(xs.tolist(), ys.tolist(), strict=True))[at] for at in x.tolist()]) for xs, ys in runs]
    return x, np.asarray(rows).reshape(len(rows) or 1, len(x))


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis whose ticks can be read, however few powers of ten it spans; call it after drawing."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if 0 < low < high else 9.0
    if decades < 1:  # too few powers of ten to read the axis by
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
    between = "25" if decades < 2 else ""  # leading digits of the minor ticks with a label
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: _plain(value) if f"{value:e}"[0] in between else ""))


def _plain(value: float) -> str:
    """A tick of a logarithmic axis in Unicode, which the page's font can set.

    >>> _plain(0.01), _plain(1e-5), _plain(2e4), _plain(30.0)
    ('0.01', '10⁻⁵', '2·10⁴', '30')
    """
    if value <= 0 or 1e-2 <= value < 1e4:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10**power:.3g}"
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"


def png(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """Write the figure on white paper; its layout is frozen, as by `svg`."""
    settle(figure)
    figure.savefig(path, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


def save(picture: Picture, path: str | os.PathLike[str]) -> None:
    """Write a picture of the report as a file of its own, .svg or .png by its name.

    Raises:
        LabError: another ending.
    """
    target = Path(path)
    if target.suffix == ".png":
        png(picture.figure, target)
    elif target.suffix == ".svg":
        alone = svg(picture.figure, picture.name, title=picture.title).replace(
            "<svg ", '<svg font-family="sans-serif" ', 1
        )
        target.write_text(alone, encoding="utf-8")
    else:
        raise LabError.unknown("figure format called", target.suffix.removeprefix("."), ["svg", "png"])
