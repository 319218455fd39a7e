"""The cheapest and the costliest architecture of a space, where costs are sums over edges."""

from collections import Counter

import torch

from pyfast_nas.costs.table import CostTable
from pyfast_nas.errors import GenotypeError
from pyfast_nas.spaces.base import SearchSpace
from pyfast_nas.spaces.choices import places_of
from pyfast_nas.spaces.genotype import Genotype, GenotypeEdge

__all__ = ["extremes"]


def extremes(costs: CostTable, space: SearchSpace) -> tuple[Genotype, Genotype]:
    """Return the cheapest and the costliest architecture.

    Every node keeps as many edges as it does in any architecture of the space: the cheapest ones,
    each with its cheapest candidate, and likewise for the costliest. Ties go to the lower index.

    Args:
        costs: Cost of every candidate.
        space: Its architectures keep a fixed number of edges of each node.

    Raises:
        ConfigError: If the table is one of other candidates.

    Example:
        >>> from pyfast_nas import spaces
        >>> space = spaces.NASBench201()
        >>> costs = CostTable("ms", 1.0, {"cell": torch.arange(5.0).expand(6, 5)})
        >>> [costs.of(genotype, space.candidates) for genotype in extremes(costs, space)]
        [1.0, 25.0]
    """
    costs.check(space.candidates, "extremes: costs")
    pattern = space.random_genotype(torch.Generator().manual_seed(0))
    cheapest, costliest = (_extreme(costs, space, pattern, sign) for sign in (1, -1))
    return cheapest, costliest


def _extreme(costs: CostTable, space: SearchSpace, pattern: Genotype, sign: int) -> Genotype:
    cells = {}
    for table, places in places_of(pattern, space.candidates).items():
        best: dict[int, list[tuple[float, int, GenotypeEdge]]] = {}
        rows = zip(places, space.candidates[table], costs.rows[table].tolist(), strict=True)
        for row, ((source, target), names, values) in enumerate(rows):
            value, column = min(
                (sign * value, column)
                for column, (name, value) in enumerate(zip(names, values, strict=False))
                if name != "none" or _admits_none(space, pattern, table, source, target)
            )
            edge = GenotypeEdge(source, target, names[column])
            best.setdefault(target, []).append((value, row, edge))
        kept = Counter(edge.target for edge in pattern.cells[table])
        chosen = [choice for node, found in best.items() for choice in sorted(found)[: kept[node]]]
        cells[table] = tuple(edge for *_, edge in sorted(chosen, key=lambda choice: choice[1]))
    return Genotype(pattern.space, cells, pattern.outputs)


def _admits_none(
    space: SearchSpace, pattern: Genotype, table: str, source: int, target: int
) -> bool:
    """Say whether an architecture may have ``none`` on an edge that it keeps."""
    cell = {(edge.source, edge.target): edge for edge in pattern.cells[table]}
    if (source, target) not in cell:
        return False  # a space that drops edges has no need of it
    cell[source, target] = GenotypeEdge(source, target, "none")
    cells = {**pattern.cells, table: tuple(cell.values())}
    try:
        space.check(Genotype(pattern.space, cells, pattern.outputs))
    except GenotypeError:
        return False
    return True
