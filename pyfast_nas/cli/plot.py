"""``pyfast-nas plot``: the cells of a genotype as SVG, DOT or Mermaid; a Pareto front as SVG."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from pyfast_nas.cli.inputs import quoted_path, read_genotype, read_run, writing
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces.text_files import write_text
from pyfast_nas.viz.graph import cell_svg
from pyfast_nas.viz.graph_text import to_dot, to_mermaid
from pyfast_nas.viz.markup import printable
from pyfast_nas.viz.pareto import pareto_svg

__all__ = ["Plot", "run"]

WRITERS = {"svg": cell_svg, "dot": to_dot, "mermaid": to_mermaid}
SUFFIXES = {".svg": "svg", ".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".mermaid": "mermaid"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw the cells of a genotype, or the accuracy of a run's architectures against their cost."""

    genotype: tyro.conf.Positional[Path]
    """Genotype file, or the folder of a run."""
    format: Literal["svg", "dot", "mermaid"] | None = None
    """What to write; by default what the ending of the output says, else svg."""
    cell: str | None = None
    """Which cell, for example normal; all of them if not given."""
    pareto: bool = False
    """Draw the Pareto front of the run in that folder instead; always as svg."""
    output: Path | None = None
    """File to write, its name extended by the cell where there are several; stdout without it."""


def run(options: Plot) -> int:
    """Write the pictures; return the exit code."""
    if options.pareto:
        return _plot_pareto(options)
    genotype = read_genotype(options.genotype)
    cells = list(genotype.cells) if options.cell is None else [options.cell]
    if unknown := set(cells) - set(genotype.cells):
        raise ConfigError(
            f"plot: --cell must be one of {', '.join(genotype.cells)}, got "
            f"{printable(unknown.pop(), 200)!r}"
        )
    write = WRITERS[_format(options)]
    if options.output is None:
        if len(cells) > 1:
            raise ConfigError(
                f"plot: one --cell must be chosen ({', '.join(cells)}) or an --output named, "
                f"since stdout takes one picture"
            )
        print(write(genotype, cells[0]), end="")
        return 0
    for cell in cells:
        path = options.output
        if len(cells) > 1:
            path = path.with_name(f"{path.stem}-{cell}{path.suffix}")
        _write(path, write(genotype, cell))
    return 0


def _format(options: Plot) -> str:
    """Return the format that is given, or that of the output's ending."""
    suffix = options.output.suffix.lower() if options.output is not None else ""
    if options.format is None and suffix not in ("", *SUFFIXES):
        raise ConfigError(
            f"plot: --output must end in {', '.join(SUFFIXES)}, got "
            f"{quoted_path(options.output)}; name another file, or the --format of what is in it"
        )
    return options.format or SUFFIXES.get(suffix, "svg")


def _write(path: Path, picture: str) -> None:
    with writing("plot", path):
        write_text(path, picture)
    print(f"wrote {quoted_path(path)}")


def _plot_pareto(options: Plot) -> int:
    if options.cell is not None or _format(options) != "svg":
        raise ConfigError(
            "plot: --pareto must go without --cell and --format dot or mermaid: it is an svg"
        )
    record = read_run(options.genotype).pareto
    if record is None:
        raise ConfigError(
            f"plot: --pareto must go with a run that ended in a Pareto front (search "
            f"--pareto-cost), got {quoted_path(options.genotype)} without a pareto.json"
        )
    if options.output is None:
        print(pareto_svg(record), end="")
        return 0
    _write(options.output, pareto_svg(record))
    return 0
