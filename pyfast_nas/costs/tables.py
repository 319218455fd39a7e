"""Tables of costs from benchmarks that measured every network of NAS-Bench-201.

A benchmark such as HW-NAS-Bench knows the cost of each discrete cell; a search needs one for
mixtures too, and takes the nearest sum of costs of single candidates. How near that is, the fit
says. The exact cost of a cell stays with `spaces.AccuracyTable.lookup`.
"""

import dataclasses
from typing import NamedTuple

import torch

from pyfast_nas.costs.table import CostTable
from pyfast_nas.spaces.choices import choices_of
from pyfast_nas.spaces.nas_bench_201 import NASBench201
from pyfast_nas.spaces.tables import AccuracyTable

__all__ = ["Fit", "fit_column"]

UNITS = {"_latency": "ms", "_energy": "mJ"}  # of HW-NAS-Bench, by the end of a column's name


class Fit(NamedTuple):
    """A table, and how near it is to the networks that it was fitted to.

    Attributes:
        table: Cost of every candidate; ``none`` costs nothing.
        networks: How many had a value.
        r2: Share of the variance of the values that it explains, 1 where they are all the same.
        mean_error: Mean of the absolute errors, in the unit of the table.
        largest_error: The largest of them.
    """

    table: CostTable
    networks: int
    r2: float
    mean_error: float
    largest_error: float


def fit_column(
    measured: AccuracyTable, column: str, *, unit: str | None = None, ridge: float = 1e-6
) -> Fit:
    """Fit costs of candidates to a column of costs of whole cells.

    Cells without a value are left out, such as those that do not run on a device.

    Args:
        measured: A table of NAS-Bench-201; those of HW-NAS-Bench are in ms and mJ.
        column: For example ``"c10_edgegpu_latency"``.
        unit: Unit of the column; by default what its name says, and without that the name.
        ridge: As in `CostTable.fit`; it only has to settle what the data leaves open.

    Raises:
        DataError: If the column is missing, holds no number or something else.
        GenotypeError: If an architecture is not one of NAS-Bench-201.

    Example:
        >>> rows = {"|none~0|+|none~0|none~1|+|none~0|none~1|none~2|": "1",
        ...         "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|": "1.5"}
        >>> measured = AccuracyTable("here", {"arch": [*rows], "gpu_latency": [*rows.values()]})
        >>> fit = fit_column(measured, "gpu_latency")
        >>> fit.table.unit, round(float(fit.table.rows["cell"][5, 1]), 3), fit.networks
        ('ms', 0.5, 2)

    References:
        Li et al., "HW-NAS-Bench", ICLR 2021; the form of the fit: Vahdat et al., "UNAS", CVPR 2020.
    """
    space = NASBench201()
    values = measured.known(column)
    targets = torch.tensor(list(values.values()), dtype=torch.float64)
    choices = [choices_of(space.from_string(cell), space.candidates) for cell in values]
    ends = (unit for end, unit in UNITS.items() if column.endswith(end))
    unit = unit or next(ends, column)
    table = _without_none(CostTable.fit(choices, targets, unit=unit, ridge=ridge))
    table = dataclasses.replace(table, candidates=space.candidates, about=column)
    flags = torch.stack([choice["cell"] for choice in choices]).to(torch.float64)
    errors = table.fixed + (flags * table.rows["cell"]).sum((1, 2)) - targets
    spread = float((targets - targets.mean()).square().sum())
    r2 = 1 - float(errors.square().sum()) / spread if spread else 1.0
    sizes = errors.abs()
    return Fit(table, len(values), r2, float(sizes.mean()), float(sizes.max()))


def _without_none(table: CostTable) -> CostTable:
    """Move what ``none`` costs to the fixed part: all cells have one candidate on each edge."""
    costs = table.rows["cell"]
    none = costs[:, :1]  # the first of NAS_BENCH_201_OPERATIONS
    fixed = table.fixed + float(none.sum())
    return dataclasses.replace(table, fixed=fixed, rows={"cell": costs - none})
