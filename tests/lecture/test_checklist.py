"""The lecture's 37 rows: verdicts and numbers of the specification, tests that exist, a docs table that is fresh."""

import ast
from pathlib import Path

import pytest
import torch

from thalweg.lecture import CHECKLIST, Measured, markdown_table

ROOT = Path(__file__).parents[2]
BY_NUMBER = {row.number: row for row in CHECKLIST}

# rows where the lecture and torch, or the definition, part in some respect
DIFFERS = {2, 3, 4, 6, 7, 10, 11, 13, 14, 15, 16, 17, 26, 28, 29, 30, 31, 33, 34, 35, 36, 37}


def measured(number, part):
    (found,) = [m for m in BY_NUMBER[number].measure() if part in m.quantity]
    return found


def test_all_rows_are_there():
    assert [row.number for row in CHECKLIST] == list(range(1, 38))
    assert len({row.topic for row in CHECKLIST}) == 37
    assert all(row.lecture and row.test for row in CHECKLIST)


@pytest.mark.parametrize("row", CHECKLIST, ids=lambda row: f"{row.number}, {row.topic}")
def test_row_by_row(row):
    assert row.verdict() == ("differs" if row.number in DIFFERS else "equal")
    for m in row.measure():
        assert m.lecture.isfinite().all()
        assert m.quantity in str(m)


@pytest.mark.parametrize("row", CHECKLIST, ids=lambda row: f"{row.number}")
def test_the_named_test_is_there(row):
    file, name = row.test.split("::")
    (path,) = (ROOT / "tests").rglob(file)
    functions = {
        node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    }
    assert name in functions


@pytest.mark.parametrize("number", [28, 29, 31, 33, 34, 35, 36, 37])
def test_corrected_optimizers_are_torchs(number):
    corrected = [m for m in BY_NUMBER[number].measure() if m.corrected is not None]
    assert corrected
    for m in corrected:
        torch.testing.assert_close(m.corrected, m.reference, rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize(
    ("number", "part", "printed", "reference"),
    [
        (2, "x = 1", [370.5], [-2.0]),
        (10, "variance", [1 / 3], [1]),
        (10, "tanh", [1.51e-10], [0.0259]),
        (14, "keeps", [2, 2, 2, 2], [2, 1.5505, 1.9998, 1]),
        (14, "SELU layers", [69.97], [1]),
        (26, "shapes", [8], [3]),
        (34, "distance", [0], [0.774]),
        (36, "steps 1", [3.162, 6.57, 1.26], [1, 1, 1]),
    ],
)
def test_wrong_prints_side_by_side(number, part, printed, reference):
    found = measured(number, part)
    # to the digits given
    assert found.lecture.tolist() == pytest.approx(printed, rel=3e-3)
    assert found.reference.tolist() == pytest.approx(reference, rel=3e-3)


def test_the_measure_decides_the_verdict():
    one = torch.ones(1, dtype=torch.float64)
    assert Measured("x", one, one + 1e-13).equal
    assert not Measured("x", one, one + 1e-11).equal
    assert Measured("x", one, one + 1e-11).difference == pytest.approx(1e-11, rel=1e-4)
    assert "corrected" not in str(Measured("x", torch.zeros(9), torch.ones(9), torch.zeros(9)))  # a cure that fails
    assert str(Measured("x", one, 2 * one, side="a", against="b")) == "x: **differs**, 1 (a), 2 (b)"


def test_measuring_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    for row in CHECKLIST:
        row.measure()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_table_of_the_documentation_is_the_generated_one():
    page = (ROOT / "docs" / "methods" / "lecture.md").read_text(encoding="utf-8")
    table = markdown_table()
    assert table.count("\n") == 38
    assert table in page
