"""Contours and reliefs: equal areas between the lines, paths from ring to marker, each name once in the legend."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection, PathCollection

from thalweg.lab.figures import panels, svg
from thalweg.lab.terrain import LEVELS, Terrain, contours, relief

LINE = np.linspace(-1, 1, 41)
BOWL = [[100 * x * x + y * y for x in LINE] for y in LINE]


def test_contour_lines_stand_at_quantiles() -> None:
    drawn = contours({"bowl": Terrain(LINE.tolist(), LINE.tolist(), BOWL)}, columns=1)
    (found,) = [c for c in drawn.axes[0].collections if not isinstance(c, (LineCollection, PathCollection))]
    shares = [float((np.asarray(BOWL) <= level).mean()) for level in found.levels]  # type: ignore[attr-defined]
    np.testing.assert_allclose(shares, (np.arange(LEVELS) + 0.5) / LEVELS, atol=2e-3)  # a grid of 1681 points


def test_a_path_begins_in_a_ring_and_ends_in_a_marker_and_is_named_once() -> None:
    path = ([0.5, 0.2, 0.0], [1.0, 0.5, 0.0])
    views = {name: Terrain(LINE.tolist(), LINE.tolist(), BOWL, {"a": [path, path], "b": [path]}) for name in "xy"}
    drawn = contours(views, columns=2)
    walked, ring = drawn.axes[0].lines[:2]
    assert list(walked.get_xdata()) == path[0]
    assert walked.get_markevery() == [-1]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([0.5], [1.0])
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert "<svg" in svg(drawn, "paths")


def test_a_relief_is_as_high_as_its_surface() -> None:
    axes = relief(Terrain(LINE.tolist(), LINE.tolist(), BOWL)).axes[0]
    low, high = axes.get_zlim()  # type: ignore[attr-defined]
    assert low <= 0 < 101 <= high


def test_panels_keep_a_name_s_look_and_leave_the_rest_blank() -> None:
    run = ([0.0, 1.0], [1.0, 2.0])
    drawn = panels(
        {"one": {"a": [run], "seen": [run]}, "two": {"b": [run]}, "three": {"b": [run], "a": [run]}},
        columns=2,
        xlabel="x",
        ylabel="y",
        dots=("seen",),
        marks=False,
    )
    colour = {(i, line.get_label()): line.get_color() for i, axes in enumerate(drawn.axes) for line in axes.lines}
    assert colour[0, "a"] == colour[2, "a"] != colour[1, "b"] == colour[2, "b"]
    assert drawn.axes[0].lines[1].get_linestyle() == "None"
    assert not drawn.axes[3].axison
    (legend,) = drawn.legends
    assert {text.get_text() for text in legend.get_texts()} == {"a", "b", "seen"}
