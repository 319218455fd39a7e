"""Write docs/benchmarks.md from the result files: ``python -m benchmarks.tables``."""

import json
from collections import defaultdict
from pathlib import Path

__all__ = ["main", "page"]

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Every figure stands in a file of `benchmarks/results/`, one per device; this page is made from them
by `python -m benchmarks.tables`. Times are medians in microseconds. All providers of a row were
timed in turn in one process on random data, after their results had been checked against float64.
What is not here has not been measured yet.

`mixed_sum` is bound by memory traffic: forward and backward move 26 tensors, the Python loop 85
and, since caches read what they are about to overwrite, 31 more. Where the tensors do not fit into
a cache, that count bounds the gain over the loop. At few elements the call itself counts.

`gumbel_topk` is bound by arithmetic: Philox and two logarithms for every number. With a gradient at
a few rows it is bound by the autograd function in Python, and slower there than plain operations.
"""


def page(folder: Path = FOLDER / "results") -> str:
    """Return the Markdown of all result files in ``folder``."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text())["rows"]
        if not rows:
            continue
        parts.append(f"## {rows[0]['device']}\n")
        by_operator = defaultdict(list)
        for row in rows:
            by_operator[row["operator"]].append(row)
        for operator, some in sorted(by_operator.items()):
            parts.append(_table(operator, some))
    return "\n".join(parts)


def _table(operator: str, rows: list[dict]) -> str:
    cells: dict[tuple, dict[str, dict]] = defaultdict(dict)
    providers: dict[str, None] = {}
    for row in rows:
        cells[row["case"], row["dtype"], row["mode"], row["threads"]][row["provider"]] = row
        providers[row["provider"]] = None
    rivals = sorted(name for name in providers if name != "fused")
    versions = sorted({f"torch {row['torch']}, commit {row['commit']}" for row in rows})
    head = ["case", "dtype", "mode", "threads", *rivals, "fused", "best rival / fused"]
    lines = [f"### {operator}\n", f"{'; '.join(versions)}.\n"]
    lines += ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    # Large cases first, and of each the modes from the part to the whole.
    order = sorted(cells, key=lambda key: (-_bytes(cells[key]), key[0], str(key)))
    for key in order:
        found = cells[key]
        times = [_time(found.get(name)) for name in [*rivals, "fused"]]
        medians = [found[name]["timing"]["p50"] for name in rivals if name in found]
        ratio = ""
        if medians and "fused" in found:
            ratio = f"{min(medians) / found['fused']['timing']['p50']:.2f}"
        lines.append("| " + " | ".join([*map(str, key), *times, ratio]) + " |")
    return "\n".join(lines) + "\n"


def _bytes(found: dict[str, dict]) -> int:
    return max(row["bytes_moved"] for row in found.values())


def _time(row: dict | None) -> str:
    return "" if row is None else f"{row['timing']['p50']:,.1f}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
