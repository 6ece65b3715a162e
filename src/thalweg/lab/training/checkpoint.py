"""Checkpoints: a training state in one file that is whole or absent, and that runs no code when it is opened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.lab.errors import LabError
from thalweg.lab.files import atomic

__all__ = ["load_checkpoint", "random_state", "restore_random_state", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them) to ``path`` in one step."""
    with atomic(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        LabError: the file is torn, or holds anything but data.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # on torn bytes torch raises anything from KeyError to OSError
        run_id = path.parent.name
        raise LabError(
            f"run {run_id}: {path.name} is damaged or is not a checkpoint: remove the run with `thalweg rm {run_id}` "
            "and run its experiment again"
        ) from error
    return state


def random_state() -> dict[str, Any]:
    """The global random states of Python, NumPy and torch (CPU and every GPU), as plain data.

    Nothing here draws from them; a user's model or plugin may.
    """
    name, key, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(key, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` read.

    >>> before = random_state()
    >>> drawn = torch.rand(3), random.random(), np.random.rand()
    >>> restore_random_state(before)
    >>> bool((torch.rand(3) == drawn[0]).all()), random.random() == drawn[1], np.random.rand() == drawn[2]
    (True, True, True)
    """
    random.setstate(state["python"])
    name, key, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
