"""Memory of one call, in three measures: saved for backward, held by the allocator, resident.

The saved bytes are what autograd was asked to keep. The allocator's count also sees what a function
keeps by other means, but neither sees scratch that a kernel takes from the C++ heap: the resident
peak of a fresh process does.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["held_bytes", "kept_bytes", "peak_bytes", "resident_peak"]


def kept_bytes(call: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd saves for backward during ``call``.

    Args:
        call: A forward pass.
        parameters: Tensors that are there anyway: their storages do not count.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> kept_bytes(lambda: x.exp().sin())  # the outcome of exp, once
        4000
        >>> kept_bytes(lambda: x * x, parameters=[x])
        0
    """
    there = {t.untyped_storage().data_ptr() for t in parameters}
    saved: dict[int, Tensor] = {}  # the tensors stay alive, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = call()
    total = sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in there)
    del alive
    return total


def held_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes of torch's allocator that are still in use when ``call`` returns, its result included.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> held_bytes(lambda: x.exp().sin())
        8000
    """
    return _allocated(call, device)[0]


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Return the most memory that ``call`` held at once beyond what was held before, in bytes.

    Example:
        >>> x = torch.ones(1000)
        >>> peak_bytes(lambda: x + x.exp())
        8000
    """
    return _allocated(call, device)[1]


def _allocated(call: Callable[[], object], device: str) -> tuple[int, int]:
    """Bytes in use after ``call``, while its result is alive, and at most."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        alive = call()
        torch.cuda.synchronize()
        after, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        del alive
        return after - before, peak - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes to stderr
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        alive = call()
    # The profiler reports each allocation and release of torch's allocator in order.
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del alive
    return held, peak


def resident_peak(call: Callable[[], object]) -> int:
    """Return how far ``call`` lifts the resident memory of this process, in bytes.

    Only the first call in a fresh process is sure to show: memory that was freed before may still
    be resident.

    Raises:
        OSError: Where the system does not tell.
    """
    # 5 sets the high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024
