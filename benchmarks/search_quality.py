"""What searches find on NAS-Bench-201, judged by the published accuracy of every cell.

python -m benchmarks.search_quality --data cifar10:FOLDER --table nas_bench_201.csv.gz

Each search is a process of its own, ``pyfast-nas search``. Beside the accuracy stands what says
whether it means anything: how often the alphas moved, how undecided they still are, and by how much
the kept candidate of each edge leads. Rows go into a file, the page is made from them.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyfast_nas.bench.record import commit, device_name
from pyfast_nas.spaces.tables import AccuracyTable
from pyfast_nas.viz.run_folder import RunFolder

__all__ = ["METHODS", "page", "run"]

METHODS = {
    "DARTS, first order": ("--algorithm", "darts"),
    "DARTS, second order": (*("--algorithm", "darts", "--hypergradient", "finite_difference"),),
    "iDARTS": ("--algorithm", "idarts"),
    "random search": ("--algorithm", "random"),
}
RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "search-quality.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """One search and the cell that it found.

    Attributes:
        method: Key of :data:`METHODS`.
        seed: Seed of the search.
        images: Training images of the weights; the architecture has as many of its own.
        arch: The cell, as the benchmark writes it.
        table: What the table says of it: ``valid`` and ``test`` with value, rank, best, regret.
        alpha_steps: Updates of the architecture parameters.
        entropy: Mean entropy of the alphas over that of a uniform choice.
        margins: Lead of the kept candidate's probability on each edge.
        skips: Skip connections in the cell.
        step_seconds: Seconds of one step, the mean over the search.
        memory_bytes: Peak of the process.
    """

    method: str
    seed: int
    images: int
    arch: str
    table: dict[str, Any]
    alpha_steps: int
    entropy: float
    margins: list[float]
    skips: int
    step_seconds: float
    memory_bytes: int


def run(method: str, seed: int, options: Sequence[str]) -> Found:
    """Search once, in a process of its own.

    Args:
        method: Key of :data:`METHODS`.
        seed: Seed of the search.
        options: Words of the command line that all methods share.

    Raises:
        subprocess.CalledProcessError: If the search fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        words = [*METHODS[method], "--seed", str(seed), "--output", str(output), *options]
        command = [sys.executable, "-m", "pyfast_nas", "search", "--space", "nas-bench-201"]
        done = subprocess.run(
            [*command, *words, "--compare", "0", "--json"], stdout=subprocess.PIPE, check=True
        )
        result = json.loads(done.stdout)
        files = RunFolder.read(output)
    ((table, rows),) = [(t, files.probabilities(t)[-1][1]) for t in files.tables]
    leads = [sorted(row, reverse=True) for row in rows]
    last = result["last_epoch"]
    steps = last["epoch"] * (files.config["data"]["train"] // files.config["search"]["batch_size"])
    return Found(
        method=method,
        seed=seed,
        images=files.config["data"]["train"],
        arch=result["table"]["arch"],
        table={split: result["table"][split] for split in ("valid", "test")},
        alpha_steps=last["alpha_steps"],
        entropy=last["entropy"],
        margins=[row[0] - row[1] for row in leads],
        skips=last["skip_count"][table],
        step_seconds=sum(line["seconds"] for line in files.timing) / steps,
        memory_bytes=result["peak_memory_bytes"],
    )


def page(content: dict[str, Any]) -> str:
    """Return the page of a result file."""
    sizes, chance = content["sizes"], content["chance"]
    found = [Found(**row) for row in content["rows"]]
    lines = [
        "# What searches find",
        "",
        "Made by `python -m benchmarks.search_quality` from a result file. NAS-Bench-201 publishes "
        "the accuracy of every cell of",
        "its space, so what a search finds needs no training to be judged. The searches are small: "
        f"{found[0].images} training images of {content['data']},",
        f"as many for the architecture as for the weights, {sizes['channels']} channels, "
        f"{sizes['cells']} cell a stage, batch {sizes['batch_size']}, {sizes['epochs']} epochs, "
        f"alphas at {_rate(sizes['alpha_lr'])}. "
        "Few steps move the",
        "alphas little: entropy 1 is an even choice, and a lead near 0 is a cell that the initial "
        "values have chosen. Random search",
        "has no alphas to move.",
        "",
        f"`{content['columns']['test']}`: the best cell has {chance['best']:.2f} %, a random one "
        f"{chance['mean']:.2f} on average (standard deviation {chance['deviation']:.2f}).",
        "",
        "| search | test accuracy, % | of each seed | validation | skips | alpha steps | entropy | "
        "s a step | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in dict.fromkeys(row.method for row in found):
        mine = [row for row in found if row.method == method]
        tests = [row.table["test"]["value"] for row in mine]
        lines.append(
            f"| {method} | {_spread(tests)} | {_list(tests, 2)} "
            f"| {_list((row.table['valid']['value'] for row in mine), 2)} "
            f"| {', '.join(str(row.skips) for row in mine)} | {mine[0].alpha_steps} "
            f"| {_list((row.entropy for row in mine), 3)} "
            f"| {statistics.median(row.step_seconds for row in mine):.3f} "
            f"| {max(row.memory_bytes for row in mine) / 2**20:.0f} |"
        )
    lines += [
        "",
        "Every search: its cell, rank among 15,625 and regret by the test column, and the lead of "
        "the kept candidate on each edge.",
        "",
        "| search | seed | cell | rank | regret | leads |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        test = row.table["test"]
        arch = row.arch.replace("|", "\\|")
        lines.append(
            f"| {row.method} | {row.seed} | `{arch}` | {test['rank']} | {test['regret']:.2f} "
            f"| {_list(row.margins, 3)} |"
        )
    lines += [
        "",
        f"{content['device']}, {content['threads']} threads, torch {content['torch']}, commit "
        f"{content['commit']}.",
    ]
    return "\n".join(lines) + "\n"


def _rate(rate: float | None) -> str:
    return "the paper's rate" if rate is None else f"a rate of {rate:g}"


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def _list(values: Iterable[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all searches; write rows and page after each of them."""
    parser = argparse.ArgumentParser(prog="search_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cifar10:FOLDER or cifar100:FOLDER")
    parser.add_argument("--table", required=True, help="accuracies of all 15,625 cells")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=1, help="cells of a stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--alpha-lr", type=float, help="by default the paper's")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    shared = ["--data", given.data, "--table", given.table]
    for name in ("epochs", "channels", "cells", "batch_size"):
        shared += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    rows: list[Found] = []
    for seed in range(given.seeds):
        for method in given.methods:
            rate = []
            if given.alpha_lr is not None and method != "random search":
                rate = ["--alpha-lr", str(given.alpha_lr)]
            print(f"{method}, seed {seed}", file=sys.stderr, flush=True)
            rows.append(run(method, seed, [*shared, *rate]))
            content = _content(given, rows)
            given.results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            given.page.write_text(page(content), encoding="utf-8")
    print(page(content))
    return 0


def _content(given: argparse.Namespace, rows: Sequence[Found]) -> dict[str, Any]:
    columns = {split: rows[0].table[split]["column"] for split in ("valid", "test")}
    values = AccuracyTable.read(given.table).column(columns["test"])
    order = {method: place for place, method in enumerate(METHODS)}
    return {
        "data": given.data.partition(":")[0],
        "sizes": {
            name: getattr(given, name)
            for name in ("epochs", "channels", "cells", "batch_size", "alpha_lr")
        },
        "columns": columns,
        "chance": {
            "best": float(values.max()),
            "mean": float(values.mean()),
            "deviation": float(values.std()),
        },
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "rows": [
            dataclasses.asdict(row)
            for row in sorted(rows, key=lambda row: (order[row.method], row.seed))
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
