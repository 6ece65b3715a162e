"""The clock of the benchmarks: processor time on a CPU, which a busy machine leaves alone, and wall time elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["peak_memory", "plain_arithmetic", "seconds"]


def plain_arithmetic() -> None:
    """One thread, and float32 that is float32: by default cuDNN's convolutions keep ten bits of it (TF32)."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """What one call takes; on an accelerator from the end of all earlier work to the end of its own."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.accelerator.synchronize()
    start = time.perf_counter()
    run()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def peak_memory(run: Callable[[], object]) -> float:
    """MiB that one call adds to what a CUDA device holds, at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
