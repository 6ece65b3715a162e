"""The lecture by topic: the command, the programs it shows, and the chapters generated from the same source."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from thalweg.lab import cli
from thalweg.lab.experiment import experiment, experiment_names
from thalweg.lab.lecture import TOPICS, Topic, checked, shown

ROOT = Path(__file__).parents[2]
topics = pytest.mark.parametrize("topic", TOPICS.values(), ids=list(TOPICS))


@pytest.fixture(scope="module")
def chapters() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lecture_chapters", ROOT / "docs" / "lecture_chapters.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["thalweg", "lecture", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_every_row_of_the_checklist_belongs_to_one_topic() -> None:
    assert sorted(number for topic in TOPICS.values() for number in topic.rows) == list(range(1, 38))


def test_every_topic_has_its_experiment_and_one_of_them_is_the_headline() -> None:
    found = [experiment(name) for name in experiment_names() if name.startswith("lecture-")]
    assert {entry.name for entry in found} == {topic.experiment for topic in TOPICS.values()}
    assert [entry.name for entry in found if entry.headline] == ["lecture-trajectories"]
    for entry in found:
        assert "quick" in entry.presets
        assert "paper" not in entry.presets  # the lecture has no published settings
        assert all(value.description for value in entry.config.model_fields.values())


@topics
def test_the_program_runs(topic: Topic, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(topic.torch, topic.name, "exec"), {})
    out = capsys.readouterr().out
    assert ("print(" in topic.torch) == bool(out)
    assert "nan" not in out


def test_what_the_programs_print_is_what_their_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    exec(TOPICS["trajectories"].torch, {})
    assert float(re.search(r"[\d.]+", capsys.readouterr().out)[0]) == pytest.approx(10**0.5, rel=1e-4)  # type: ignore[index]
    exec(TOPICS["initialization"].torch, {})
    gains, power = capsys.readouterr().out.splitlines()
    assert [float(number) for number in gains.split()] == pytest.approx([0.75, 1.0], abs=1e-6)  # of quadrature
    assert float(re.search(r"[\d.]+", power)[0]) == pytest.approx(70, abs=0.1)  # type: ignore[index]


def test_a_topic_in_the_terminal_and_for_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["transfer"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert text.rstrip() == shown(TOPICS["transfer"]).rstrip()
    assert "thalweg run lecture-transfer" in text
    assert "movement of frozen weights: equal" in text
    assert command(["transfer", "--json"], monkeypatch) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rows"] == checked(TOPICS["transfer"])
    assert data["rows"][0]["verdict"] == "equal"
    assert data["experiment"] == "lecture-transfer"
    assert command(["--json"], monkeypatch) == 0
    assert [row["topic"] for row in json.loads(capsys.readouterr().out)] == list(TOPICS)


def test_an_unknown_topic_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["dropot"], monkeypatch) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "did you mean 'dropout'?" in err


def test_the_list_does_not_import_torch() -> None:
    program = (
        "import sys\nfrom thalweg.lab.cli import main\nsys.argv = ['thalweg', 'lecture']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@topics
def test_the_chapter_is_the_generated_one(topic: Topic, chapters: ModuleType) -> None:
    text = (ROOT / "docs" / "lecture" / f"{topic.name}.md").read_text(encoding="utf-8")
    assert text.startswith(chapters.head(topic)), "run python docs/lecture_chapters.py"
    assert [int(n) for n in re.findall(r"^\| (\d+) \| .* \| `test_\w+\.py::", text, flags=re.M)] == list(topic.rows)
    figures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert figures
    for name in figures:
        picture = ROOT / "docs" / "lecture" / name
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert picture.stat().st_size <= 60_000


def test_the_other_pages_are_the_generated_ones(chapters: ModuleType) -> None:
    for name, made in {"terms": chapters.terms(), "index": chapters.index()}.items():
        assert (ROOT / "docs" / "lecture" / f"{name}.md").read_text(encoding="utf-8") == made
    assert (ROOT / "docs" / "experiments" / "lecture.md").read_text(encoding="utf-8") == chapters.experiments()


def test_terms_are_russian_and_unique(chapters: ModuleType) -> None:
    russian = [term for topic in TOPICS.values() for term in topic.terms.values()]
    assert len(set(russian)) == len(russian)
    assert all(re.search("[а-яё]", term) for term in russian)
