"""Interleaved timing: medians of calls that took turns in one process."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["Timing", "cache_bytes", "copy_bandwidth", "copy_call", "measure", "product_call",
           "quantiles"]  # fmt: skip

SHORT = 0.005  # seconds; a call below is warmed up more than once
SAMPLE = 2e-4  # seconds; shorter calls are repeated inside one sample


@dataclasses.dataclass(frozen=True)
class Timing:
    """Quantiles of one provider's calls, in microseconds."""

    p20: float
    p50: float
    p80: float


def measure(
    providers: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    device: str = "cpu",
    rounds: int = 7,
) -> dict[str, Timing]:
    """Time all providers in turn, round after round, so that drift hits each of them alike.

    Args:
        providers: Name to a call without arguments; each is warmed up here, compilation included.
        seconds: Time spent on each provider.
        device: Where the calls run; CUDA calls are timed by events.
        rounds: Rounds that are made even if they take longer, at least 2.

    Example:
        >>> timing = measure({"sum": lambda: sum(range(100))}, seconds=0.001)["sum"]
        >>> 0 < timing.p20 <= timing.p50 <= timing.p80
        True
    """
    timed = _timed_on_gpu if torch.device(device).type == "cuda" else _timed_on_cpu
    once = {}
    for name, call in providers.items():
        first = timed(call, 1)
        # The first call may compile or allocate: what counts as short is said by the second.
        again = min(timed(call, 1) for _ in range(5)) if first < SHORT else timed(call, 1)
        once[name] = min(first, again)
    # Short calls are repeated inside one sample, so that the clock's own cost does not show.
    repeats = {name: max(1, int(SAMPLE / max(t, 1e-9))) for name, t in once.items()}
    samples: dict[str, list[float]] = {name: [] for name in providers}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds * len(providers)
        while time.perf_counter() < end or len(samples[next(iter(samples))]) < rounds:
            for name, call in providers.items():
                samples[name].append(timed(call, repeats[name]) * 1e6)
    finally:
        gc.enable()
    return {name: quantiles(values) for name, values in samples.items()}


def _timed_on_cpu(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _timed_on_gpu(call: Callable[[], object], repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def quantiles(values: Sequence[float]) -> Timing:
    """Return the quantiles of at least two times in microseconds.

    Example:
        >>> quantiles([1.0, 2.0, 3.0])
        Timing(p20=1.4, p50=2.0, p80=2.6)
    """
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Timing(p20=round(cuts[1], 3), p50=round(cuts[4], 3), p80=round(cuts[7], 3))


def cache_bytes(device: str) -> int:
    """Return the size of a GPU's last cache; 0 for the CPU, whose cases outgrow it or mean it."""
    if torch.device(device).type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)


def copy_bandwidth(device: str = "cpu") -> float:
    """Measure bytes read and written by ``Tensor.copy_`` per second."""
    copy, moved = copy_call(device)
    return moved / (measure({"copy": copy}, seconds=0.5, device=device)["copy"].p50 * 1e-6)


def copy_call(device: str = "cpu", size: int = 0) -> tuple[Callable[[], object], int]:
    """Return a call of ``Tensor.copy_``, past every cache, and the bytes it reads and writes."""
    size = size or max(1 << 26, 8 * cache_bytes(device))
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size


def product_call(device: str = "cpu", size: int = 0) -> tuple[Callable[[], object], int]:
    """Return a product of two square float32 matrices, and its floating-point operations."""
    size = size or (8192 if torch.device(device).type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * size**3
