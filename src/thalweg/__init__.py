"""The geometry of neural-network training: pieces for PyTorch, and a laboratory of reproducible experiments.

>>> import thalweg
>>> thalweg.optim.CSGD.__name__
'CSGD'
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["curvature", "invariance", "landscape", "lecture", "nn", "operators", "optim", "regularize"]


def __getattr__(name: str) -> ModuleType:
    """Import subpackages on first use: the command line answers ``--help`` without torch."""
    if name in __all__:
        return importlib.import_module(f"thalweg.{name}")
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
