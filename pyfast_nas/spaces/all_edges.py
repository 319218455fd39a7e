"""Cells that keep every edge: their operation may be ``none``, and so the search leaves edges out.

Cells have two inputs; edges stand in the order of `pyfast_nas.nn.cell.edge_list`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch

from pyfast_nas.nn.cell import edge_list
from pyfast_nas.spaces.genotype import GenotypeEdge

__all__ = ["count_full_cells", "draw_edges", "likeliest_edges"]

Candidates = Sequence[Sequence[str]]


def likeliest_edges(rows: Sequence[Sequence[float]], names: Candidates) -> tuple[GenotypeEdge, ...]:
    """Keep the likeliest operation of every edge, ``none`` too; ties go to the lower index.

    Args:
        rows: Probabilities of every edge.
        names: Operations of every edge, in column order.

    Example:
        >>> names = [["none", "skip_connect"]] * 2
        >>> [edge.op for edge in likeliest_edges([[0.8, 0.2], [0.1, 0.9]], names)]
        ['none', 'skip_connect']

    References:
        Xie, Zheng, Liu & Lin, "SNAS", ICLR 2019, section 2.1.
    """
    return _edges(own[list(row).index(max(row))] for row, own in zip(rows, names, strict=True))


def draw_edges(names: Candidates, generator: torch.Generator | None) -> tuple[GenotypeEdge, ...]:
    """Draw the operation of every edge uniformly.

    Args:
        names: Operations of every edge.
        generator: Source of randomness; None takes torch's global one.

    Example:
        >>> len(draw_edges([["none", "skip_connect"]] * 14, None))
        14
    """
    return _edges(own[int(torch.randint(len(own), (), generator=generator))] for own in names)


def count_full_cells(names: Candidates) -> int:
    """Return how many cells there are.

    Args:
        names: Operations of every edge.

    Example:
        >>> count_full_cells([["none", "skip_connect", "sep_conv_3x3"]] * 2)
        9
    """
    return math.prod(map(len, names))


def _edges(operations: Iterable[str]) -> tuple[GenotypeEdge, ...]:
    operations = list(operations)
    nodes = next(n for n in itertools.count(1) if len(edge_list(n)) >= len(operations))
    pairs = zip(edge_list(nodes), operations, strict=True)
    return tuple(GenotypeEdge(source, target, op) for (source, target), op in pairs)
