"""``pyfast-nas report``: the page and the pictures of a run, written once more."""

import dataclasses
from pathlib import Path

import tyro

from pyfast_nas.cli.inputs import quoted_path, read_run
from pyfast_nas.viz.report import write_report

__all__ = ["Report", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html, the pictures of the cells and that of the front from a run's files."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run."""


def run(options: Report) -> int:
    """Write the page; return the exit code."""
    read_run(options.folder)  # what cannot be read is bad input, what cannot be written is not
    print(f"wrote {quoted_path(write_report(options.folder))}")
    return 0
