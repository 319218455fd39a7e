"""A genotype as what it chooses among the candidates of a supernet."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyfast_nas.errors import GenotypeError
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.spaces.genotype import Genotype

__all__ = ["choices_of", "places_of"]

Candidates = Mapping[str, tuple[tuple[str, ...], ...]]


def choices_of(genotype: Genotype, candidates: Candidates) -> dict[str, Tensor]:
    """Return what a genotype runs of every row: one candidate, or none where it drops the edge.

    Rows of a table are the genotype's edges in order of target and source; where the genotype
    keeps only some edges of a cell, the rows are all edges of `pyfast_nas.nn.cell.edge_list`.

    Args:
        genotype: An architecture of the space.
        candidates: Candidate names by table, as of a space or a supernet.

    Returns:
        By table flags, bool ``[rows, num_ops]``, with one or no true value a row.

    Raises:
        GenotypeError: If the candidates have no such edge or operation.

    Example:
        >>> from pyfast_nas import spaces
        >>> choices_of(spaces.Toy().optimum(), spaces.Toy().candidates)["cell"].long().tolist()
        [[1, 0, 0, 0], [1, 0, 0, 0]]
    """
    choices = {}
    for table, places in places_of(genotype, candidates).items():
        rows = candidates[table]
        edges = {(edge.source, edge.target): edge.op for edge in genotype.cells[table]}
        flags = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)
        for row, (place, names) in enumerate(zip(places, rows, strict=True)):
            if place not in edges:
                continue
            if edges[place] not in names:
                raise GenotypeError(
                    f"choices_of: the operation of cells.{table} into {place[1]} must be one of "
                    f"{', '.join(names)}, got {edges[place]!r:.200}"
                )
            flags[row, names.index(edges[place])] = True
        choices[table] = flags
    return choices


def places_of(genotype: Genotype, candidates: Candidates) -> dict[str, list[tuple[int, int]]]:
    """Return which edge each row of a table stands for, whether the genotype keeps it or not.

    Args:
        genotype: Any architecture of the space.
        candidates: Candidate names by table, as of a space or a supernet.

    Returns:
        By table (source, target) of every row.

    Raises:
        GenotypeError: If the candidates have no such edges.

    Example:
        >>> from pyfast_nas import spaces
        >>> space = spaces.DARTS(nodes=2)
        >>> places_of(space.random_genotype(), space.candidates)["normal"]
        [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    """
    result = {}
    if candidates.keys() != genotype.cells.keys():
        raise GenotypeError(
            f"choices_of: cells must be those of {', '.join(candidates)}, got "
            f"{', '.join(genotype.cells)} of the {genotype.space} space"
        )
    for table, rows in candidates.items():
        kept = {(edge.source, edge.target) for edge in genotype.cells[table]}
        places = sorted(kept, key=lambda place: place[::-1])
        if len(places) < len(rows):
            # A cell with two inputs: its first node is state 2.
            places = list(edge_list(max(target for _, target in kept) - 1))
        if len(places) != len(rows) or not kept <= set(places):
            raise GenotypeError(
                f"choices_of: cells.{table} must be edges of a cell with {len(rows)} rows, "
                f"got {sorted(kept)!r:.200}"
            )
        result[table] = places
    return result
