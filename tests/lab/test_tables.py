"""Means over seeds say what they are means of; every style carries the same cells."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_study import synthetic_result

from thalweg.lab.errors import LabError
from thalweg.lab.experiment import Table
from thalweg.lab.tables import STYLES, mean_std, render


def results(*numbers: float, optimizer: str = "sgd", outcomes: dict[int, str] | None = None):
    made = [synthetic_result(optimizer, seed) for seed in range(len(numbers))]
    return [
        dataclasses.replace(result, values={"mse": number}, outcome=(outcomes or {}).get(result.seed, "finished"))
        for result, number in zip(made, numbers, strict=True)
    ]


def test_mean_and_sample_deviation_by_setting():
    runs = results(1.0, 2.0, 4.0) + results(5.0, optimizer="csgd")
    frame = mean_std(runs, {"optimizer": "Method"}, {"mse": "MSE"}, formats={"mse": ".3f"})
    assert list(frame.columns) == ["Method", "MSE", "seeds"]
    deviation = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    assert frame.values.tolist() == [["sgd", f"{7 / 3:.3f} ± {deviation:.3f}", 3], ["csgd", "5.000", 1]]


@pytest.mark.parametrize("outcome", ["diverged", "dead"])
def test_lost_runs_are_named_and_not_averaged(outcome):
    frame = mean_std(results(1.0, 1e9, 3.0, outcomes={1: outcome}), ["optimizer"], ["mse"], formats={"mse": ".1f"})
    row = frame.iloc[0]
    assert (row["mse"], row["seeds"], row["not averaged"]) == ("2.0 ± 1.4", 2, f"seed 1 {outcome}")


def test_all_runs_lost():
    frame = mean_std(results(math.nan, outcomes={0: "diverged"}), ["optimizer"], ["mse"])
    assert frame.iloc[0].tolist() == ["sgd", "–", 0, "seed 0 diverged"]


def test_an_unknown_value_is_refused_with_the_nearest():
    with pytest.raises(LabError, match="no value called 'msse', did you mean 'mse'"):
        mean_std(results(1.0), ["optimizer"], ["msse"])


TABLE = Table(
    "Test errors & more",
    pd.DataFrame({"me|thod": ["a_b [bold]", "50%"], "MSE": ["15.1 ± 0.2", "9.7 ± 0.1"], "ρ": [1 / 3, np.nan]}),
    note="± is one standard deviation",
)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_has_every_cell_and_ends_in_one_newline(style):
    text = render(TABLE, style)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    plain = text.replace("\\", "").replace("$pm$", "±")
    assert all(cell in plain for cell in ("a_b [bold]", "50%", "15.1 ± 0.2", "9.7 ± 0.1", "0.333"))


def test_text_is_aligned():
    lines = render(TABLE, "text").splitlines()
    assert lines[0] == "Test errors & more"
    assert lines[-1] == TABLE.note
    assert len({line.index("±") for line in lines if "[bold]" in line or "50%" in line}) == 1


def test_csv_reads_back():
    rows = list(csv.reader(io.StringIO(render(TABLE, "csv"))))
    assert rows[0] == ["me|thod", "MSE", "ρ"]
    assert float(rows[1][2]) == 1 / 3


def test_json_reads_back_with_null_for_nothing():
    data = json.loads(render(TABLE, "json"))
    assert (data["title"], data["note"]) == (TABLE.title, TABLE.note)
    assert data["rows"][0]["ρ"] == 1 / 3
    assert data["rows"][1]["ρ"] is None


def test_markdown_escapes_bars():
    lines = render(TABLE, "markdown").splitlines()
    assert lines[2:4] == ["| me\\|thod | MSE | ρ |", "| :--- | ---: | ---: |"]


def test_latex_escapes_its_specials():
    text = render(TABLE, "latex")
    assert r"\caption{Test errors \& more}" in text
    assert r"a\_b [bold] & 15.1 $\pm$ 0.2 & 0.3333 \\" in text
    assert r"50\% & 9.7 $\pm$ 0.1 & -- \\" in text


def test_an_index_with_a_name_is_a_column():
    frame = pd.DataFrame({"loss": [0.5]}, index=pd.Index(["layer 1"], name="layer"))
    assert "| layer 1 | 0.5 |" in render(Table("t", frame), "markdown")


def test_an_unknown_style_is_refused():
    with pytest.raises(LabError, match="no table style called 'html'"):
        render(TABLE, "html")
