"""Surfaces over a plane, as contours with paths on them and in three dimensions, in the style of `lab.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thalweg.lab.experiment import Result
from thalweg.lab.figures import DASHES, MARKERS, PALETTE, Run, figure, legend, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Terrain", "contours", "relief"]

LEVELS = 9
FACETS = 25  # of a relief along each axis: each is a shape of its own in the SVG


@dataclass(frozen=True)
class Terrain:
    """A surface on a grid, and paths across it.

    Attributes:
        x: of the grid's columns.
        y: of its rows.
        z: heights, a row for each y.
        paths: name -> paths (x, y), drawn in their order; a path outside the grid is cut off.
    """

    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Sequence[float]]
    paths: Mapping[str, Sequence[Run]] = field(default_factory=dict)

    @classmethod
    def recorded(cls, result: Result, name: str, paths: Mapping[str, Sequence[Run]]) -> Terrain:
        """The surface whose heights a run has logged by x (as ``epoch``) in columns "NAME @ Y"."""
        keys = list(dict.fromkeys(key for row in result.rows for key in row if key.startswith(f"{name} @ ")))
        x = result.series(keys[0])[0]
        y = [float(key.rpartition(" ")[2]) for key in keys]
        return cls(x, y, [result.series(key)[1] for key in keys], paths)


def contours(
    views: Mapping[str, Terrain], *, columns: int, xlabel: str = "x₁", ylabel: str = "x₂", **grid: Any
) -> Figure:
    """Contour lines of each surface with the paths of its names, from a ring to the name's marker.

    The heights of the lines are quantiles, so equal shares of the area lie between them, in ravines too; the lower
    a line, the thicker.

    Args:
        views: title -> surface.
        columns: panels side by side.
        xlabel: what is along x.
        ylabel: what is along y.
        grid: what `figure` takes besides.

    >>> flat = Terrain([0, 1], [0, 1], [[0, 1], [1, 2]], {"descent": [([1.0, 0.0], [1.0, 0.0])]})
    >>> len(contours({"a plane": flat}, columns=1).axes)
    1
    """
    import numpy as np

    drawn = figure(-(-len(views) // columns), columns, squeeze=False, **grid)
    names = list(dict.fromkeys(name for view in views.values() for name in view.paths))
    with styled():
        for axes, (title, view) in zip(drawn.axes, views.items(), strict=False):
            z = np.asarray(view.z, dtype=float)
            heights = np.unique(np.quantile(z, (np.arange(LEVELS) + 0.5) / LEVELS))
            widths = np.linspace(1.0, 0.4, len(heights))
            axes.contour(
                view.x, view.y, z, levels=heights, colors="black", linewidths=widths, alpha=0.4, linestyles="-"
            )
            for name, paths in view.paths.items():
                _walk(axes, names.index(name), name, paths)
            axes.set(xlim=(view.x[0], view.x[-1]), ylim=(view.y[0], view.y[-1]))
            axes.set_title(title, loc="left", fontsize=9)
            axes.grid(visible=False)
        for axes in drawn.axes[len(views) :]:
            axes.set_axis_off()
        drawn.supxlabel(xlabel, fontsize=9)
        drawn.supylabel(ylabel, fontsize=9)
        if len(names) > 1:
            legend(drawn)
    return drawn


def _walk(axes: Axes, index: int, name: str, paths: Sequence[Run]) -> None:
    look: dict[str, Any] = {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index % len(DASHES)]}
    marker = MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]  # shifted each time the colours come round
    for number, (x, y) in enumerate(paths):
        axes.plot(
            x, y, marker=marker, markevery=[-1], linewidth=1.5, label=name if number == 0 else "_", zorder=3, **look
        )
        axes.plot(x[:1], y[:1], marker="o", markersize=6, markerfacecolor="none", color="black", label="_", zorder=4)


def relief(view: Terrain, *, xlabel: str = "x₁", ylabel: str = "x₂", zlabel: str = "y") -> Figure:
    """The surface from above and aside; its colour is its height.

    >>> relief(Terrain([0, 1], [0, 1], [[0, 1], [1, 2]])).axes[0].name
    '3d'
    """
    import numpy as np

    drawn = figure(height=3.6, subplot_kw={"projection": "3d"})
    axes: Any = drawn.axes[0]
    with styled():
        x, y = np.meshgrid(view.x, view.y)
        z = np.asarray(view.z, dtype=float)
        axes.plot_surface(x, y, z, cmap="cividis", rcount=FACETS, ccount=FACETS, linewidth=0.2, edgecolor="black")
        axes.set(xlabel=xlabel, ylabel=ylabel, zlabel=zlabel)
        axes.view_init(elev=38, azim=-60)
        axes.set_box_aspect(None, zoom=0.9)
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
    return drawn
