"""What every test shares: one thread, as every run has, and no deadlines on a busy machine."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("thalweg", deadline=None)
settings.load_profile("thalweg")
