"""``pyfast-nas search``: find an architecture, hold it against random ones, say how it went."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pyfast_nas.algorithms import ALGORITHMS, SearchAlgorithm
from pyfast_nas.cli import parsing
from pyfast_nas.cli.inputs import free_folder, quoted_path, read_run
from pyfast_nas.cli.progress import open_display
from pyfast_nas.engine import SearchConfig, SearchResult, preset, preset_algorithm, search
from pyfast_nas.engine.run_files import to_json
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces import SPACES, SearchSpace
from pyfast_nas.viz.markup import printable
from pyfast_nas.viz.pareto import front_table, judged
from pyfast_nas.viz.run_folder import RunFolder
from pyfast_nas.viz.tables import standing
from pyfast_nas.viz.units import duration, memory, percent
from pyfast_nas.viz.words import describe

__all__ = ["Search", "parse", "run"]

# What a space takes from the data set, so that it is no option.
FROM_DATA = ("in_channels", "num_classes", "image_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Search an architecture, then train it and random ones alike and compare."""

    algorithm: SearchAlgorithm
    """How to search."""
    space: SearchSpace
    """Where to search."""
    data: str = "digits"
    """What to search on: digits, toy, cifar10:FOLDER or cifar100:FOLDER."""
    config: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """Options of the search."""
    json: bool = False
    """Print the result as JSON; progress goes to stderr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What to search with; the groups below follow this choice."""

    algorithm: Literal[tuple(ALGORITHMS)] = "darts"
    """Search algorithm."""
    space: Literal[tuple(SPACES)] = "darts"
    """Search space."""
    data: str = "digits"
    """Data set: digits, toy, cifar10:FOLDER or cifar100:FOLDER; its name sets other defaults."""
    output: Path | None = None
    """Folder for the files of the run; by default the first free runs/DATA-ALGORITHM-NUMBER."""
    json: bool = False
    """Print the result as JSON on stdout, and progress on stderr."""


def parse(arguments: Sequence[str]) -> Search:
    """Parse the words after ``search``.

    Raises:
        ConfigError: If they cannot be understood, or an option is not one of this choice.

    Example:
        >>> options = parse(["--algorithm", "msg-das", "--paths", "3", "--cells", "4"])
        >>> options.algorithm.paths, options.space.cells, options.config.epochs
        (3, 4, 10)
    """
    name = _known(arguments, "--algorithm", ALGORITHMS)
    space = _known(arguments, "--space", SPACES)
    data = parsing.chosen(arguments, "--data", "digits").partition(":")[0]
    sizes = preset(data, space_name=space)
    kind = SPACES[space]
    hidden = [field.name for field in dataclasses.fields(kind) if field.name in FROM_DATA]
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {
        key: getattr(sizes, key)
        for key in ("channels", "cells")
        if key in fields and getattr(sizes, key) is not None
    } | dict(sizes.space_options)
    groups: dict[str, Any] = {
        "main": parsing.group(
            Choice(),
            title="Everything below has the default of this algorithm, space and data set.",
        ),
        "search": parsing.group(
            SearchConfig().resolved(data, space_name=space),
            hidden=["output"],
            title="Length, comparison and files.",
        ),
        "algorithm": parsing.group(preset_algorithm(name, data), title=f"Options of {name}."),
    }
    if set(fields) - set(hidden):
        groups["space"] = parsing.group(
            kind(**given), hidden=hidden, title=f"Options of the {space} space."
        )
    parsed = parsing.parse(
        groups,
        arguments,
        command="search",
        description=Search.__doc__,
        foreign=_foreign(name, space),
    )
    choice = parsed["main"]
    output = choice.output or free_folder(Path("runs"), f"{data}-{name}")
    try:
        return Search(
            algorithm=_plain(ALGORITHMS[name], parsed["algorithm"]),
            space=_plain(kind, parsed["space"]) if "space" in parsed else kind(),
            data=choice.data,
            config=_plain(SearchConfig, parsed["search"], output=str(output)),
            json=choice.json,
        )
    except ConfigError as error:
        kinds = ALGORITHMS[name], kind, SearchConfig
        raise ConfigError(parsing.as_options(str(error), kinds, hidden=FROM_DATA)) from None


def run(options: Search) -> int:
    """Search, write the report and show the result; return the exit code."""
    stream = sys.stderr if options.json else sys.stdout
    with open_display(stream) as display:
        try:
            result = search(
                options.space,
                options.data,
                algorithm=options.algorithm,
                config=options.config,
                progress=display,
            )
        except ConfigError as error:
            kinds = type(options.algorithm), type(options.space), SearchConfig
            raise ConfigError(parsing.as_options(str(error), kinds, hidden=FROM_DATA)) from None
    page = _write_report(result)
    folder = read_run(result.output) if result.output is not None else None
    if options.json:
        print(to_json(_record(result, folder, page)))
    else:
        print(_summary(result, folder, page, options))
    return 0


def _known(arguments: Sequence[str], option: str, names: dict[str, Any]) -> str:
    value = parsing.chosen(arguments, option, "darts")
    if value not in names:
        raise ConfigError(
            f"search: {option} must be one of {', '.join(names)}, got "
            f"{printable(value, 200)!r}{parsing.did_you_mean(value, list(names))}"
        )
    return value


def _foreign(algorithm: str, space: str) -> dict[str, str]:
    """Options of the algorithms and spaces that were not chosen, and whose they are."""
    found: dict[str, dict[str, list[str]]] = {}
    chosen = {"algorithm": (ALGORITHMS, algorithm), "space": (SPACES, space)}
    for what, (kinds, mine) in chosen.items():
        for name, kind in kinds.items():
            for option in parsing.option_names(kind, hidden=FROM_DATA) if name != mine else ():
                found.setdefault(option, {}).setdefault(what, []).append(repr(name))
    return {
        option: "belongs to "
        + " and ".join(
            f"the {what} {', '.join(names)}, not to {chosen[what][1]!r}"
            for what, names in whose.items()
        )
        for option, whose in found.items()
    }


def _plain(kind: type, parsed: Any, **changes: Any) -> Any:
    """Turn an instance of a group's subclass into the class that the engine knows."""
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)}
    return kind(**(values | changes))


def _write_report(result: SearchResult) -> Path | None:
    """Write page and pictures; a search is not lost because its picture could not be drawn."""
    import logging

    try:
        return result.report()
    except OSError as error:
        logging.getLogger("pyfast_nas").warning("search: no report was written: %s", error)
        return None


def _pictures(result: SearchResult) -> list[Path]:
    names = [*result.genotype.cells, *(["pareto"] if result.pareto is not None else [])]
    paths = [result.output / f"{name}.svg" for name in names]
    return [path for path in paths if path.is_file()]


def _record(result: SearchResult, folder: RunFolder | None, page: Path | None) -> dict[str, Any]:
    return {
        "genotype": result.genotype.to_dict(),
        "trained": result.trained,
        "evaluation": result.evaluation,
        "table": result.table,
        "pareto": result.pareto,
        "warnings": list(result.warnings),
        "last_epoch": result.history[-1] if result.history else None,
        "seconds": dict(folder.totals) if folder else {},
        "peak_memory_bytes": folder.peak_memory if folder else None,
        "output": str(result.output) if result.output else None,
        "report": str(page) if page else None,
        "pictures": [str(path) for path in _pictures(result)] if folder else [],
    }


def _summary(
    result: SearchResult, folder: RunFolder | None, page: Path | None, options: Search
) -> str:
    lines = ["", f"architecture  {result.genotype.hash}"]
    lines += [f"  {line}" for line in describe(result.genotype).splitlines()]
    lines.append("")
    rows: list[tuple[str, str]] = []
    if result.evaluation:
        for key, label in (("searched", "found"), ("random", "random")):
            accuracies = [entry["accuracy"] for entry in result.evaluation[key]]
            rows.append((label, " ".join(percent(value, 2) for value in accuracies)))
        rows.append(("verdict", result.evaluation["sentence"]))
    if result.table:
        rows += [(f"table {split}", text) for split, text in standing(result.table).items()]
    if result.pareto:
        rows.append(("pareto", judged(result.pareto)))
        rows += [("", line) for line in front_table(result.pareto)]
    rows += [("warning", warning) for warning in result.warnings]
    if folder is not None:
        if folder.peak_memory:
            rows.append(("peak memory", f"{memory(folder.peak_memory)} in the search"))
        times = [f"{phase} {duration(seconds)}" for phase, seconds in folder.totals.items()]
        rows.append(("time", ", ".join(times)))
        rows.append(("folder", quoted_path(result.output)))
        rows += [("picture", quoted_path(path)) for path in _pictures(result)]
        if page is not None:
            rows.append(("report", quoted_path(page)))
        target = result.output / "final"
        rows.append(
            (
                "next",
                f"pyfast-nas train {quoted_path(result.output / 'genotype.json')} "
                f"--data {quoted_path(options.data)} --output {quoted_path(target)}",
            )
        )
    lines += [f"{label:<13} {printable(text)}" for label, text in rows]
    return "\n".join(lines)
