"""Interleaved timing, and the JSON rows that compare.py and tables.py read."""

import dataclasses
import gc
import json
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

import pyfast_nas

__all__ = ["Row", "Timing", "copy_bandwidth", "device_name", "measure", "peak_bytes", "write"]

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Quantiles of one provider's calls, in microseconds."""

    p20: float
    p50: float
    p80: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One provider on one case; ``write`` adds device, versions and commit."""

    operator: str
    case: str
    mode: str
    provider: str
    shape: list[int]
    dtype: str
    threads: int
    timing: Timing
    bytes_moved: int = 0
    copy_share: float = 0.0
    peak_bytes: int = 0


def measure(
    providers: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    device: str = "cpu",
    least: int = 7,
) -> dict[str, Timing]:
    """Time all providers in turn, round after round, so that drift hits each of them alike.

    Args:
        providers: Name to a call without arguments; each has been warmed up by the caller or is
            warmed up here, compilation included.
        seconds: Time spent on each provider.
        device: Where the calls run; CUDA calls are timed by events.
        least: Rounds that are run even if they take longer.
    """
    timed = _timed_on_gpu if torch.device(device).type == "cuda" else _timed_on_cpu
    once = {}
    for name, call in providers.items():
        for _ in range(3):
            call()
        once[name] = min(timed(call, 1) for _ in range(3))
    # Short calls are repeated inside one sample, so that the clock's own cost does not show.
    repeats = {name: max(1, int(2e-4 / max(t, 1e-9))) for name, t in once.items()}
    samples: dict[str, list[float]] = {name: [] for name in providers}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds * len(providers)
        while time.perf_counter() < end or len(samples[next(iter(samples))]) < least:
            for name, call in providers.items():
                samples[name].append(timed(call, repeats[name]) * 1e6)
    finally:
        gc.enable()
    return {name: _quantiles(values) for name, values in samples.items()}


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


def _quantiles(values: list[float]) -> Timing:
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Timing(p20=round(cuts[1], 3), p50=round(cuts[4], 3), p80=round(cuts[7], 3))


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Return the most memory that ``call`` held at once beyond what was held before, in bytes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    # The profiler reports each allocation and release of torch's allocator in order.
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def copy_bandwidth(device: str = "cpu", size: int = 1 << 26) -> float:
    """Measure bytes read and written by ``Tensor.copy_`` per second, on ``size`` bytes each way."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda: target.copy_(source)}, seconds=0.5, device=device)
    return 2 * size / (timing["copy"].p50 * 1e-6)


def device_name(device: str = "cpu") -> str:
    """Return the device's own name, with the thread count on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    except OSError:
        pass
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)", "", model)).strip()


def write(rows: Iterable[Row], device: str = "cpu", folder: Path = RESULTS) -> Path:
    """Replace the rows of these operators, cases and thread counts in the file of this device."""
    name = device_name(device)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")
    stamp = {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "pyfast_nas": pyfast_nas.__version__,
        "commit": _commit(),
    }
    fresh = [dataclasses.asdict(row) | stamp for row in rows]
    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    replaced = {_key(row) for row in fresh}
    kept = [row for row in old if _key(row) not in replaced]
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(kept + fresh, key=lambda row: (*_key(row)[:-1], row["timing"]["p50"]))
    lines = ",\n".join(json.dumps(row) for row in ordered)
    path.write_text(
        '{"format": "pyfast_nas.benchmarks", "version": 1, "rows": [\n' + lines + "\n]}\n"
    )
    return path


def _key(row: dict) -> tuple:
    names = ("operator", "case", "mode", "dtype", "threads", "provider")
    return tuple(row[name] for name in names)


def _commit() -> str:
    """Name the commit; ``-dirty`` where a tracked file other than the results differs from it."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    state = ["status", "--porcelain", "--untracked-files=no", "--", "."]
    ours = [":!benchmarks/results", ":!docs/benchmarks.md"]
    try:
        name, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "--short", "HEAD"], [*state, *ours])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.strip() + ("-dirty" if changed else "")
