"""The pictures of the README and of docs/benchmarks.md, made from the result files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pyfast_nas.bench import read
from pyfast_nas.bench.record import OURS, on_gpu
from pyfast_nas.bench.steps import MODES, PATHS, path_search
from pyfast_nas.bench.summary import Record, mebibytes, time
from pyfast_nas.bench.targets import FOREIGN, SUPERNET, rows_of
from pyfast_nas.viz.bars import Bar, Panel, bar_chart

__all__ = ["paths_picture", "picture"]

FOLDER = Path(__file__).parent / "results"
NAMES = {
    "eager": "PyTorch",
    "loop": "PyTorch, loop",
    "channels-last": "PyTorch, channels-last",
    "checkpoint": "activation checkpointing",
    "fused": "pyfast_nas",
    "accelerate": "pyfast_nas.accelerate",
    "compiled": "torch.compile",
    "compile-edge": "torch.compile, edges",
    "compile-edge-channels-last": "compiled edges, channels-last",
    "compile-cell": "torch.compile, cells",
    "compile-cell-channels-last": "compiled cells, channels-last",
    "compile-whole": "torch.compile, whole",
    "compile-whole-channels-last": "compiled whole, channels-last",
}
SUM = "8 x [64x16x32x32]"
# Title, operator, case, mode.
TIMES = (
    ("DARTS supernet, forward + backward, batch 16", "supernet", SUPERNET, "both"),
    ("NAS-Bench-201 supernet, forward + backward, batch 16", "supernet", FOREIGN, "both"),
    ("First-order DARTS step", "step", f"first-order DARTS: {SUPERNET}", "step"),
    ("MSG-DAS step, K = 2, beside a DARTS step", "step", f"MSG-DAS, K = 2: {SUPERNET}", "step"),
    ("mixed_sum, forward + backward, 8 x [64, 16, 32, 32]", "mixed_sum", SUM, "both"),
    ("gumbel_topk, 2 of 16, 65,536 rows", "gumbel_topk", "65536x16_k2", "forward"),
)


def picture(folder: Path = FOLDER) -> str:
    """Return the SVG of the first result file that has what it shows."""
    for path in sorted(folder.glob("*.json")):
        rows = read(path)
        panels = [
            _panel(title, rows_of(rows, operator, case, mode), _median, time)
            for title, operator, case, mode in TIMES
        ]
        panels[1:1] = [_memory(rows)]
        if any(panel.bars for panel in panels):
            device = rows[0]["device"]
            return bar_chart(panels, title=f"Times and memory on {device}, less is better")
    return bar_chart([], title="Nothing has been measured yet")


def paths_picture(folder: Path = FOLDER) -> str:
    """Return the SVG of a step's memory and time against K, or nothing where none was measured."""
    for path in sorted(folder.glob("*.json")):
        records = read(path)
        found = {row["provider"]: row for row in rows_of(records, "paths", SUPERNET, "step")}
        if found:
            what, key = "Resident peak of the first step, MSG-DAS beside DARTS", "resident_bytes"
            if on_gpu(records):
                what, key = "Peak of a step, MSG-DAS beside DARTS", "peak_bytes"
            panels = [_paths_panel(what, found, key), _paths_panel("Time of the same", found)]
            title = f"Memory and time of MSG-DAS steps on {records[0]['device']}, less is better"
            return bar_chart(panels, title=title)
    return ""


def _paths_panel(title: str, found: Mapping[str, Record], key: str = "") -> Panel:
    """Both DARTS steps, then each mode from the largest K down: bytes of ``key``, or times."""
    names = {"eager": "DARTS in PyTorch", "fused": "DARTS, pyfast_nas"}
    names |= {n: n for m in MODES for k in PATHS[::-1] for n in [path_search(m, k)]}
    bars = [
        Bar(
            name=label,
            value=found[name][key] if key else _median(found[name]),
            label=f"{mebibytes(found[name][key])} MiB" if key else time(found[name]),
            strong=name not in ("eager", "fused"),
        )
        for name, label in names.items()
        if name in found and (not key or key in found[name])
    ]
    return Panel(title=title, bars=bars)


def _memory(rows: Sequence[Record]) -> Panel:
    """Resident peaks of the DARTS supernet."""
    found = [r for r in rows_of(rows, "supernet", SUPERNET, "both") if "resident_bytes" in r]
    title = "Peak memory of the same above the idle process"
    return _panel(
        title,
        found,
        lambda row: row["resident_bytes"],
        lambda row: f"{mebibytes(row['resident_bytes'])} MiB",
    )


def _panel(
    title: str,
    rows: Sequence[Record],
    value: Callable[[Record], float],
    label: Callable[[Record], str],
) -> Panel:
    """Longest bar first, ours last, with the ratio to ours."""
    shown = [row for row in rows if row["provider"] not in ("reference", "fused-nchw")]
    ours = [row for name in OURS for row in shown if row["provider"] == name]
    rivals = sorted((row for row in shown if row not in ours), key=value, reverse=True)
    bars = []
    for row in [*rivals, *reversed(ours)]:
        ratio = f"  ({value(row) / value(ours[0]):.1f} x)" if ours and row in rivals else ""
        name = NAMES.get(row["provider"], row["provider"].replace("_", " "))
        bars.append(Bar(name=name, value=value(row), label=label(row) + ratio, strong=row in ours))
    return Panel(title=title, bars=bars if ours else [])


def _median(row: Record) -> float:
    return row["timing"]["p50"]
