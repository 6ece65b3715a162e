"""Write the chapters of the lecture: ``python docs/lecture_chapters.py`` (three minutes on two cores, offline).

Every chapter is made of `thalweg.lab.lecture` (text, formulas, calls), `thalweg.lecture.CHECKLIST` (measured now) and
the topic's experiment at its quick preset, which is run first unless ``THALWEG_RUNS`` has its runs.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from thalweg.lab.experiment import Findings, Study, experiment
from thalweg.lab.lecture import TOPICS, Topic

DOCS = Path(__file__).parent
FIGURES = DOCS / "lecture" / "figures"
LARGEST = 60_000  # bytes of a figure


def main() -> None:
    """Run what is missing, then write every page."""
    os.environ.setdefault("THALWEG_RUNS", tempfile.mkdtemp())
    from thalweg.lab.engine import cores, pursue
    from thalweg.lab.plan import request, studies
    from thalweg.lab.store import Store

    store = Store()
    wishes = [request(topic.experiment, "quick") for topic in TOPICS.values()]
    if failed := pursue(wishes, store, jobs=cores()):
        raise SystemExit(f"{len(failed)} runs failed: {failed[0].message}")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for topic in TOPICS.values():
        wanted = experiment(topic.experiment)
        found = [study for study in studies(wanted, store.results(wanted)) if study.preset == "quick"]
        write(DOCS / "lecture" / f"{topic.name}.md", head(topic) + results(topic, found[0], wanted.analyse(found[0])))
    write(DOCS / "lecture" / "terms.md", terms())
    write(DOCS / "lecture" / "index.md", index())
    write(DOCS / "experiments" / "lecture.md", experiments())


def write(path: Path, text: str) -> None:
    """Write a page."""
    path.write_text(text, encoding="utf-8")


def head(topic: Topic) -> str:
    """The part of a chapter that nothing is run for."""
    formulas = "\n".join(topic.formulas)
    return f"""# {topic.title}

{topic.text}

```text
{formulas}
```

## In torch

```python
{topic.torch}```

"""


def results(topic: Topic, study: Study, findings: Findings) -> str:
    """The checklist, the figures, the tables and the verdicts."""
    from thalweg.lab.tables import render
    from thalweg.lecture import CHECKLIST, markdown_table

    rows = [row for row in CHECKLIST if row.number in topic.rows]
    parts = [
        "## Lecture and torch\n",
        "Measured in float64; *equal* means to rounding. The numbers are those of the "
        "[whole checklist](../methods/lecture.md#the-checklist).\n",
        markdown_table(rows) + "\n",
        "## Experiment\n",
        f"`thalweg run {topic.experiment}`; the numbers are those of the quick preset, {seeds(study)}.\n",
    ]
    for picture in findings.pictures:
        name = f"{topic.name}-{picture.name}.png"
        (FIGURES / name).write_bytes(small_png(picture.figure))
        parts.append(f"**{picture.title}.** {picture.caption}\n\n![{picture.title}](figures/{name})\n")
    parts += [render(table, "markdown") for table in findings.tables]
    parts += ["## What the lecture says, and what holds\n", "| verdict | sentence | measured |\n|---|---|---|"]
    for claim in findings.claims:
        parts.append(f"| {claim.verdict} | {claim.text} | {claim.reading.replace('|', chr(92) + '|')} |")
    return "\n".join(parts) + "\n"


def seeds(study: Study) -> str:
    """Say "5 seeds"."""
    return f"{len({result.seed for result in study.results})} seeds"


def small_png(figure: object) -> bytes:
    """The figure as PNG of few colours, at the resolution that keeps it below `LARGEST`."""
    from PIL import Image

    from thalweg.lab.figures import png

    for dpi in (150, 120, 100, 80):
        with tempfile.TemporaryDirectory() as folder:
            png(figure, Path(folder) / "figure.png", dpi=dpi)  # type: ignore[arg-type]
            image = (
                Image.open(Path(folder) / "figure.png")
                .convert("RGB")
                .quantize(96, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            )
        stream = io.BytesIO()
        image.save(stream, format="png", optimize=True)
        if stream.tell() <= LARGEST:
            return stream.getvalue()
    raise SystemExit("a figure does not fit into 60 KB: draw less")


def terms() -> str:
    """The index of terms, by the Russian one."""
    entries = sorted((russian, english, topic) for topic in TOPICS.values() for english, russian in topic.terms.items())
    lines = [f"| {russian} | {english} | [{topic.title}]({topic.name}.md) |" for russian, english, topic in entries]
    return "\n".join(
        [
            "# Index of terms",
            "",
            "The lecture is in Russian. Its terms, the usual English ones, and the chapter of each.",
            "",
            "| по-русски | in English | chapter |",
            "|---|---|---|",
            *lines,
            "",
        ]
    )


def index() -> str:
    """The first page: what there is."""
    names = "\n".join([*TOPICS, "terms"])
    return f"""# The lecture

*Training of neural networks, lecture 3*, by topic: the formula, the call of torch, where the two differ, the picture,
and which of the lecture's sentences hold. In a terminal: `thalweg lecture TOPIC`. The functions:
[thalweg.lecture](../methods/lecture.md). The experiments: [lecture-*](../experiments/lecture.md).

Every chapter is generated: `python docs/lecture_chapters.py` runs the experiments and writes text, tables and figures.

```{{toctree}}
:maxdepth: 1

{names}
```
"""


def experiments() -> str:
    """One page for all of the lecture's experiments: what each is, its presets and its settings."""
    parts = [
        "# lecture-*: the lecture's figures and sentences\n",
        "Ten experiments, one for each topic of seed 004. The lecture names no data, sizes or rates for its figures, "
        "so every setting is ours unless its source says otherwise, there is no `paper` preset, and nothing here "
        "poses as published. The chapters with the results: [the lecture](../lecture/index.md).\n",
        "| experiment | what it shows | presets |\n|---|---|---|",
    ]
    known = [experiment(topic.experiment) for topic in TOPICS.values()]
    for topic, wanted in zip(TOPICS.values(), known, strict=True):
        times = ", ".join(f"{name}: {preset.time}" for name, preset in wanted.presets.items())
        parts.append(f"| [{wanted.name}](../lecture/{topic.name}.md) | {wanted.title} | {times} |")
    for wanted in known:
        parts.append(f"\n## {wanted.name}\n\nSource: {wanted.source}.\n\n| setting | default | source |\n|---|---|---|")
        for name, entry in wanted.config.model_fields.items():
            if name != "preset":
                swept = wanted.sweep.get(name)
                value = ", ".join(map(str, swept)) + " (swept)" if swept else str(entry.default)
                parts.append(f"| `{name}` | {value} | {(entry.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
