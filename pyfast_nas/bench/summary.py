"""Result rows put together for a reader: one table a case, ratios, units."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyfast_nas.bench.profile import CEILINGS, NODES, OUTSIDE, REST, WATCHED, WHOLE
from pyfast_nas.bench.record import OURS
from pyfast_nas.viz.units import duration, number, percent

__all__ = ["Record", "best_rival", "by_case", "mebibytes", "ours_of", "table", "time"]

Record = Mapping[str, Any]  # a stamped row
MODES = {"forward": "forward", "backward": "backward", "both": "fwd + bwd", "step": "step"}


def time(row: Record | None) -> str:
    """Write the median of a row with its unit.

    Example:
        >>> time({"timing": {"p50": 1234.5}}), time({"timing": {"p50": 2.5e6}}), time(None)
        ('1.23 ms', '2.50 s', '')
    """
    if row is None or not row["timing"]:
        return ""
    median = row["timing"]["p50"]
    size, unit = next(
        (pair for pair in ((1e6, "s"), (1e3, "ms")) if median >= pair[0]), (1.0, "us")
    )
    return f"{median / size:.{2 if median < 10 * size else 1}f} {unit}"


def mebibytes(count: float | None) -> str:
    """Write bytes in MiB.

    Example:
        >>> mebibytes(3 << 20), mebibytes(None)
        ('3', '')
    """
    if count is None:
        return ""
    value = count / 2**20
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def by_case(rows: Iterable[Record]) -> dict[tuple, list[Record]]:
    """Group rows by operator, case, dtype and threads, in the order in which they come."""
    found: dict[tuple, list[Record]] = defaultdict(list)
    for row in rows:
        found[row["operator"], row["case"], row["dtype"], row["threads"]].append(row)
    return found


def ours_of(rows: Iterable[Record]) -> Record | None:
    """Return the row that stands for us: of the package's own module, else of an accelerated one.

    Example:
        >>> ours_of([{"provider": "loop", "timing": {"p50": 1.0}}]) is None
        True
    """
    timed = {row["provider"]: row for row in rows if row["timing"]}
    return next((timed[name] for name in OURS if name in timed), None)


def best_rival(rows: Iterable[Record], *, start: str = "") -> Record | None:
    """Return the quickest row that is not ours, of providers whose name starts with ``start``."""
    timed = [
        row
        for row in rows
        if row["timing"]
        and row["provider"] not in (*OURS, "reference")
        and row["provider"].startswith(start)
    ]
    return min(timed, key=lambda row: row["timing"]["p50"], default=None)


def table(rows: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of the table of one case, slowest provider first.

    Columns that nobody has anything in are left out. A profile has a line for each part of the call
    in place of one for each provider. Saved and held are MiB an image after the
    forward pass, peak and resident are MiB.

    Args:
        rows: All rows of the case.

    Example:
        >>> common = {"operator": "sum", "case": "c", "images": 0, "note": ""}
        >>> table([
        ...     common | {"provider": "loop", "mode": "both", "timing": {"p50": 6.0}},
        ...     common | {"provider": "fused", "mode": "both", "timing": {"p50": 2.0}},
        ... ])
        (['', 'fwd + bwd', 'x ours'], [['loop', '6.00 us', '3.00'], ['fused', '2.00 us', '1.00']])
    """
    if rows[0]["operator"] == "profile":
        return _profile_table(rows)
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    grouped: dict[str, dict[str, Record]] = defaultdict(dict)
    for row in rows:
        grouped[row["provider"]][row["mode"]] = row
    columns: dict[str, dict[str, str]] = {}
    for mode in modes:
        found = {name: some[mode] for name, some in grouped.items() if mode in some}
        columns[MODES[mode]] = {name: time(row) for name, row in found.items()}
        ours = ours_of(found.values())
        columns["x ours" + " " * modes.index(mode)] = {
            name: f"{row['timing']['p50'] / ours['timing']['p50']:.2f}"
            for name, row in found.items()
            if ours and row["timing"]
        }
    last = {name: some.get(modes[-1], {}) for name, some in grouped.items()}
    for title, write in _EXTRAS.items():
        columns[title] = {name: write(row) for name, row in last.items()}
    columns = {title: cells for title, cells in columns.items() if any(cells.values())}
    order = sorted(grouped, key=lambda name: (name in OURS, -_median(last[name])))
    head = ["", *(title.rstrip() for title in columns)]
    return head, [[name, *(cells.get(name, "") for cells in columns.values())] for name in order]


def _profile_table(rows: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """One line for each part of a call, nodes first, then the largest; the whole comes last."""
    last = (REST, OUTSIDE, WATCHED, WHOLE, *CEILINGS)
    places = {name: place for place, name in enumerate(NODES, start=-len(NODES))}
    places |= {name: place for place, name in enumerate(last, start=1)}
    watched = next(_median(row) for row in rows if row["provider"] == WATCHED)
    lines = []
    for row in sorted(rows, key=lambda row: (places.get(row["provider"], 0), -_median(row))):
        name, microseconds = row["provider"], _median(row)
        cells = dict.fromkeys(_PROFILE, "") | {"": name, "time": time(row)}
        if name not in (WHOLE, *CEILINGS):
            cells["share"] = percent(microseconds / watched)
        if flops := row.get("flops"):
            cells["GFLOP"] = f"{flops / 1e9:.2f}"
            cells["GFLOP/s"] = f"{flops / microseconds / 1e3:.1f}"
            cells["of product"] = percent(row["product_share"])
        if moved := row["bytes_moved"]:
            cells["MB"] = f"{moved / 1e6:.1f}"
            cells["GB/s"] = f"{moved / microseconds / 1e3:.2f}"
            cells["of copy"] = percent(row["copy_share"])
        if name in NODES:
            cells["depthwise"] = percent(row["depthwise_flops"] / row["flops"])
            is_memory = row["copy_share"] > row["product_share"]
            cells["bound by"] = "memory" if is_memory else "arithmetic"
        lines.append([cells[title] for title in _PROFILE])
    return list(_PROFILE), lines


_PROFILE = (
    *("", "time", "share", "GFLOP", "depthwise", "GFLOP/s", "of product"),
    *("MB", "GB/s", "of copy", "bound by"),
)


def _median(row: Record) -> float:
    return row["timing"]["p50"] if row.get("timing") else float("inf")


def _per_image(key: str, row: Record) -> str:
    return mebibytes(row[key] / row["images"]) if row.get("images") and key in row else ""


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


_EXTRAS = {
    "launches": lambda row: str(row["launches"]) if row.get("launches") else "",
    "by the host": lambda row: str(row["host_launches"]) if row.get("host_launches") else "",
    "saved": lambda row: _per_image("kept_bytes", row),
    "held": lambda row: _per_image("held_bytes", row),
    "peak": lambda row: mebibytes(row.get("peak_bytes")),
    "resident": lambda row: mebibytes(row.get("resident_bytes")),
    "error": lambda row: _error(row.get("error")),
    "of gradients": lambda row: _error(row.get("gradient_error")),
    "set-up": lambda row: duration(row["setup_seconds"]) if row.get("setup_seconds") else "",
    "": lambda row: row.get("note", ""),
}
