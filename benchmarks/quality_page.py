"""The page docs/search-quality.md, made from the result file of `benchmarks.search_quality`."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["page"]

HEAD = """# What searches find

Made by `python -m benchmarks.tables` from `benchmarks/search_quality.json`, which
`python -m benchmarks.search_quality` writes. NAS-Bench-201 publishes the
accuracy of every cell of its space, so what a search finds needs no training to be judged. The
searches are small. Few steps move the alphas little: entropy 1 is an even choice, and a lead near 0
is a cell that the initial values have chosen. The correlation is Spearman's, over all 15,625 cells,
of the probability that the alphas give a cell and its test accuracy. Random search has no alphas to
move.
"""
TITLES = {"epochs": "Equal epochs", "minutes": "Equal time"}
Row = Mapping[str, Any]


def page(content: Mapping[str, Any]) -> str:
    """Return the page of a result file."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        if kind in content["studies"]:
            parts.append("\n".join(_study(kind, title, content["studies"][kind])) + "\n")
    return "\n".join(parts)


def _study(kind: str, title: str, study: Mapping[str, Any]) -> list[str]:
    sizes, chance, rows = study["sizes"], study["chance"], study["rows"]
    length = f"{_count(sizes[kind], kind.removesuffix('s'))} each"
    lines = [
        f"## {title}",
        "",
        f"{rows[0]['images']:,} training images of {study['data']} for the weights, as many for "
        "the architecture,",
        f"{sizes['channels']} channels, {_count(sizes['cells'], 'cell')} a stage, batch "
        f"{sizes['batch_size']}, {length}, alphas at {_rate(sizes['alpha_lr'])}.",
        f"`{study['columns']['test']}`: the best cell has {chance['best']:.2f} %, a random one "
        f"{chance['mean']:.2f} on average (standard deviation {chance['deviation']:.2f}).",
        "",
    ]
    lines += _table(_summary(rows, study.get("latency")))
    lines += [
        "",
        "Every search: its cell, rank among 15,625 and regret by the test column, and the lead of "
        "the kept candidate on each edge.",
        "",
    ]
    lines += _table(list(map(_one, rows)))
    lines += [
        "",
        f"{study['device']}, {_count(study['threads'], 'thread')} a search, "
        f"{_count(study['jobs'], 'search', 'searches')} at a time, torch {study['torch']}, commit "
        f"{study['commit']}.",
    ]
    return lines


def _summary(rows: Sequence[Row], latency: str | None) -> list[dict[str, str]]:
    """One line for each search, over its seeds."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        tests = [row["table"]["test"]["value"] for row in mine]
        line = {
            "search": method,
            "test accuracy, %": _spread(tests),
            "of each seed": _list(tests, 2),
            "validation": _list((row["table"]["valid"]["value"] for row in mine), 2),
            "regret": _list((row["table"]["test"]["regret"] for row in mine), 2),
            "correlation": _list((row["correlation"] for row in mine), 2),
            "skips": ", ".join(str(row["skips"]) for row in mine),
            "alpha steps": ", ".join(dict.fromkeys(str(row["alpha_steps"]) for row in mine)),
            "entropy": _list((row["entropy"] for row in mine), 3),
            "epochs": ", ".join(dict.fromkeys(str(row["epochs"]) for row in mine)),
            "s a step": f"{statistics.median(row['step_seconds'] for row in mine):.3f}",
            "s": f"{statistics.median(row['seconds'] for row in mine):.0f}",
            "peak MiB": f"{max(row['memory_bytes'] for row in mine) / 2**20:.0f}",
        }
        if latency:
            line[f"`{latency}`, ms"] = _list((row["latency"] for row in mine), 2)
        lines.append(line)
    return lines


def _one(row: Row) -> dict[str, str]:
    test = row["table"]["test"]
    return {
        "search": row["method"],
        "seed": str(row["seed"]),
        "cell": "`" + row["arch"].replace("|", "\\|") + "`",
        "rank": str(test["rank"]),
        "regret": f"{test['regret']:.2f}",
        "leads": _list(row["margins"], 3),
    }


def _table(lines: Sequence[Mapping[str, str]]) -> list[str]:
    head = list(lines[0])
    rows = [head, ["---"] * len(head), *(list(line.values()) for line in lines)]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _count(number: float, word: str, words: str | None = None) -> str:
    return f"{number:g} {word if number == 1 else words or word + 's'}"


def _rate(rate: float | None) -> str:
    return "the rate of each paper" if rate is None else f"a rate of {rate:g}"


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def _list(values: Iterable[float | None], digits: int) -> str:
    return ", ".join("" if value is None else f"{value:.{digits}f}" for value in values).strip(", ")
