"""A figure as an ``<svg>`` element inside a page: text as text, ink and paper the page's own, no two ids alike.

Matplotlib writes a document: fixed black, its own fonts, a style sheet for everything around it, ids that every figure
has. What it wrote is rewritten here, tag by tag.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["settle", "svg"]


def svg(figure: Figure, name: str, *, title: str = "") -> str:
    """The figure as an ``<svg>`` element to stand in a page: equal figures and names give equal bytes.

    Ids are prefixed with ``name``, so that figures of different names share a page. There is no background; black is
    ``currentColor``, and white is ``var(--paper)``, which the page may define; the size is the box's, up to 1.6 times
    the printed one. The figure's layout is computed once and frozen.

    Args:
        figure: what to draw.
        name: unique in its page.
        title: what a screen reader says and a pointer shows; the name if there is none.

    >>> from matplotlib.figure import Figure
    >>> svg(Figure(), "a b")[:4]
    '<svg'
    """
    import matplotlib as mpl

    settle(figure)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text[text.index("<svg") :], flags=re.S)
    head, body = body.split(">", 1)
    prefix = _slug(name)
    body = re.sub(r"<[^>]*>", lambda match: _page_tag(match[0], prefix), body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    box = re.search(r'viewBox="[\d.\- ]+"', head)
    assert box is not None, "matplotlib wrote an SVG without a viewBox"
    label = html.escape(title or name)
    wide = figure.get_figwidth() * 72 * 1.6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
        f'aria-label="{label}" width="100%" style="max-width: {wide:.0f}px; height: auto" fill="currentColor" '
        f'stroke-linejoin="round" stroke-linecap="butt"><title>{label}</title>{body}'
    )


def _page_tag(tag: str, prefix: str) -> str:
    """A tag for a page: its ids and references are prefixed, its style is the page's.

    >>> _page_tag('<use xlink:href="#m1" id="u" style="stroke: #000000"/>', "loss")
    '<use xlink:href="#loss-m1" id="loss-u" style="stroke: currentColor"/>'
    """
    tag = re.sub(r' id="([^"]*)"', rf' id="{prefix}-\1"', tag)
    tag = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", tag)
    return re.sub(r'(?<= style=")[^"]*', lambda match: _page_style(match[0]), tag)


def _page_style(style: str) -> str:
    """A style attribute for a page: its ink and its font.

    >>> _page_style("fill: #000000; font: italic 700 9.5px 'DejaVu Sans', sans-serif; text-anchor: end")
    'fill: currentColor; font-style: italic; font-weight: 700; font-size: 9.5px; font-family: inherit; text-anchor: end'
    """
    short = re.search(r"font: ([^;]*?)([\d.]+px)[^;]*", style)
    if short:  # what matplotlib before 3.10 writes
        words = [f"font-{'weight' if word.isdigit() else 'style'}: {word}; " for word in short[1].split()]
        style = style.replace(short[0], f"{''.join(words)}font-size: {short[2]}; font-family: inherit")
    style = re.sub(r"font-family: [^;]*", "font-family: inherit", style)
    style = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", style)
    return re.sub(r"(fill|stroke): #ffffff", r"\1: var(--paper, #ffffff)", style)


def _slug(name: str) -> str:
    """Letters, digits and hyphens; names that lose something get a hash, so that different names stay different.

    >>> _slug("loss-by-epoch"), _slug("loss by epoch")
    ('loss-by-epoch', 'loss-by-epoch-0a2213')
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug if slug == name else f"{slug or 'figure'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def settle(figure: Figure) -> None:
    """Lay out once and for all: each further pass starts from the last, and moves the axes by some thousandths."""
    from matplotlib.legend import Legend

    for legend in figure.findobj(Legend):
        legend.get_frame().set_edgecolor("none")
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
