"""What every test shares: one thread, as every run has, no deadlines on a busy machine, and the same draws every time.

A test command that draws anew can fail on a commit that changed nothing. `pytest --hypothesis-profile explore`
looks for new examples.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import register_random, settings


class GlobalGenerator:
    """Torch's global generator as hypothesis manages one: seeded anew for every example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


GLOBAL_GENERATOR = GlobalGenerator()  # hypothesis keeps a weak reference only

torch.set_num_threads(1)
register_random(GLOBAL_GENERATOR)
settings.register_profile("thalweg", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("thalweg")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the global generators, which fresh layers draw from, before the fixtures of the test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global one is what libraries draw from
    torch.manual_seed(0)
