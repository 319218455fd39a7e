"""The sections of the report page that are plain tables: times, memory, settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyfast_nas.viz.markup import escape, printable
from pyfast_nas.viz.run_folder import RunFolder
from pyfast_nas.viz.units import duration, memory, number

__all__ = ["measured", "settings", "standing", "times"]


def times(run: RunFolder) -> str:
    """Tell how long the phases took, how fast the steps were and how much memory was used.

    Example:
        >>> from pathlib import Path
        >>> times(RunFolder(path=Path("."), config={}, totals={"search": 75.0})).count("<tr>")
        1
    """
    rows = [
        (f"{phase}, in all", duration(seconds)) for phase, seconds in sorted(run.totals.items())
    ]
    for key, what in (
        ("seconds", "an epoch of the search"),
        ("images_per_second", "images per second"),
        ("steps_per_second", "steps per second"),
    ):
        values = sorted(line[key] for line in run.timing if isinstance(line.get(key), int | float))
        if values:
            show = duration if key == "seconds" else lambda v: number(v, 1)
            middle = values[len(values) // 2]
            text = f"{show(middle)} (median; {show(values[0])} to {show(values[-1])})"
            rows.append((what, text))
    if peak := run.peak_memory:
        rows.append(("peak memory", memory(peak)))
    return _table(rows)


def measured(run: RunFolder) -> str:
    """Tell where the result stands in the table of measured architectures.

    Example:
        >>> from pathlib import Path
        >>> measured(RunFolder(path=Path("."), config={}))
        ''
    """
    rows = list(standing(run.table or {}).items())
    if not rows:
        return ""
    source = f"{printable(run.table.get('arch', ''), 200)} in {printable(run.table['file'], 200)}"
    return f"<p>Looked up, not trained: <code>{escape(source)}</code></p>{_table(rows)}"


def standing(table: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for each split of what a result says of a table of measured architectures.

    Example:
        >>> split = {"column": "c10_test_e200", "value": 93.5, "rank": 12, "best": 94.37}
        >>> standing({"file": "a.csv", "architectures": 15625, "test": split | {"regret": 0.87}})
        {'test': '93.5 (c10_test_e200), rank 12 of 15,625, 0.87 below the best'}
    """
    lines = {}
    for split in ("valid", "test"):
        if score := table.get(split):
            lines[split] = (
                f"{number(score['value'])} ({printable(score['column'], 60)}), rank "
                f"{score['rank']:,} of {table['architectures']:,}, {number(score['regret'])} below "
                "the best"
            )
    return lines


def settings(run: RunFolder) -> str:
    """List every option of the run, the kernels that served and the versions.

    Example:
        >>> from pathlib import Path
        >>> "0.1" in settings(RunFolder(path=Path("."), config={"versions": {"a": "0.1"}}))
        True
    """
    parts = []
    for key, title in (
        ("search", "Search"),
        ("algorithm", "Algorithm"),
        ("space", "Space"),
        ("data", "Data"),
        ("kernels", "Kernels that served"),
        ("versions", "Versions"),
    ):
        record = run.config.get(key)
        if isinstance(record, Mapping) and record:
            table = _table([(name, _value(value)) for name, value in record.items()])
            parts.append(f"<div><h3>{title}</h3>{table}</div>")
    return f'<div class="columns">{"".join(parts)}</div>' if parts else ""


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else printable(value, 400)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows
    )
    return f"<table><tbody>{body}</tbody></table>"
