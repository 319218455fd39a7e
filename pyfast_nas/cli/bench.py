"""``pyfast-nas bench``: our kernels and supernets against plain PyTorch, on this machine."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pyfast_nas import _ext
from pyfast_nas.bench import WHAT, Settings, bench, read, stamp, write
from pyfast_nas.bench.record import device_name, file_name, on_gpu
from pyfast_nas.bench.rivals import PROVIDERS
from pyfast_nas.bench.summary import by_case, table
from pyfast_nas.bench.targets import figures
from pyfast_nas.cli.inputs import quoted_path
from pyfast_nas.errors import ConfigError

__all__ = ["Bench", "run"]

WIDTH = 140  # of a table that nobody's screen limits
LEGEND = (
    "saved: what autograd keeps for backward, held: what torch's allocator holds after the\n"
    "forward pass (MiB an image); peak: the allocator's, resident: of a fresh process above its\n"
    "idle state (MiB); error: of the outcome and of the worst gradient, against float64"
)
PROFILE_LEGEND = (
    "share: of the call while it is watched; GFLOP and MB: what the mathematics needs, whatever a\n"
    "kernel does, depthwise windows among it; of product, of copy: their speed over that of the\n"
    "ceilings below; bound by: the ceiling that is closer"
)
RIVALS = tuple(name for name, how in PROVIDERS.items() if how.is_rival)
QUICK = tuple(name for name in RIVALS if not PROVIDERS[name].optional)
COMPILED = tuple(
    name for name in RIVALS if PROVIDERS[name].compiles and not name.startswith("compile-whole")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Time operators, edges, cells, supernets or search steps against plain PyTorch.

    A profile says where the time of our supernets goes, and what bounds it.

    Every result is checked against float64 first: a provider that computes something else stops
    the benchmark.
    """

    what: Literal[(*WHAT, "all")] = "edge"
    """What to run: edges take seconds, operators, cells, supernets, profiles and steps minutes
    each."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run: the CPU, or the GPU that torch takes by default."""
    batch_size: int | None = None
    """Images in a batch; by default 16, on a GPU 64."""
    threads: int | None = None
    """Threads of torch; by default what torch takes."""
    seconds: float = 1.0
    """Time for each provider and mode."""
    rounds: int = 7
    """Rounds that are made even if they take longer."""
    rivals: tuple[Literal[RIVALS], ...] = QUICK
    """What is timed beside our own."""
    compile: bool = False
    """Add torch.compile of edges and cells, in both layouts."""
    compile_seconds: float = 600.0
    """Give up compiling one network after so long."""
    channels: int = 16
    """Channels of the first cells of the supernets."""
    cells: int = 8
    """Cells of the DARTS supernet."""
    blocks: int = 5
    """Cells a stage of the NAS-Bench-201 supernet."""
    memory: bool = True
    """Measure the resident memory of supernets, each provider in a fresh process."""
    output: Path | None = None
    """Result file to put the rows into, in place of those of the same cases; in a folder that
    exists, the file of this device."""
    json: bool = False
    """Print the rows as JSON on stdout, and progress on stderr."""

    def __post_init__(self) -> None:
        for option in ("batch_size", "channels", "cells", "blocks", "threads"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ConfigError(f"bench: --{_word(option)} must be at least 1, got {value}")
        for option in ("seconds", "compile_seconds"):
            value = getattr(self, option)
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"bench: --{_word(option)} must be a finite number greater than 0, got {value}"
                )
        if self.rounds < 2:
            raise ConfigError(f"bench: --rounds must be at least 2, got {self.rounds}")
        if self.channels % 2:
            raise ConfigError(f"bench: --channels must be even, got {self.channels}")


def run(options: Bench) -> int:
    """Run the benchmarks; return the exit code."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("bench: --device must be cpu where torch sees no GPU, got cuda")
    output = options.output
    if output is not None and output.is_dir():
        output = output / file_name(options.device)
    if output is not None and output.exists():
        read(output)  # what cannot be added to is refused before minutes are spent
    settings = Settings(
        device=options.device,
        batch_size=options.batch_size or (64 if options.device == "cuda" else 16),
        channels=options.channels,
        cells=options.cells,
        blocks=options.blocks,
        seconds=options.seconds,
        rounds=options.rounds,
        rivals=(*options.rivals, *(COMPILED if options.compile else ())),
        compile_seconds=options.compile_seconds,
        resident=options.memory,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    records: list[dict[str, Any]] = []
    try:
        console = _console()
        if not options.json:
            console.print(_head(options.device), highlight=False)
        for what in WHAT if options.what == "all" else (options.what,):
            for rows in bench(what, settings, _say):
                fresh = stamp(rows, options.device)
                records += fresh
                if output is not None:
                    write(fresh, output)
                if not options.json:
                    _show(console, fresh)
    finally:
        torch.set_num_threads(before)
    if options.json:
        print(json.dumps({"rows": records}))
        return 0
    operators = {row["operator"] for row in records}
    if operators - {"profile"}:
        print(LEGEND)
    if "profile" in operators:
        print(PROFILE_LEGEND)
    _show_targets(console, records)
    if output is not None:
        print(f"rows in {quoted_path(output)}")
    return 0


def _word(option: str) -> str:
    return option.replace("_", "-")


def _console() -> Console:
    """Write to stdout; into a file or a pipe at full width."""
    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=WIDTH)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _head(device: str) -> str:
    kernels = ", ".join(f"{name} {word}" for name, word in _ext.kernels_in_use(device).items())
    return (
        f"{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"kernels: {kernels}"
    )


def _show(console: Console, records: Sequence[dict[str, Any]]) -> None:
    for (operator, case, _dtype, _threads), rows in by_case(records).items():
        head, lines = table(rows)
        _draw(console, f"{operator}: {case}", head, lines)


def _show_targets(console: Console, records: Sequence[dict[str, Any]]) -> None:
    measured = [line for line in figures(records) if line[1]]
    if measured:
        head = ["", "figure", "must", "reach for", "verdict"]
        where = "a GPU" if on_gpu(records) else "two cores"
        _draw(console, f"targets of the project ({where})", head, measured)


def _draw(console: Console, title: str, head: Sequence[str], lines: Sequence[list[str]]) -> None:
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, word in enumerate(head):
        drawn.add_column(
            word, justify="right" if index else "left", no_wrap=bool(word) or not index
        )
    for line in lines:
        drawn.add_row(*line)
    console.print(drawn, highlight=False, markup=False)
