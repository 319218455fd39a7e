"""Make docs/benchmarks.md and its pictures of the result files: ``python -m benchmarks.tables``."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks import quality_page
from benchmarks.picture import paths_picture, picture
from benchmarks.texts import HEAD, NO_GPU, OF_THE_CPU, TEXTS
from pyfast_nas.bench import read
from pyfast_nas.bench.record import OURS, on_gpu
from pyfast_nas.bench.summary import Record, best_rival, by_case, mebibytes, ours_of, table, time
from pyfast_nas.bench.targets import figures

__all__ = ["main", "page"]

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"


def page(folder: Path = FOLDER / "results") -> str:
    """Return the Markdown of all result files in ``folder``."""
    parts, found_gpu = [HEAD], False
    for path in sorted(folder.glob("*.json")):
        rows = read(path)
        if not rows:
            continue
        found_gpu |= on_gpu(rows)
        parts.append(f"## {rows[0]['device']}\n")
        head = ["what", "figure", "must", "reach for", ""]
        parts.append(f"### Targets\n\n{_markdown(head, figures(rows))}")
        by_operator = defaultdict(list)
        for row in rows:
            by_operator[row["operator"]].append(row)
        order = [*TEXTS, *sorted(by_operator.keys() - TEXTS.keys())]
        for operator in [name for name in order if name in by_operator]:
            parts.append(_section(operator, by_operator[operator]))
    return "\n".join(parts if found_gpu else [*parts, NO_GPU])


def _section(operator: str, rows: Sequence[Record]) -> str:
    versions = sorted({_versions(row) for row in rows})
    parts = [f"### {operator}\n", TEXTS.get(operator, "")]
    parts += ["" if on_gpu(rows) else OF_THE_CPU.get(operator, ""), f"{'; '.join(versions)}.\n"]
    if operator in ("supernet", "profile", "step", "paths", "product"):
        for (_, case, dtype, threads), some in by_case(rows).items():
            parts.append(f"**{case}**, {dtype}, {threads} threads\n\n{_markdown(*table(some))}")
    else:
        parts.append(_markdown(*_wide(rows)))
    return "\n".join(part for part in parts if part)


def _versions(row: Record) -> str:
    driver = f", driver {row['driver']}" if row.get("driver") else ""
    return f"torch {row['torch']}{driver}, commit {row['commit'] or 'unknown'}"


def _wide(rows: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """One line a case and mode, one column a provider."""
    found: dict[tuple, dict[str, Record]] = defaultdict(dict)
    for row in rows:
        found[row["case"], row["dtype"], row["mode"], row["threads"]][row["provider"]] = row
    names = {row["provider"] for row in rows}
    rivals = sorted(names - set(OURS))
    ours = [name for name in OURS if name in names]
    kept = any(row.get("images") for row in rows)
    head = ["case", "dtype", "mode", "threads", *rivals, *ours, "best rival / ours"]
    head += ["saved, eager", "saved, ours"] if kept else []
    lines = []
    # Large cases first, and of each the modes from the part to the whole.
    for key in sorted(found, key=lambda key: (-_size(found[key]), key[0], str(key))):
        some = found[key]
        times = [time(some.get(name)) for name in [*rivals, *ours]]
        best, us = best_rival(some.values()), ours_of(some.values())
        ratio = f"{best['timing']['p50'] / us['timing']['p50']:.2f}" if best and us else ""
        line = [*map(str, key), *times, ratio]
        lines.append(line + ([_saved(some.get("eager")), _saved(us)] if kept else []))
    return head, lines


def _size(found: dict[str, Record]) -> int:
    """Rank of a case: by its traffic, or by the time that the slowest takes."""
    return max(
        row["bytes_moved"] or (row["timing"] or {"p50": 0.0})["p50"] for row in found.values()
    )


def _saved(row: Record | None) -> str:
    if row is None or "kept_bytes" not in row:
        return ""
    return f"{mebibytes(row['kept_bytes'] / row['images'])} MiB an image"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def main() -> None:
    """Write the pages and their pictures."""
    (DOCS / "benchmarks.md").write_text(page(), encoding="utf-8")
    (DOCS / "benchmarks.svg").write_text(picture(), encoding="utf-8")
    if drawn := paths_picture():
        (DOCS / "paths.svg").write_text(drawn, encoding="utf-8")
    searches = json.loads((DOCS.parent / "benchmarks/search_quality.json").read_text())
    (DOCS / "search-quality.md").write_text(quality_page.page(searches), encoding="utf-8")


if __name__ == "__main__":
    main()
