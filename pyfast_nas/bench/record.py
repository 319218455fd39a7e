"""The rows of a result file: what was measured, on what, with which versions."""

import dataclasses
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyfast_nas._version import __version__
from pyfast_nas.bench.timing import Timing
from pyfast_nas.errors import DataError
from pyfast_nas.spaces.text_files import write_text

__all__ = ["OURS", "Row", "commit", "device_name", "driver", "file_name", "key", "on_gpu", "read",
           "stamp", "write"]  # fmt: skip

FORMAT = "pyfast_nas.benchmarks"
# The providers that are ours; all others are rivals.
OURS = ("recorded", "fused", "accelerate", "fused-nchw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One provider on one case; :func:`stamp` adds device, versions and commit.

    What was not measured is None. A provider that did not run has no timing and a note.
    """

    operator: str
    """What is benchmarked, such as ``"mixed_sum"`` or ``"edge"``."""
    case: str
    mode: str
    """``"forward"`` without gradients, ``"backward"``, ``"both"``, or ``"step"``."""
    provider: str
    """Who ran it; in a profile the part of the call that is timed."""
    shape: list[int]
    dtype: str
    threads: int
    timing: Timing | None
    images: int = 0
    """Images in the batch; 0 where there are none."""
    bytes_moved: int = 0
    """Bytes that the ideal kernel reads and writes."""
    copy_share: float = 0.0
    """Speed of the ideal kernel's traffic over the measured speed of a copy."""
    flops: int | None = None
    """Floating-point operations that the mathematics asks for."""
    depthwise_flops: int | None = None
    """Those of depthwise windows among them."""
    product_share: float | None = None
    """Speed of all of them over the measured speed of a large float32 matrix product."""
    peak_bytes: int | None = None
    """Most that torch's allocator held at once."""
    kept_bytes: int | None = None
    """What autograd saves for backward beyond parameters and buffers."""
    held_bytes: int | None = None
    """What torch's allocator still holds after the forward pass."""
    resident_bytes: int | None = None
    """Resident peak of a fresh process above its idle state."""
    error: float | None = None
    """Relative root-mean-square error of the outcome against float64."""
    gradient_error: float | None = None
    """The same of the gradient that is worst."""
    launches: int | None = None
    """Kernels that one call runs on a GPU."""
    host_launches: int | None = None
    """What the host starts for them; a recording is started once for all that it holds."""
    setup_seconds: float = 0.0
    """Compilation before the first call."""
    note: str = ""


def device_name(device: str = "cpu") -> str:
    """Return the device's own name.

    Example:
        >>> device_name() == device_name().strip() != ""
        True
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    except OSError:
        pass
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)", "", model)).strip()


def driver() -> str:
    """Return the version of the GPU's driver; empty where nobody tells."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.partition("\n")[0].strip()


def on_gpu(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the stamped rows of one device are a GPU's.

    Example:
        >>> on_gpu(stamp([])), on_gpu([{"driver": "580.1"}])
        (False, True)
    """
    return any("driver" in row for row in rows)


def file_name(device: str = "cpu") -> str:
    """Return the name of a device's result file."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-") + ".json"


def stamp(rows: Iterable[Row], device: str = "cpu") -> list[dict[str, Any]]:
    """Return the rows as JSON values, with what they were measured on."""
    more = {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "pyfast_nas": __version__,
        "commit": commit(),
    }
    if torch.device(device).type == "cuda":
        more["driver"] = driver()
    return [
        {name: value for name, value in dataclasses.asdict(row).items() if _says_something(value)}
        | {"timing": None if row.timing is None else dataclasses.asdict(row.timing)}
        | more
        for row in rows
    ]


def _says_something(value: Any) -> bool:
    return value is not None and value != ""


def key(row: Mapping[str, Any]) -> tuple:
    """Return what tells a row from the others of its file; the provider comes last."""
    return tuple(row[n] for n in ("operator", "case", "mode", "dtype", "threads", "provider"))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a result file.

    Raises:
        DataError: If it is no result file.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"bench: {path.name} must have the format {FORMAT!r}")
        for row in content["rows"]:
            key(row)
        return content["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"bench: {path.name} must be a result file: {error}") from None


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Put stamped rows into a result file, in place of all rows of the same cases and modes.

    A ratio is one of calls that took turns: what an earlier session measured does not stand beside
    them.

    Raises:
        DataError: If the file is there and is no result file.
        OSError: If it cannot be read or written.
    """
    replaced = {key(row)[:-1] for row in rows}
    old = read(path) if path.exists() else []
    kept = [row for row in old if key(row)[:-1] not in replaced]
    ordered = sorted([*kept, *rows], key=lambda row: (*key(row)[:-1], _median(row)))
    lines = ",\n".join(json.dumps(row) for row in ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Replaced at once: rows of other sessions must not be lost with the power.
    write_text(path, f'{{"format": "{FORMAT}", "version": 1, "rows": [\n{lines}\n]}}\n')


def _median(row: Mapping[str, Any]) -> float:
    return row["timing"]["p50"] if row["timing"] else float("inf")


def commit() -> str:
    """Name the commit; ``-dirty`` where a tracked file other than the results differs from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "csrc").is_dir():  # installed: whatever repository is around, it is not ours
        return ""
    git = ["git", "-C", str(root)]
    state = ["status", "--porcelain", "--untracked-files=no", "--", "."]
    ours = ["benchmarks/results", "benchmarks/search_quality.json", "docs/search-quality.md"]
    ours = [f":!{path}" for path in (*ours, "docs/benchmarks.md", "docs/benchmarks.svg")]
    try:
        name, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "--short", "HEAD"], [*state, *ours])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.strip() + ("-dirty" if changed else "")
