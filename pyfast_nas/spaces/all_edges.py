"""Cells that keep every edge: their operation may be ``none``, and so the search leaves edges out.

Cells have two inputs; edges stand in the order of `pyfast_nas.nn.cell.edge_list`.
"""

from collections.abc import Iterable, Sequence

import torch

from pyfast_nas.nn.cell import edge_list
from pyfast_nas.spaces.genotype import GenotypeEdge

__all__ = ["count_full_cells", "draw_edges", "likeliest_edges"]


def likeliest_edges(
    rows: Sequence[Sequence[float]], nodes: int, names: Sequence[str]
) -> tuple[GenotypeEdge, ...]:
    """Keep the likeliest operation of every edge, ``none`` too; ties go to the lower index.

    Args:
        rows: Probabilities of every edge.
        nodes: Intermediate nodes of the cell.
        names: Operations, in column order.

    Shape:
        rows ``[nodes * (nodes + 3) / 2, len(names)]``.

    Example:
        >>> [edge.op for edge in likeliest_edges([[0.8, 0.2], [0.1, 0.9]], 1, ["none", "skip"])]
        ['none', 'skip']

    References:
        Xie, Zheng, Liu & Lin, "SNAS", ICLR 2019, section 2.1.
    """
    return _edges(nodes, (names[list(row).index(max(row))] for row in rows))


def draw_edges(
    nodes: int, names: Sequence[str], generator: torch.Generator | None
) -> tuple[GenotypeEdge, ...]:
    """Draw the operation of every edge uniformly.

    Example:
        >>> len(draw_edges(4, ["none", "skip_connect"], None))
        14
    """
    drawn = torch.randint(len(names), (len(edge_list(nodes)),), generator=generator)
    return _edges(nodes, (names[index] for index in drawn.tolist()))


def count_full_cells(nodes: int, names: Sequence[str]) -> int:
    """Return how many cells there are.

    Example:
        >>> count_full_cells(1, ["none", "skip_connect", "sep_conv_3x3"])
        9
    """
    return len(names) ** len(edge_list(nodes))


def _edges(nodes: int, operations: Iterable[str]) -> tuple[GenotypeEdge, ...]:
    pairs = zip(edge_list(nodes), operations, strict=True)
    return tuple(GenotypeEdge(source, target, op) for (source, target), op in pairs)
