"""The SVG of a figure: the same bytes twice, at home on any page; curves that do not flatter the survivors."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Picture
from thalweg.lab.figures import DASHES, MARKERS, PALETTE, curves, figure, png, save, svg

RUNS = {
    "SGD": [([1, 2, 3], [9.0, 5.0, 3.0]), ([1, 2, 3], [9.0, 7.0, 1.0])],
    'CSGD <fast> & "sure"': [([1, 2, 3], [8.0, 2.0, 1.0])],
}


def drawn(**options):
    return curves(RUNS, xlabel="epoch", ylabel="loss η", **options)


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("paper", ["#ffffff", "#16181c"])
@pytest.mark.parametrize("colour", PALETTE)
def test_every_colour_is_seen_on_light_and_dark_paper(colour, paper):
    low, high = sorted([luminance(colour), luminance(paper)])
    assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 1.4.11, graphical objects


def test_nothing_rests_on_colour_alone():
    assert len(set(PALETTE)) == len(set(map(str, DASHES))) == len(set(MARKERS)) == len(PALETTE)


@pytest.mark.parametrize("options", [{}, {"logy": True}, {"logx": True, "logy": True, "band": "std"}])
def test_equal_figures_give_equal_bytes(options):
    one = drawn(**options)
    assert svg(one, "loss") == svg(one, "loss") == svg(drawn(**options), "loss")


def test_it_is_an_element_of_a_page():
    text = svg(drawn(), "loss", title='"Loss" & <time>')
    root = ElementTree.fromstring(text)
    assert text.startswith("<svg")
    assert root.get("role") == "img"
    assert root.get("aria-label") == root[0].text == '"Loss" & <time>'
    assert root.get("width") == "100%"
    assert root.get("height") is None
    assert "viewBox" in root.attrib
    assert "<style" not in text
    assert "<metadata" not in text


def test_ink_and_font_are_the_page_s():
    text = svg(drawn(logy=True), "loss")
    assert not re.search(r"#000000|\bblack\b|#fff|white|DejaVu", text)
    assert 'fill="currentColor"' in text
    assert "stroke: currentColor" in text


def test_what_is_added_in_matplotlib_s_own_style_follows_the_page_too():
    one = figure()
    axes = one.axes[0]
    axes.plot([0, 1], label="a")
    axes.legend(frameon=True)
    axes.annotate("jump", (0.5, 0.5), (0.1, 0.9), arrowprops={"arrowstyle": "->"}, bbox={"facecolor": "white"})
    axes.bar([0], [1], color="black")
    text = svg(one, "added")
    assert "var(--paper, #ffffff)" in text
    assert not re.search(r"#000000|#cccccc|: #ffffff", text)


def test_text_stays_text():
    words = [
        " ".join(node.itertext())
        for node in ElementTree.fromstring(svg(drawn(), "loss")).iter()
        if node.tag.endswith("text")
    ]
    assert {"epoch", "loss η", "SGD", 'CSGD <fast> & "sure"'} <= set(words)


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("a b", "a-b"), ("Loss", "loss")])
def test_figures_of_different_names_share_a_page(one, other):
    texts = [svg(drawn(), name) for name in (one, other)]
    ids = [re.findall(r' id="([^"]*)"', text) for text in texts]
    assert len(set(ids[0] + ids[1])) == len(ids[0]) + len(ids[1])
    for text, own in zip(texts, ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= set(own)


def test_mean_line_and_band():
    axes = drawn().axes[0]
    assert axes.lines[0].get_ydata().tolist() == [9.0, 6.0, 2.0]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(2.0, 5.0), (2.0, 7.0), (3.0, 1.0), (3.0, 3.0)} <= set(map(tuple, band.tolist()))
    assert len(axes.collections) == 1  # one run has no band


@pytest.mark.parametrize("logx", [False, True])
def test_ticks_are_where_they_are_asked_for(logx):
    axes = curves(RUNS, xlabel="filters", ylabel="D", logx=logx, ticks=[1, 3]).axes[0]
    axes.figure.draw_without_rendering()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "3"]
    assert axes.get_xticks(minor=True).size == 0


def test_a_mean_is_not_taken_over_survivors():
    runs = [([1, 2, 3, 4], [9.0, 8.0, 7.0, 6.0]), ([1, 2, 3, 4], [9.0, 10.0, np.nan, np.nan])]
    one = curves({"lr 1": runs}, xlabel="epoch", ylabel="loss")
    mean, alone, cross = one.axes[0].lines
    assert mean.get_xdata().tolist() == [1.0, 2.0]
    assert alone.get_xydata().tolist() == [[2, 8], [3, 7], [4, 6]]
    assert (cross.get_marker(), cross.get_xydata().tolist()) == ("x", [[2, 10]])
    assert [text.get_text() for text in one.legends[0].get_texts()] == ["lr 1", "one run", "diverged"]


@pytest.mark.parametrize("series", [{}, {"none": []}, {"nan": [([1, 2], [np.nan, np.nan])]}])
def test_nothing_to_draw_is_drawn(series):
    assert "epoch" in svg(curves(series, xlabel="epoch", ylabel="loss"), "empty")


def test_the_legend_lies_outside_the_data():
    one = curves({f"method {i}": RUNS["SGD"] for i in range(9)}, xlabel="epoch", ylabel="loss")
    one.draw_without_rendering()
    assert one.legends[0].get_window_extent().y0 >= one.axes[0].get_window_extent().y1


def test_a_blank_figure_has_the_style():
    axes = figure(1, 2, sharey=True).axes
    assert [line.get_color() for line in axes[1].plot([0, 1], [[0, 1], [1, 2]])] == list(PALETTE[:2])


def test_png_is_on_white_paper(tmp_path):
    png(drawn(), tmp_path / "loss.png", dpi=50)
    png(drawn(), tmp_path / "again.png", dpi=50)
    from matplotlib.image import imread

    assert imread(tmp_path / "loss.png")[0, 0].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert (tmp_path / "loss.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_a_picture_is_saved_as_svg_or_png(tmp_path):
    picture = Picture("loss", "Loss", drawn())
    for ending in ("svg", "png"):
        save(picture, tmp_path / f"loss.{ending}")
    assert ElementTree.parse(tmp_path / "loss.svg").getroot().get("font-family") == "sans-serif"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LabError, match="no figure format called 'jpg'"):
        save(picture, tmp_path / "loss.jpg")
