"""The README's Python examples run, in both languages, and print what they say they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_examples_print_what_the_readme_says(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 2
    printed = io.StringIO()
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(block, names)
    promised = re.findall(r"^# (.*)$", "\n".join(blocks), flags=re.M)
    said, told = (re.findall(r"\d+\.?\d*", text) for text in (printed.getvalue(), "\n".join(promised)))
    assert len(told) == 8
    # 1,140 float32 steps: processors that add in another order differ in the third digit
    assert [float(number) for number in said] == pytest.approx([float(number) for number in told], rel=0.05)
