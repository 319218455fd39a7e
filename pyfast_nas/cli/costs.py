"""``pyfast-nas inspect --cost``: what the candidates of a space cost, shown or written."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pyfast_nas.cli import parsing
from pyfast_nas.cli.inputs import check_output, quoted_path, writing
from pyfast_nas.costs import CostTable, Fit, count, extremes, fit_column, measure_latency
from pyfast_nas.costs.counting import UNITS
from pyfast_nas.engine.config import run_device
from pyfast_nas.engine.run_files import to_json
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces import SPACES, AccuracyTable, Genotype, NASBench201, SearchSpace
from pyfast_nas.spaces.choices import places_of
from pyfast_nas.viz.markup import printable
from pyfast_nas.viz.units import number

__all__ = ["Costs", "is_asked_for", "parse", "run"]

LATENCY = "latency"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Show what the candidates of a space cost, and what its cheapest and costliest networks do."""

    cost: str = "parameters"
    """What counts: latency (measured on this machine), parameters, multiply-adds, operations,
    memory-access, FILE of a table of costs, or FILE:COLUMN with costs of NAS-Bench-201 cells."""
    space: Literal[tuple(SPACES)] = "darts"
    """Search space; its options set the sizes of the supernet."""
    output: Path | None = None
    """File for the table, which the option cost of a search takes."""
    json: bool = False
    """Show it as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """How a latency is measured."""

    batch_size: int = 24
    """Images of a batch, all of which the milliseconds are for."""
    device: str = "auto"
    """Where: auto, cpu, cuda or cuda:NUMBER."""
    repeats: int = 10
    """Timed calls, whose median counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What `parse` understood; ``latency`` is None where nothing is measured."""

    main: Costs
    space: SearchSpace
    latency: Latency | None


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Say whether the words after ``inspect`` are about costs.

    Example:
        >>> is_asked_for(["--cost=latency"]), is_asked_for(["runs/a", "--json"])
        (True, False)
    """
    return any(word.partition("=")[0] in ("--cost", "--space") for word in arguments)


def parse(arguments: Sequence[str]) -> Request:
    """Parse the words after ``inspect`` that are about costs.

    Raises:
        ConfigError: If they cannot be understood, or an option is not one of this choice.

    Example:
        >>> request = parse(["--cost", "parameters", "--space", "darts", "--cells", "4"])
        >>> request.space.cells, request.latency
        (4, None)
    """
    space = parsing.chosen(arguments, "--space", "darts")
    measured = parsing.chosen(arguments, "--cost", "") == LATENCY
    groups: dict[str, Any] = {"main": Costs}
    if measured:
        groups["latency"] = Latency
    kind = SPACES.get(space)
    if kind is not None and dataclasses.fields(kind):
        groups["space"] = parsing.group(kind(), title=f"Options of the {space} space.")
    foreign = (
        {}
        if measured
        else dict.fromkeys(parsing.option_names(Latency), "goes with --cost latency only")
    )
    parsed = parsing.parse(
        groups, arguments, command="inspect", description=Costs.__doc__, foreign=foreign
    )
    return Request(
        main=parsed["main"],
        space=parsed["space"] if "space" in parsed else kind(),
        latency=parsed.get("latency"),
    )


def run(request: Request) -> int:
    """Find the costs, show and write them; return the exit code."""
    options, space = request.main, request.space
    if options.output is not None:
        check_output("inspect", options.output)
    table, fit = _find(request)
    if options.output is not None:
        with writing("inspect", options.output):
            table.save(options.output)
    ends = extremes(table, space)
    if options.json:
        print(to_json(_record(table, space, ends, fit)))
        return 0
    print("\n".join(_lines(table, request, ends, fit)))
    if options.output is not None:
        print(f"wrote {quoted_path(options.output)}")
    return 0


def _find(request: Request) -> tuple[CostTable, Fit | None]:
    cost, space = request.main.cost, request.space
    if request.latency is not None:
        if request.latency.batch_size < 1:
            raise ConfigError(
                f"inspect: --batch-size must be at least 1, got {request.latency.batch_size}"
            )
        if request.latency.repeats < 1:
            raise ConfigError(
                f"inspect: --repeats must be an integer from 1, got {request.latency.repeats}"
            )
        device = run_device(request.latency.device)
        shape = (request.latency.batch_size, *_image(space))
        net = space.supernet().to(device)
        return measure_latency(net, shape, repeats=request.latency.repeats), None
    if cost in UNITS:
        return count(space.supernet(), (1, *_image(space)))[cost], None
    if os.path.isfile(cost):
        table = CostTable.load(cost)
        table.check(space.candidates, "inspect: --cost", cost)
        return table, None
    path, colon, column = cost.rpartition(":")
    if not colon:
        known = [LATENCY, *UNITS]
        is_file = os.path.basename(cost) != cost or "." in cost
        near = ": no such file" if is_file else parsing.did_you_mean(cost, known)
        raise ConfigError(
            f"inspect: --cost must be one of {', '.join(known)}, FILE or FILE:COLUMN, got "
            f"{printable(cost, 200)!r}{near}"
        )
    if not isinstance(space, NASBench201):
        raise ConfigError(
            f"inspect: --space must be {NASBench201.name} where --cost names a column, "
            f"got {space.name}"
        )
    fit = fit_column(AccuracyTable.read(path, set(space.strings())), column)
    return fit.table, fit


def _image(space: SearchSpace) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a space is for."""
    if not hasattr(space, "image_size"):
        raise ConfigError(
            f"inspect: --space must be one of images where costs are counted or measured, "
            f"got {space.name}"
        )
    size = space.image_size
    return (space.in_channels, *(size if isinstance(size, tuple) else (size, size)))


def _record(
    table: CostTable, space: SearchSpace, ends: Sequence[Genotype], fit: Fit | None
) -> dict[str, Any]:
    return {
        "table": table.to_dict(),
        "space": space.to_config(),
        "candidates": dict(space.candidates),
        "edges": places_of(ends[0], space.candidates),
        **{
            word: {"cost": table.of(end, space.candidates), "genotype": end.to_dict()}
            for word, end in zip(("cheapest", "costliest"), ends, strict=True)
        },
        "fit": fit and {key: value for key, value in fit._asdict().items() if key != "table"},
    }


def _lines(
    table: CostTable, request: Request, ends: Sequence[Genotype], fit: Fit | None
) -> Iterator[str]:
    space = request.space
    sizes = ", ".join(
        f"{k}={printable(v, 60)}" for k, v in space.to_config().items() if k != "name"
    )
    yield f"{'space':<10} {space.name}{sizes and ': '}{sizes}"
    about = f" ({printable(table.about, 200)})" if table.about else ""
    yield f"{'unit':<10} {printable(table.unit, 60)}{about}"
    if fit is not None:
        yield (
            f"{'fit':<10} {fit.networks:,} cells, {number(100 * fit.r2, 2)} % of the variance; "
            f"error {_shown(fit.mean_error)} in the mean, {_shown(fit.largest_error)} at most"
        )
    yield f"{'fixed':<10} {_shown(table.fixed)}"
    places = places_of(ends[0], space.candidates)
    for name, rows in space.candidates.items():
        costs = zip(places[name], rows, table.rows[name].tolist(), strict=True)
        for names, group in itertools.groupby(costs, key=lambda row: row[1]):
            widths = [max(9, len(candidate)) for candidate in names]
            yield ""
            yield f"{name:<10}" + _columns(names, widths)
            for (source, target), _, values in group:
                values = values[: len(names)]
                yield f"{source:>3} to {target:<3}" + _columns(map(_shown, values), widths)
    yield ""
    for word, end in zip(("cheapest", "costliest"), ends, strict=True):
        yield f"{word:<10} {_shown(table.of(end, space.candidates))}  (genotype {end.hash})"


def _columns(texts, widths: Sequence[int]) -> str:
    return "".join(f" {text:>{width}}" for text, width in zip(texts, widths, strict=True))


def _shown(value: float) -> str:
    """Write a cost: counts in full, times with four digits that count.

    Example:
        >>> _shown(3932160.0), _shown(0.0123456), _shown(0.0)
        ('3,932,160', '0.01235', '0')
    """
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"
