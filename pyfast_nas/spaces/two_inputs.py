"""Genotypes of cells whose nodes keep two edges each: derive, draw, count and check them.

A table is one kind of cell; pairs are (operation, source), two per node, as the papers print them.
Edges may have different candidates: a row of names belongs to the edge of its own index.
"""

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from pyfast_nas.errors import GenotypeError
from pyfast_nas.spaces.genotype import Genotype, GenotypeEdge

__all__ = ["check_tables", "count_cells", "draw_pairs", "edges_of_pairs", "strongest_pairs"]

Pairs = list[tuple[str, int]]
Candidates = Sequence[Sequence[str]]


def edges_of_pairs(pairs: Sequence[tuple[str, int]]) -> tuple[GenotypeEdge, ...]:
    """Return the edges of (operation, source) pairs, two per node from node 2 on.

    Raises:
        GenotypeError: If an entry is not a pair.

    Example:
        >>> edges_of_pairs([("skip_connect", 0), ("sep_conv_3x3", 1)])[1]
        GenotypeEdge(source=1, target=2, op='sep_conv_3x3')
    """
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise GenotypeError(f"pairs[{index}] must be (operation, source), got {pair!r:.200}")
    return tuple(
        GenotypeEdge(source, 2 + index // 2, op) for index, (op, source) in enumerate(pairs)
    )


def strongest_pairs(rows: Sequence[Sequence[float]], names: Candidates) -> Pairs:
    """Keep the two strongest edges of every node, and on each the likeliest operation.

    The strength of an edge is the largest probability among its own operations but ``none``. Ties
    go to the lower index; the two edges of a node are listed by falling strength.

    Args:
        rows: Probabilities of every edge, in the order of `edge_list`.
        names: Operations of every edge, in column order.

    Example:
        >>> strongest_pairs([[0.8, 0.2], [0.1, 0.9]], [["none", "skip_connect"]] * 2)
        [('skip_connect', 1), ('skip_connect', 0)]

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 2.4.
    """
    pairs: Pairs = []
    for edges in _rows_of_nodes(len(names)):
        # max and sorted keep the first of equals.
        best = {
            row: max(
                (k for k, name in enumerate(names[row]) if name != "none"),
                key=rows[row].__getitem__,
            )
            for row in edges
        }
        kept = sorted(edges, key=lambda row, best=best: -rows[row][best[row]])[:2]
        pairs += [(names[row][best[row]], row - edges.start) for row in kept]
    return pairs


def draw_pairs(names: Candidates, generator: torch.Generator | None) -> Pairs:
    """Draw a cell uniformly: two different sources per node, any operation but ``none``.

    Args:
        names: Operations of every edge, in the order of `edge_list`.
        generator: Source of randomness; None takes torch's global one.

    Example:
        >>> draw_pairs([["none", "skip_connect"]] * 2, None)
        [('skip_connect', 0), ('skip_connect', 1)]
    """
    pairs: Pairs = []
    for edges in _rows_of_nodes(len(names)):
        kept = list(itertools.combinations(edges, 2))
        # An edge with more operations is part of more cells.
        weights = [math.prod(_choices(names[row]) for row in rows) for rows in kept]
        place = int(torch.randint(sum(weights), (), generator=generator))
        rows = kept[bisect.bisect(list(itertools.accumulate(weights)), place)]
        for row in rows:
            known = [name for name in names[row] if name != "none"]
            drawn = int(torch.randint(len(known), (), generator=generator))
            pairs.append((known[drawn], row - edges.start))
    return pairs


def count_cells(names: Candidates) -> int:
    """Return how many cells there are: of every node the pairs of edges, with their operations.

    Args:
        names: Operations of every edge, in the order of `edge_list`.

    Example:
        >>> count_cells([["none", "skip_connect", "sep_conv_3x3"]] * 2)
        4
    """
    return math.prod(
        sum(
            _choices(names[first]) * _choices(names[second])
            for first, second in itertools.combinations(edges, 2)
        )
        for edges in _rows_of_nodes(len(names))
    )


def _rows_of_nodes(rows: int) -> Iterator[range]:
    """Yield for each node the rows of the edges into it; their sources are 0, 1, ..."""
    start = 0
    for node in itertools.count(2):
        if start >= rows:
            return
        yield range(start, start + node)
        start += node


def _choices(names: Sequence[str]) -> int:
    return sum(name != "none" for name in names)


def check_tables(
    genotype: Genotype,
    where: str,
    names: Mapping[str, Candidates],
    outputs: tuple[int, ...],
    *,
    all_edges: bool = False,
) -> None:
    """Raise at the first place where the genotype is not one of a space.

    Args:
        genotype: Any genotype.
        where: Start of the message: the name of the space's class.
        names: Table name -> operations of every edge, in the order of `edge_list`.
        outputs: States that leave a cell.
        all_edges: Whether every edge has to be there, be it as ``none``, rather than two a node.

    Raises:
        GenotypeError: Naming the place, what it holds and what it may hold.

    Example:
        >>> edges = edges_of_pairs([("skip_connect", 0), ("skip_connect", 1)])
        >>> genotype = Genotype("darts", {"normal": edges}, {"normal": (2,)})
        >>> check_tables(genotype, "DARTS", {"normal": [["none", "skip_connect"]] * 2}, (2,))
    """
    if set(genotype.cells) != set(names):
        raise GenotypeError(
            f"{where}: cells must be {sorted(names)}, got {sorted(genotype.cells)!r:.200}"
        )
    for table, edges in genotype.cells.items():
        nodes = dict(enumerate(_rows_of_nodes(len(names[table])), start=2))
        for index, edge in enumerate(edges):
            path = f"cells.{table}[{index}]"
            if edge.target not in nodes:
                raise GenotypeError(
                    f"{where}: {path}.target must be a node from 2 to {max(nodes)}, "
                    f"got {edge.target}"
                )
            row = names[table][nodes[edge.target][edge.source]]
            known = [name for name in row if all_edges or name != "none"]
            if edge.op not in known:
                raise GenotypeError(
                    f"{where}: {path}.op must be one of {', '.join(known)}, got {edge.op!r}"
                )
        for node in nodes:
            count = sum(edge.target == node for edge in edges)
            wanted = node if all_edges else 2
            if count != wanted:
                raise GenotypeError(
                    f"{where}: cells.{table} must have {wanted} edges into node {node}, got {count}"
                )
        if genotype.outputs[table] != outputs:
            raise GenotypeError(
                f"{where}: outputs.{table} must be {list(outputs)}, "
                f"got {list(genotype.outputs[table])!r:.200}"
            )
