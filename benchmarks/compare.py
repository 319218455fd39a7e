"""Compare two result files: ``python -m benchmarks.compare BASE HEAD``.

A difference smaller than the spread (the quantiles p20 to p80 overlap) is called noise.
"""

import argparse
from pathlib import Path

from pyfast_nas.bench import read

__all__ = ["compare", "main"]

KEY = ("operator", "case", "mode", "dtype", "threads", "provider", "device")


def _rows(path: Path) -> dict[tuple, dict]:
    return {tuple(row[name] for name in KEY): row["timing"] for row in read(path) if row["timing"]}


def compare(base: Path, head: Path) -> str:
    """Return a Markdown table of the rows that both files have."""
    old, new = _rows(base), _rows(head)
    lines = ["| operator | case | mode | threads | provider | base us | head us | base / head | |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for key in sorted(old.keys() & new.keys(), key=str):
        was, now = old[key], new[key]
        apart = was["p20"] > now["p80"] or now["p20"] > was["p80"]
        verdict = "noise" if not apart else "faster" if now["p50"] < was["p50"] else "slower"
        operator, case, mode, _, threads, provider, _ = key
        figures = f"{was['p50']:.1f} | {now['p50']:.1f} | {was['p50'] / now['p50']:.2f}"
        cells = f"{operator} | {case} | {mode} | {threads} | {provider} | {figures} | {verdict}"
        lines.append(f"| {cells} |")
    only = len(old.keys() ^ new.keys())
    if only:
        lines.append(f"\n{only} rows are in one file only.")
    return "\n".join(lines)


def main() -> None:
    """Print the table for the two files named on the command line."""
    parser = argparse.ArgumentParser(description="Compare two benchmark result files.")
    parser.add_argument("base", type=Path, help="result file of the older state")
    parser.add_argument("head", type=Path, help="result file of the newer state")
    arguments = parser.parse_args()
    print(compare(arguments.base, arguments.head))


if __name__ == "__main__":
    main()
