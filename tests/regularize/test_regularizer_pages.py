"""The examples on the pages of layer operators and penalties run as they stand, without a warning."""

import re
import warnings
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "methods"
NAMES = [
    "layer-operators", "frame", "regularizers", "orthogonality", "conv-orthogonality", "hyperspherical-energy",
    "norm-penalties",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name):
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(encoding="utf-8"), flags=re.S)
    assert blocks
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for block in blocks:
            exec(block, {})
