"""``pyfast-nas derive``: the genotype that the architecture parameters of an epoch stand for."""

import dataclasses
import math
from pathlib import Path

import torch
import tyro

from pyfast_nas.cli.inputs import quoted_path, read_run, writing
from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.spaces.base import Genotype
from pyfast_nas.viz.run_folder import RunFolder
from pyfast_nas.viz.words import describe

__all__ = ["Derive", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derive:
    """Take the genotype from the architecture parameters that a run recorded."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run."""
    epoch: int | None = None
    """Epoch after which to derive, 0 for the random start; by default that of the result."""
    output: Path | None = None
    """File for the genotype; without it the genotype is shown."""
    json: bool = False
    """Show the genotype as JSON."""


def run(options: Derive) -> int:
    """Derive and show or write the genotype; return the exit code."""
    genotype = _derive(read_run(options.folder), options.epoch)
    if options.output is not None:
        with writing("derive", options.output):
            genotype.save(options.output)
    if options.json:
        print(genotype.to_json(), end="")
    elif options.output is None:
        print(describe(genotype))
    else:
        print(f"wrote {quoted_path(options.output)}")
    return 0


def _derive(folder: RunFolder, epoch: int | None) -> Genotype:
    where = quoted_path(folder.path)
    if not folder.alphas or folder.space is None:
        raise DataError(f"derive: {where} must hold architecture parameters of a known space")
    if folder.config.get("algorithm", {}).get("name") == "random":
        raise ConfigError(
            f"derive: {where} is a random search, whose architecture parameters never move; what "
            "it found stands in its genotype.json"
        )
    lines = {line["epoch"]: line["alphas"] for line in folder.alphas}
    of_result = folder.epoch if folder.epoch in lines else max(lines)
    wanted = of_result if epoch is None else epoch
    if wanted not in lines:
        raise ConfigError(
            f"derive: --epoch must be from {min(lines)} to {max(lines)}, got {wanted}"
        )
    alphas = {
        # A missing candidate of a short row is null in the file.
        table: torch.tensor([[-math.inf if x is None else x for x in row] for row in rows])
        for table, rows in lines[wanted].items()
    }
    return folder.space.derive(alphas)
