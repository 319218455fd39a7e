"""How fast a run goes and how much memory it has used."""

import resource
import time
from typing import Any

import torch

__all__ = ["peak_bytes", "timing_since"]


def peak_bytes(device: torch.device) -> int:
    """Return peak memory in bytes: allocated on the GPU, or resident in the process.

    Example:
        >>> peak_bytes(torch.device("cpu")) > 10_000_000
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def timing_since(
    started: float, steps: int, images_per_step: int, device: torch.device
) -> dict[str, Any]:
    """Return seconds since ``started``, a reading of ``time.perf_counter``, rates and peak memory.

    Example:
        >>> sorted(timing_since(time.perf_counter(), 2, 64, torch.device("cpu")))
        ['images_per_second', 'memory_bytes', 'seconds', 'steps_per_second']
    """
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "images_per_second": steps * images_per_step / seconds,
        "memory_bytes": peak_bytes(device),
    }
