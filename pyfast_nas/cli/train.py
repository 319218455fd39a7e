"""``pyfast-nas train``: train the network of a genotype from scratch and test it."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from pyfast_nas.cli import parsing
from pyfast_nas.cli.inputs import free_folder, quoted_path, read_genotype, space_of
from pyfast_nas.cli.progress import open_display
from pyfast_nas.engine import TrainConfig, TrainResult, train
from pyfast_nas.engine.run_files import to_json
from pyfast_nas.errors import Error, GenotypeError
from pyfast_nas.spaces import ProxylessNAS
from pyfast_nas.viz.units import number, percent

__all__ = ["Train", "parse", "run"]

_HOME = "where a run found it, keep the file in the run's folder, whose config.json has the options"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train the network of a genotype from scratch on all training samples, and test it."""

    genotype: Path
    """Genotype file, or the folder of a run."""
    data: str = "digits"
    """What to train on: digits, toy, cifar10:FOLDER or cifar100:FOLDER."""
    config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """Options of the training."""
    json: bool = False
    """Print the result as JSON; progress goes to stderr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What to train, and on what."""

    genotype: tyro.conf.Positional[Path]
    """Genotype file, or the folder of a run."""
    data: str = "digits"
    """Data set: digits, toy, cifar10:FOLDER or cifar100:FOLDER; its name sets other defaults."""
    output: Path | None = None
    """Folder for network and metrics; by default the first free runs/DATA-train-NUMBER."""
    json: bool = False
    """Print the result as JSON on stdout, and progress on stderr."""


def parse(arguments: Sequence[str]) -> Train:
    """Parse the words after ``train``.

    Raises:
        ConfigError: If they cannot be understood.

    Example:
        >>> options = parse(["runs/a/genotype.json", "--epochs", "3"])
        >>> options.genotype.name, options.config.epochs, options.config.channels
        ('genotype.json', 3, 8)
    """
    data = parsing.chosen(arguments, "--data", "digits").partition(":")[0]
    parsed = _parsed(arguments, data, "darts")
    choice = parsed["main"]
    with contextlib.suppress(Error):  # what is wrong with the file is for the command to say
        space = read_genotype(choice.genotype).space
        if space != "darts":  # whose defaults are others
            parsed = _parsed(arguments, data, space)
    output = choice.output or free_folder(Path("runs"), f"{data}-train")
    values = {f.name: getattr(parsed["training"], f.name) for f in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**(values | {"output": str(output)}))
    return Train(genotype=choice.genotype, data=choice.data, config=config, json=choice.json)


def _parsed(arguments: Sequence[str], data: str, space: str) -> dict[str, Any]:
    config = parsing.group(
        TrainConfig().resolved(data, space_name=space),
        hidden=["output"],
        title="Size, length and regularisation.",
    )
    return parsing.parse(
        {"main": Choice, "training": config},
        arguments,
        command="train",
        description=Train.__doc__,
    )


def run(options: Train) -> int:
    """Train, test and show the result; return the exit code."""
    genotype = read_genotype(options.genotype)
    space = space_of(options.genotype, genotype)
    if space is None and genotype.space == ProxylessNAS.name:
        # Its widths stand in no genotype: another chain of as many blocks would be built unsaid.
        print(
            f"note: no config.json beside {quoted_path(options.genotype)}, so the chain has the "
            f"default widths; {_HOME}",
            file=sys.stderr,
        )
    with open_display(sys.stderr if options.json else sys.stdout) as display:
        try:
            result = train(
                genotype, options.data, space=space, config=options.config, progress=display
            )
        except GenotypeError as error:
            raise error if space is not None else GenotypeError(f"{error}; {_HOME}") from None
    if options.json:
        print(to_json(_record(result, options)))
    else:
        print(_summary(result, options))
    return 0


def _record(result: TrainResult, options: Train) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "parameters": result.parameters,
        "output": options.config.output,
        "paths": {name: str(path) for name, path in result.paths.items()},
    }


def _summary(result: TrainResult, options: Train) -> str:
    rows = [
        ("test accuracy", percent(result.accuracy, 2)),
        ("test loss", number(result.loss, 4)),
        ("parameters", f"{result.parameters:,}"),
    ]
    if options.config.output is not None:
        rows.append(("folder", quoted_path(options.config.output)))
    if network := result.paths.get("network.pt2"):
        rows.append(("network", quoted_path(network)))
        rows.append(("load it with", f"torch.export.load({str(network)!r}).module()"))
    return "\n".join(["", *(f"{label:<13} {text}" for label, text in rows)])
