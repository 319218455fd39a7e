"""Reading the folder of a run back: plain records, nothing computed, nothing changed."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pyfast_nas.errors import DataError
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.spaces import SPACES
from pyfast_nas.spaces.base import Genotype, SearchSpace
from pyfast_nas.viz import shapes
from pyfast_nas.viz.markup import printable

__all__ = ["RunFolder"]

LARGEST_FILE = 1 << 30  # bytes; ten thousand epochs of a large space stay far below

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The files of one search, as they stand.

    Files that a run may lack (``evaluation.json`` of a search without comparison, everything but
    the configuration of one that was ended early) are empty here; a last line that was cut off
    in the middle is left out.

    Attributes:
        path: The folder.
        config: What was searched and how.
        steps: Metrics of the logging intervals.
        epochs: Metrics of the epochs.
        alphas: Logits per table, at the start and after each epoch.
        timing: Seconds, rates and bytes per epoch.
        totals: Seconds per phase.
        genotype: The result, if there is one.
        epoch: Epoch whose architecture it is: a search may end with an earlier one than its last.
        evaluation: Comparison with random architectures, if there is one.
        warnings: What the search itself found amiss.
        table: Where the result stands in a table of measured architectures, if it was looked up.
        pareto: Architectures held against their cost, if there was one.
    """

    path: Path
    config: Record
    steps: Sequence[Record] = ()
    epochs: Sequence[Record] = ()
    alphas: Sequence[Record] = ()
    timing: Sequence[Record] = ()
    totals: Mapping[str, float] = field(default_factory=dict)
    genotype: Genotype | None = None
    epoch: int | None = None
    evaluation: Record | None = None
    warnings: Sequence[str] = ()
    table: Record | None = None
    pareto: Record | None = None

    @classmethod
    def read(cls, path: Path | str) -> "RunFolder":
        """Read a run folder.

        Raises:
            FileNotFoundError: If there is no such folder.
            DataError: If it is no run folder, or a file of it cannot be understood.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"run: {printable(path)} must be the folder of a run")
        if not (path / "config.json").is_file():
            raise DataError(f"run: {printable(path)} must hold a config.json: not a run folder")
        genotype, evaluation = path / "genotype.json", path / "evaluation.json"
        result, pareto = path / "result.json", path / "pareto.json"
        result = _read_json(result, shapes.RESULT) if result.is_file() else {}
        alphas = _latest(
            _read_lines(path / "alphas.jsonl", shapes.ALPHAS, ("epoch", "alphas")), "epoch"
        )
        _require_same_tables(alphas, printable(path / "alphas.jsonl"))
        metrics = _read_lines(path / "metrics.jsonl", shapes.METRICS, ("kind", "epoch"))
        timing = _read_lines(path / "timing.jsonl", shapes.TIMING, ("kind",))
        run = cls(
            path=path,
            config=_read_json(path / "config.json", shapes.CONFIG),
            steps=_latest([line for line in metrics if line["kind"] == "step"], "step"),
            epochs=_latest([line for line in metrics if line["kind"] == "epoch"], "epoch"),
            alphas=alphas,
            timing=_latest([line for line in timing if line["kind"] == "epoch"], "epoch"),
            totals={
                str(line.get("phase", "search")): line["seconds"]
                for line in timing
                if line["kind"] == "total" and _is_number(line.get("seconds"))
            },
            genotype=Genotype.load(genotype) if genotype.is_file() else None,
            epoch=result.get("epoch"),
            evaluation=_read_json(evaluation, shapes.EVALUATION) if evaluation.is_file() else None,
            warnings=result.get("warnings", ()),
            table=shapes.whole_table(result.get("table"), printable(path / "result.json")),
            pareto=shapes.whole_pareto(
                _read_json(pareto, shapes.PARETO) if pareto.is_file() else None, printable(pareto)
            ),
        )
        _require_tables_of_space(run)
        return run

    @cached_property
    def space(self) -> SearchSpace | None:
        """The search space of the run, or ``None`` where its description is not one of ours."""
        options = dict(self.config.get("space", {}))
        build = SPACES.get(options.pop("name", ""))
        # The rows of a cell grow with the square of its nodes: a file must not ask for gigabytes.
        if build is None or not all(_is_small(options.get(key)) for key in ("nodes", "cells")):
            return None
        try:
            return build(**{key: _frozen(value) for key, value in options.items()})
        except (TypeError, ValueError):
            return None

    def series(self, key: str) -> list[tuple[float, float]]:
        """Points ``(epoch, value)`` of an epoch metric, where it was written.

        Example:
            >>> run = RunFolder(path=Path("."), config={}, epochs=[{"epoch": 1, "entropy": 0.9}])
            >>> run.series("entropy")
            [(1, 0.9)]
        """
        return [
            (line["epoch"], line[key])
            for line in self.epochs
            if _is_number(line.get(key)) and _is_number(line.get("epoch"))
        ]

    def in_the_end(self, key: str) -> float | None:
        """Value of an epoch metric at the epoch of the result; the last one where none says so.

        Example:
            >>> lines = [{"epoch": 1, "entropy": 0.9}, {"epoch": 2, "entropy": 0.8}]
            >>> RunFolder(path=Path("."), config={}, epochs=lines, epoch=1).in_the_end("entropy")
            0.9
        """
        points = self.series(key)
        return dict(points).get(self.epoch, points[-1][1]) if points else None

    def final_probabilities(self, table: str) -> tuple[int, list[list[float]]]:
        """Epoch of the result, or the last one, and the row-wise softmax of its logits.

        Example:
            >>> lines = [{"epoch": epoch, "alphas": {"cell": [[0.0, 0.0]]}} for epoch in range(3)]
            >>> run = RunFolder(path=Path("."), config={}, alphas=lines, epoch=1)
            >>> run.final_probabilities("cell")
            (1, [[0.5, 0.5]])
        """
        history = dict(self.probabilities(table))
        epoch = self.epoch if self.epoch in history else max(history)
        return epoch, history[epoch]

    def probabilities(self, table: str) -> list[tuple[int, list[list[float]]]]:
        """Row-wise softmax of a table's logits at each recorded epoch.

        Example:
            >>> line = {"epoch": 0, "alphas": {"cell": [[0.0, 0.0]]}}
            >>> run = RunFolder(path=Path("."), config={}, alphas=[line])
            >>> run.probabilities("cell")
            [(0, [[0.5, 0.5]])]
        """
        names = self.candidates(table)
        return [
            (
                line["epoch"],
                [
                    _softmax(row[: len(ops)])
                    for row, ops in zip(line["alphas"][table], names, strict=False)
                ],
            )
            for line in self.alphas
            if table in line["alphas"]
        ]

    def candidates(self, table: str) -> list[tuple[str, ...]]:
        """Candidate names of each row of a table; numbered ones where the space is unknown.

        Example:
            >>> line = {"epoch": 0, "alphas": {"cell": [[0.0, 0.0]]}}
            >>> run = RunFolder(path=Path("."), config={}, alphas=[line])
            >>> run.candidates("cell")
            [('op 0', 'op 1')]
        """
        known = self.space.candidates.get(table) if self.space is not None else None
        rows = self.alphas[-1]["alphas"].get(table, []) if self.alphas else []
        if known is not None and len(known) == len(rows):
            return [tuple(names) for names in known]
        return [tuple(f"op {number}" for number in range(len(row))) for row in rows]

    def edges(self, table: str) -> list[tuple[int, int] | None]:
        """Source and target of each row of a table, ``None`` where the files do not tell.

        Example:
            >>> line = {"epoch": 0, "alphas": {"normal": [[0.0]] * 5}}
            >>> run = RunFolder(path=Path("."), config={}, alphas=[line])
            >>> run.edges("normal")
            [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
        """
        rows = len(self.candidates(table))
        kept = self.genotype.cells.get(table, ()) if self.genotype is not None else ()
        if kept and len(kept) == rows:  # nothing was dropped, so the rows are the kept edges
            return [(edge.source, edge.target) for edge in kept]
        for nodes in range(1, rows + 1):
            if nodes * (nodes + 3) // 2 == rows:
                return list(edge_list(nodes))
        return [None] * rows

    @property
    def peak_memory(self) -> int:
        """Largest number of bytes any epoch recorded; 0 where none did."""
        return max((line.get("memory_bytes") or 0 for line in self.timing), default=0)

    @property
    def tables(self) -> list[str]:
        """Names of the tables of architecture parameters, in the order of the file."""
        return list(self.alphas[-1]["alphas"]) if self.alphas else []


def _require_same_tables(alphas: Sequence[Record], where: str) -> None:
    """Refuse logits whose tables change in size from line to line."""
    sizes = [
        {table: [len(row) for row in rows] for table, rows in line["alphas"].items()}
        for line in alphas
    ]
    if any(size != sizes[0] for size in sizes) or not all(
        rows and all(rows) for size in sizes for rows in size.values()
    ):
        raise DataError(f"run: {where} must hold the same tables in every line")


def _require_tables_of_space(run: RunFolder) -> None:
    """Refuse logits that are not those of the space in the configuration, if we know it."""
    if run.space is None or not run.alphas:
        return
    wanted = {
        table: [max(map(len, rows))] * len(rows) for table, rows in run.space.candidates.items()
    }
    found = {table: [len(row) for row in rows] for table, rows in run.alphas[0]["alphas"].items()}
    for table in sorted(wanted.keys() | found.keys()):
        if found.get(table) != wanted.get(table):
            raise DataError(
                f"run: {printable(run.path / 'alphas.jsonl')} must hold the tables of the space in "
                f"config.json ({', '.join(f'{t} {_size(rows)}' for t, rows in wanted.items())}), "
                f"got {printable(table, 60)} {_size(found.get(table, []))}"
            )


def _size(lengths: Sequence[int]) -> str:
    if not lengths:
        return "of no row"
    least, most = min(lengths), max(lengths)
    return f"{len(lengths)} x {most if least == most else f'{least} to {most}'}"


def _softmax(row: Sequence[float | None]) -> list[float]:
    # A padded candidate is written as null (JSON has no infinity): it is never chosen.
    logits = [-math.inf if value is None else float(value) for value in row]
    top = max(logits, default=0.0)
    if not math.isfinite(top):
        return [math.nan] * len(logits)
    powers = [math.exp(value - top) for value in logits]
    return [power / sum(powers) for power in powers]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value


def _is_small(value: object) -> bool:
    return not isinstance(value, int) or abs(value) <= 1000


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_text(path: Path) -> str:
    if path.stat().st_size > LARGEST_FILE:
        raise DataError(f"run: {printable(path)} must be smaller than {LARGEST_FILE} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"run: {printable(path)} must be UTF-8 text") from None


def _parse(text: str, shape: Mapping[str, Any], where: str) -> Record:
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"run: {where} must be JSON: {printable(error, 120)}") from None
    shapes.require(record, shape, where)
    return record


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _read_json(path: Path, shape: Mapping[str, Any]) -> Record:
    return _parse(_read_text(path), shape, printable(path))


def _read_lines(path: Path, shape: Mapping[str, Any], needed: Sequence[str]) -> list[Record]:
    if not path.is_file():
        return []
    records = []
    # Every whole line ends in a newline, so what stands behind the last one was cut off.
    for number, line in enumerate(_read_text(path).split("\n")[:-1], start=1):
        if line.strip():
            where = f"line {number} of {printable(path)}"
            records.append(_parse(line, shape, where))
            if missing := [key for key in needed if key not in records[-1]]:
                raise DataError(f"run: {where} must have {missing[0]}")
    return records


def _latest(lines: Sequence[Record], key: str) -> list[Record]:
    """Lines in order of ``key``: of a search that went back and on again those written last."""
    kept: list[Record] = []
    for line in lines:
        while kept and _is_number(line.get(key)) and _is_number(kept[-1].get(key)):
            if kept[-1][key] < line[key]:
                break
            kept.pop()
        kept.append(line)
    return kept
