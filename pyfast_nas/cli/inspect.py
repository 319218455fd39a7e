"""``pyfast-nas inspect``: a genotype or a run in readable form; runs nothing, touches no GPU.

With ``--cost`` it shows what the candidates of a space cost instead; see `cli.costs`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from pyfast_nas.cli import costs, parsing
from pyfast_nas.cli.inputs import quoted_path, read_genotype, read_run
from pyfast_nas.engine.run_files import to_json
from pyfast_nas.spaces.base import Genotype
from pyfast_nas.viz.findings import examine
from pyfast_nas.viz.markup import printable
from pyfast_nas.viz.pareto import front_table, judged
from pyfast_nas.viz.run_folder import RunFolder
from pyfast_nas.viz.tables import standing
from pyfast_nas.viz.units import duration, memory, percent, share_of_one
from pyfast_nas.viz.words import describe

__all__ = ["Inspect", "parse", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show a genotype or a run in readable form; with --cost, what candidates of a space cost.

    Costs need no path: --cost latency --space darts. ``pyfast-nas inspect --cost latency --help``
    lists the options of that.
    """

    path: tyro.conf.Positional[Path]
    """Genotype file, or the folder of a run."""
    json: bool = False
    """Show it as JSON."""


def parse(arguments: Sequence[str]) -> Inspect | costs.Request:
    """Parse the words after ``inspect``.

    Raises:
        ConfigError: If they cannot be understood.

    Example:
        >>> parse(["runs/a"]).json, type(parse(["--cost", "parameters"])).__name__
        (False, 'Request')
    """
    if costs.is_asked_for(arguments):
        return costs.parse(arguments)
    parsed = parsing.parse(
        {"options": Inspect}, arguments, command="inspect", description=Inspect.__doc__
    )
    return parsed["options"]


def run(options: Inspect | costs.Request) -> int:
    """Show the content; return the exit code."""
    if isinstance(options, costs.Request):
        return costs.run(options)
    if options.path.is_dir():
        folder = read_run(options.path)
        print(to_json(_record(folder)) if options.json else _describe_run(folder))
    else:
        genotype = read_genotype(options.path)
        print(to_json(_genotype_record(genotype)) if options.json else _describe(genotype))
    return 0


def _genotype_record(genotype: Genotype) -> dict[str, Any]:
    return {"hash": genotype.hash, "genotype": genotype.to_dict()}


def _record(folder: RunFolder) -> dict[str, Any]:
    return {
        "config": folder.config,
        "last_epoch": folder.epochs[-1] if folder.epochs else None,
        "epochs": len(folder.epochs),
        "evaluation": folder.evaluation,
        "table": folder.table,
        "pareto": folder.pareto,
        "seconds": dict(folder.totals),
        "peak_memory_bytes": folder.peak_memory,
        "findings": [dataclasses.asdict(finding) for finding in examine(folder)],
        **(_genotype_record(folder.genotype) if folder.genotype is not None else {}),
    }


def _describe(genotype: Genotype) -> str:
    head = f"genotype {genotype.hash} of the {genotype.space} space"
    return f"{head}\n{describe(genotype)}"


def _describe_run(folder: RunFolder) -> str:
    lines = [f"run {quoted_path(folder.path)}"]
    for key in ("algorithm", "space", "data", "search"):
        record = folder.config.get(key, {})
        values = [f"{name}={_shown(value)}" for name, value in record.items() if name != "name"]
        name = f"{printable(record['name'], 60)}: " if "name" in record else ""
        lines.append(f"{key:<10} {name}{', '.join(values)}")
    if folder.epochs:
        last = folder.epochs[-1]
        figures = [
            f"{key} {percent(value) if 'accuracy' in key else share_of_one(value)}"
            for key, value in last.items()
            if isinstance(value, float)
        ]
        lines.append(f"{'epoch':<10} {last['epoch']}: {', '.join(figures)}")
    times = [f"{phase} {duration(seconds)}" for phase, seconds in folder.totals.items()]
    if folder.peak_memory:
        times.append(f"peak memory {memory(folder.peak_memory)}")
    if times:
        lines.append(f"{'time':<10} {', '.join(times)}")
    if folder.evaluation:
        lines.append(f"{'verdict':<10} {printable(folder.evaluation.get('sentence', ''))}")
    for split, text in standing(folder.table or {}).items():
        lines.append(f"{'table':<10} {split} {text}")
    if folder.pareto is not None:
        lines.append(f"{'pareto':<10} {judged(folder.pareto)}")
        lines += [f"{'':<10} {line}" for line in front_table(folder.pareto)]
    lines += [f"{finding.level:<10} {finding.text}" for finding in examine(folder)]
    if folder.genotype is not None:
        lines += ["", _describe(folder.genotype)]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return printable(value, 120)
