"""The report in a browser: nothing fetched, nothing hidden, nothing cut off, in light and dark, on a telephone."""

import shutil

import pytest
from synthetic_study import synthetic_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

QUIET = (
    "no-sandbox",
    "disable-gpu",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "no-first-run",
)

# Every text of the page with its colour, the first opaque background behind it and its box.
TEXTS = """() => {
  const seen = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest('title') || !parent.checkVisibility()) continue;
    const style = getComputedStyle(parent), drawn = parent.closest('svg');
    let behind = parent;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 1) behind = behind.parentElement;
    seen.push({
      text: node.textContent.trim(),
      ink: rgba(drawn ? style.fill : style.color),
      paper: behind ? rgba(getComputedStyle(behind).backgroundColor) : [255, 255, 255, 1],
    });
  }
  return seen;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in QUIET])
        yield browser
        browser.close()


@pytest.fixture(params=[(1200, "light"), (1200, "dark"), (360, "light"), (360, "dark")], ids=str)
def page(request, browser, tmp_path):
    """The report open at a width and in a colour scheme, with its errors and requests."""
    width, scheme = request.param
    file = tmp_path / "report.html"
    file.write_text(synthetic_report(), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.troubles, page.requested, page.scheme, page.address = [], [], scheme, file.as_uri()
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda asked: page.requested.append(asked.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")
    yield page
    page.close()


def luminance(colour):
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_asks_for_nothing_and_complains_of_nothing(page):
    assert page.requested == [page.address]
    assert page.troubles == []


def test_verdicts_and_figures_are_seen(page):
    verdicts, drawings = page.locator(".verdict"), page.locator("figure svg")
    assert verdicts.count() == 3 + 3 + 6 + 6  # how to read this, the tally, the list of claims, the studies' tables
    assert drawings.count() == 2
    for box in [found.bounding_box() for found in (*verdicts.all(), *drawings.all())]:
        assert box is not None
        assert min(box["width"], box["height"]) > 0
        assert 0 <= box["x"] <= box["x"] + box["width"] <= page.viewport_size["width"] + 0.5


def test_the_page_does_not_scroll_sideways(page):
    width, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= shown == page.viewport_size["width"]


def test_wide_tables_scroll_in_their_own_box(page):
    page.evaluate("document.querySelector('figure .scroll td').style.minWidth = '100vw'")
    width, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= shown
    boxes = page.locator(".scroll").evaluate_all("all => all.map(box => [box.scrollWidth, box.clientWidth])")
    assert any(content > box for content, box in boxes)


def test_text_is_legible(page):
    texts = page.evaluate(TEXTS)
    assert any(found["text"] == "training MSE" for found in texts)  # the figures' text is among it
    dark = luminance(texts[0]["paper"]) < 0.05
    assert dark == (page.scheme == "dark")
    for found in texts:
        low, high = sorted([luminance(found["ink"]), luminance(found["paper"])])
        assert found["ink"][3] == 1, found
        assert (high + 0.05) / (low + 0.05) >= 4.5, found  # WCAG 1.4.3
