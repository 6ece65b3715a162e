"""The report as text: complete, self-contained, safe and the same each time."""

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser

import pandas as pd
import pytest
from synthetic_study import ENVIRONMENT, SYNTHETIC, synthetic_report, synthetic_result, synthetic_studies

from thalweg.lab.claims import Claim
from thalweg.lab.experiment import Findings, Picture, Study, Table, experiment
from thalweg.lab.figures import figure
from thalweg.lab.report import command, render, write

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_it_needs_nothing_else():
    page = Page(synthetic_report())
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "src", "action"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", synthetic_report())


def test_every_link_arrives_and_every_id_is_unique():
    page = Page(synthetic_report())
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) == {1}
    for _, attributes in page.tags:
        for name in ("href", "xlink:href", "aria-labelledby"):
            if name in attributes:
                assert attributes[name].removeprefix("#") in ids


def test_equal_input_gives_equal_bytes(tmp_path):
    again = write(
        tmp_path / "runs" / "report.html", synthetic_studies(), environment=ENVIRONMENT, generated="21 November 2026"
    )
    assert again.read_bytes() == synthetic_report().encode()


def test_it_says_everything():
    text = Page(synthetic_report()).text
    for words in (
        "✓ holds 1",
        "✕ fails 3",
        "? undecided 2",
        "CSGD reconstructs test images with a smaller error than SGD.",
        "test MSE, CSGD minus SGD",
        "it diverged or died on seed 1, where its rival did not",
        "seed 000, figure 2 and table 1",
        "quick preset: not the published setting",
        "Changed from the preset: lr = 0.5 (preset: 0.1).",
        "6 runs: 5 finished, 1 diverged",
        "Test errors after training",
        "seed 1 diverged",
        "Training error by epoch. The band is the range over seeds.",
        "the learning rate is above 2 / (h (1 + s²)) (optimizer sgd, seed 0; ",
        "read as relative change of the training error",
        "seed 000, section 4.3: latent_dim",
        "thalweg run autoencoder-loss --preset quick lr=0.5",
        "thalweg 0.1.0",
        "threads 2",
        "21 November 2026",
    ):
        assert words in text, words


HOSTILE = "<script>alert(1)</script> \"quoted\" 'quoted' &amp; <b>bold</b> </style></svg>{{ 7 * 7 }}"


def test_hostile_text_stays_text():
    drawing = figure()
    drawing.axes[0].set_xlabel(HOSTILE.replace("$", ""))
    claim = Claim(HOSTILE, HOSTILE, "holds", 1.0, (0.5, 1.5), 3, HOSTILE, HOSTILE, HOSTILE)
    findings = Findings(
        [claim],
        [Table(HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}), HOSTILE)],
        [Picture(HOSTILE, HOSTILE, drawing, HOSTILE)],
        [HOSTILE],
    )
    run = dataclasses.replace(
        synthetic_result("sgd", 0), id=HOSTILE, outcome=HOSTILE, warnings=[HOSTILE], environment={HOSTILE: HOSTILE}
    )
    experiment = dataclasses.replace(SYNTHETIC, name=HOSTILE, title=HOSTILE, source=HOSTILE)
    study = Study(experiment, {"preset": "quick", "lr": 0.1, "epochs": 20, "latent": 16}, [run])
    html = render([(study, findings)], environment={HOSTILE: HOSTILE}, generated=HOSTILE)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert "<b>bold" not in html
    assert page.text.count("alert(1)") > 15  # it is shown, not swallowed
    assert page.text.count("{{ 7 * 7 }}") == page.text.count("alert(1)")


def test_a_report_of_nothing():
    assert "No claims yet." in Page(render([], environment={}, generated="today")).text


def test_a_study_says_what_it_is_in_its_experiment_s_own_words():
    assert "What the report's tests are made of: a made-up experiment, its runs" in Page(synthetic_report()).text
    bounds = experiment("hessian-bounds")
    html = render(
        [(Study(bounds, bounds.settings("quick").model_dump(), []), Findings())], environment={}, generated=""
    )
    assert "<pre>||H_O|| &lt;= √2 q² |x|² (L + 1) w_T^{2L}" in html
    assert "are all there (thalweg.curvature.hessian_bounds)." in Page(html).text  # without the backticks


@pytest.mark.parametrize(
    ("presets", "badge"),
    [(["quick"], "quick preset, the only one"), (["quick", "laptop"], "quick preset: there is no paper preset")],
)
def test_an_experiment_without_a_paper_preset_does_not_point_to_one(presets, badge):
    own = dataclasses.replace(SYNTHETIC, presets=dict.fromkeys(presets, SYNTHETIC.presets["quick"]))
    study = Study(own, {"preset": "quick", "lr": 0.1, "epochs": 20, "latent": 16}, [])
    assert badge in Page(render([(study, Findings())], environment={}, generated="today")).text


def test_only_the_unchanged_paper_preset_is_the_published_setting():
    settings = {"preset": "paper", "lr": 0.1, "epochs": 100, "latent": 16}
    for study, badge in (
        (Study(SYNTHETIC, settings, []), "the published setting"),
        (Study(SYNTHETIC, {**settings, "lr": 1.0}, []), "paper preset, changed: not the published setting"),
    ):
        page = Page(render([(study, Findings())], environment={}, generated="today"))
        badges = [attributes["class"] for _, attributes in page.tags if "preset" in (attributes.get("class") or "")]
        assert badge in page.text
        assert any("published" in name for name in badges) == (badge == "the published setting")


@pytest.mark.parametrize(
    ("seeds", "optimizers", "changes", "words"),
    [
        (range(3), ["sgd", "csgd"], {}, ""),
        (range(5), ["sgd", "csgd"], {}, " seed=0:5"),
        ([0, 7], ["sgd"], {"epochs": 3}, " epochs=3 optimizer=sgd seed=0,7"),
        ([4], ["csgd"], {}, " optimizer=csgd seed=4"),
    ],
)
def test_the_command_repeats_the_study(seeds, optimizers, changes, words):
    settings = {"epochs": 20, **changes}
    results = [synthetic_result(optimizer, seed, **settings) for optimizer in optimizers for seed in seeds]
    study = Study(SYNTHETIC, {"preset": "quick", "lr": 0.1, "latent": 16, **settings}, results)
    assert command(study) == "thalweg run autoencoder-loss --preset quick" + words
