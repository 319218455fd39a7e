"""What searches find on NAS-Bench-201, judged by the published accuracy of every cell.

python -m benchmarks.search_quality --epochs 1 --data cifar10:FOLDER --table nas_bench_201.csv.gz

Each search is a process of its own, ``pyfast-nas search``. With ``--epochs`` the searches that
differentiate through the weights are as long as each other in epochs, with ``--minutes`` all
searches of the package in time. Beside the accuracy stands what says whether it means anything: how
often the alphas moved, how undecided they still are, and by how much the kept candidate of each
edge leads. Rows go into a file; the page is made from them, here or by `benchmarks.tables`. Small
searches gain little from more threads, so ``--jobs`` of them can share the machine's.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality_page import page
from pyfast_nas.bench.record import commit, device_name
from pyfast_nas.costs import fit_column
from pyfast_nas.spaces import NASBench201
from pyfast_nas.spaces.tables import AccuracyTable
from pyfast_nas.spaces.text_files import write_text
from pyfast_nas.viz.run_folder import RunFolder

__all__ = ["METHODS", "STUDIES", "correlation", "run"]

METHODS = {
    "DARTS, first order": ("--algorithm", "darts"),
    "DARTS, second order": (*("--algorithm", "darts", "--hypergradient", "finite_difference"),),
    "iDARTS": ("--algorithm", "idarts"),
    "SNAS": ("--algorithm", "snas"),
    "GDAS": ("--algorithm", "gdas"),
    "ProxylessNAS": ("--algorithm", "proxylessnas"),
    "UNAS": ("--algorithm", "unas"),
    "MSG-DAS, K = 2": ("--algorithm", "msg-das"),
    "random search": ("--algorithm", "random"),
    # The architecture pays for its latency; {costs} is fitted to the table of latencies.
    "ProxylessNAS, latency": (
        *("--algorithm", "proxylessnas", "--cost", "{costs}", "--cost-form", "add-linear"),
        *("--cost-reference", "{reference}"),
    ),
    "UNAS, latency": ("--algorithm", "unas", "--cost", "{costs}", "--cost-weight", "0.1"),
    "SNAS, resources": ("--algorithm", "snas", "--resource-weight", "0.0015"),
}
COST = "{costs}"
# What is compared by default: in as many epochs, in as much time.
STUDIES = {
    "epochs": ("DARTS, first order", "DARTS, second order", "iDARTS", "random search"),
    "minutes": tuple(METHODS),
}
CALIBRATION = 3  # epochs, so that searches that begin gently are seen at work
RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "search-quality.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """One search and the cell that it found.

    Attributes:
        method: Key of :data:`METHODS`.
        seed: Seed of the search.
        images: Training images of the weights; the architecture has as many of its own.
        epochs: Length of the search.
        arch: The cell, as the benchmark writes it.
        table: What the table says of it: ``valid`` and ``test`` with value, rank, best, regret.
        latency: What the table of latencies says of it, if there is one.
        correlation: Of the cells' probabilities and test accuracies; None if the alphas rest.
        alpha_steps: Updates of the architecture parameters.
        entropy: Mean entropy of the alphas over that of a uniform choice.
        margins: Lead of the kept candidate's probability on each edge.
        skips: Skip connections in the cell.
        step_seconds: Seconds of one step, the mean over the search.
        seconds: Seconds of all steps.
        memory_bytes: Peak of the process.
    """

    method: str
    seed: int
    images: int
    epochs: int
    arch: str
    table: dict[str, Any]
    latency: float | None
    correlation: float | None
    alpha_steps: int
    entropy: float
    margins: list[float]
    skips: int
    step_seconds: float
    seconds: float
    memory_bytes: int


def run(
    method: str,
    seed: int,
    epochs: int,
    options: Sequence[str],
    measured: AccuracyTable,
    latencies: tuple[AccuracyTable, str] | None = None,
    threads: int = 1,
) -> Found:
    """Search once, in a process of its own.

    Args:
        method: Key of :data:`METHODS`.
        seed: Seed of the search.
        epochs: Its length.
        options: Words of the command line that all methods share.
        measured: Accuracies of all cells, those that ``options`` names.
        latencies: Latencies of all cells, and the column that counts; methods with costs need it.
        threads: Threads of the process.

    Raises:
        subprocess.CalledProcessError: If the search fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "pyfast_nas", "search", "--space", "nas-bench-201"]
        words = METHODS[method]
        if COST in words:
            words = _with_costs(words, *latencies, Path(folder) / "costs.json")
        command += [*words, "--seed", str(seed), "--epochs", str(epochs), *options]
        command += ["--output", str(output), "--compare", "0", "--json"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
        result = json.loads(done.stdout)
        files = RunFolder.read(output)
    ((table, rows),) = [(t, files.final_probabilities(t)[1]) for t in files.tables]
    leads = [sorted(row, reverse=True) for row in rows]
    last, arch = result["last_epoch"], result["table"]["arch"]
    images = files.config["data"]["train"]
    seconds = sum(line["seconds"] for line in files.timing)
    alpha_steps = last.get("alpha_steps", 0)
    return Found(
        method=method,
        seed=seed,
        images=images,
        epochs=last["epoch"],
        arch=arch,
        table={split: result["table"][split] for split in ("valid", "test")},
        latency=latencies and latencies[0].known(latencies[1]).get(arch),
        correlation=correlation(rows, _in_order(measured, result["table"]["test"]["column"]))
        if alpha_steps
        else None,
        alpha_steps=alpha_steps,
        entropy=last["entropy"],
        margins=[row[0] - row[1] for row in leads],
        skips=last["skip_count"][table],
        step_seconds=seconds / (last["epoch"] * (images // files.config["search"]["batch_size"])),
        seconds=seconds,
        memory_bytes=result["peak_memory_bytes"],
    )


def _with_costs(
    words: Sequence[str], measured: AccuracyTable, column: str, path: Path
) -> list[str]:
    """Write a table of the candidates' latencies, and name it and the mean cell's in the words."""
    fit_column(measured, column).table.save(path)
    mean = statistics.mean(measured.known(column).values())
    return [word.format(costs=path, reference=f"{mean:.4g}") for word in words]


def _in_order(measured: AccuracyTable, column: str) -> np.ndarray:
    """Return a column in the order in which the space counts its cells."""
    values = measured.column(column)
    return values[[measured.architectures[arch] for arch in NASBench201().strings()]]


def correlation(probabilities: Sequence[Sequence[float]], values: np.ndarray) -> float:
    """Return Spearman's correlation of what alphas and a table say of every cell.

    Args:
        probabilities: Of the candidates of each edge.
        values: Of every cell, the last edge's candidates in turn, then those of the one before.

    Example:
        >>> round(correlation([[0.9, 0.1], [0.6, 0.4]], np.array([4.0, 3.0, 2.0, 1.0])), 6)
        1.0
    """
    total = np.zeros(())
    for row in probabilities:
        total = np.add.outer(total, np.log(np.maximum(row, 1e-300)))
    return float(np.corrcoef(_ranks(total.ravel()), _ranks(values))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the place of each value from the smallest on; equals share their mean place."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all searches; write rows and page after each of them."""
    given = _options(arguments)
    kind = "epochs" if given.minutes is None else "minutes"
    shared = ["--data", given.data, "--table", given.table]
    for name in ("channels", "cells", "batch_size"):
        shared += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    measured, latencies = AccuracyTable.read(given.table), None
    if given.latency is not None:
        path, _, column = given.latency.rpartition(":")
        latencies = AccuracyTable.read(path), column
    methods = given.methods or _methods(kind, latencies is not None)
    threads = max(1, torch.get_num_threads() // given.jobs)

    def search(method: str, seed: int, epochs: int) -> Found:
        words = list(shared)
        if given.alpha_lr is not None and method != "random search":
            words += ["--alpha-lr", str(given.alpha_lr)]
        print(f"{method}, seed {seed}, {epochs} epochs", file=sys.stderr, flush=True)
        return run(method, seed, epochs, words, measured, latencies, threads)

    def length(method: str) -> int:
        return given.epochs or _epochs(given.minutes, search(method, 0, CALIBRATION))

    rows: list[Found] = []
    with ThreadPoolExecutor(given.jobs) as pool:
        lengths = dict(zip(methods, pool.map(length, methods), strict=True))
        searches = [
            pool.submit(search, method, seed, lengths[method])
            for seed in range(given.seeds)
            for method in methods
        ]
        try:
            for done in as_completed(searches):
                rows.append(done.result())
                content = _content(given, kind, rows, measured, threads)
                write_text(given.results, json.dumps(content, indent=1) + "\n")
                write_text(given.page, page(content))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print(page(content))
    return 0


def _methods(kind: str, has_latencies: bool) -> list[str]:
    return [m for m in STUDIES[kind] if has_latencies or COST not in METHODS[m]]


def _epochs(minutes: float, short: Found) -> int:
    """Return how many epochs a search makes in a time, after a short one like it."""
    return max(1, round(60 * minutes * short.epochs / short.seconds))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="search_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cifar10:FOLDER or cifar100:FOLDER")
    parser.add_argument("--table", required=True, help="accuracies of all 15,625 cells")
    parser.add_argument("--latency", help="latencies of all cells, FILE:COLUMN")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, help="length of every search")
    length.add_argument("--minutes", type=float, help="time of every search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=1, help="cells of a stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--alpha-lr", type=float, help="by default the paper's")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    for method in given.methods or ():
        if given.latency is None and COST in METHODS[method]:
            parser.error(f"--latency FILE:COLUMN must go with {method!r}")
    return given


def _content(
    given: argparse.Namespace,
    kind: str,
    rows: Sequence[Found],
    measured: AccuracyTable,
    threads: int,
) -> dict[str, Any]:
    """Return what the file holds: this study, and the other one as it is there."""
    columns = {split: rows[0].table[split]["column"] for split in ("valid", "test")}
    values = measured.column(columns["test"])
    order = {method: place for place, method in enumerate(METHODS)}
    studies = json.loads(given.results.read_text())["studies"] if given.results.exists() else {}
    studies[kind] = {
        "data": given.data.partition(":")[0],
        "sizes": {
            name: getattr(given, name)
            for name in (kind, "channels", "cells", "batch_size", "alpha_lr")
        },
        "columns": columns,
        "latency": given.latency and given.latency.rpartition(":")[2],
        "chance": {
            "best": float(values.max()),
            "mean": float(values.mean()),
            "deviation": float(values.std()),
        },
        "device": device_name(),
        "jobs": given.jobs,
        "threads": threads,
        "torch": torch.__version__,
        "commit": commit(),
        "rows": [
            dataclasses.asdict(row)
            for row in sorted(rows, key=lambda row: (order[row.method], row.seed))
        ],
    }
    return {"studies": studies}


if __name__ == "__main__":
    sys.exit(main())
