"""Genotypes of cells whose nodes keep two edges each: derive, draw, count and check them.

A table is one kind of cell; pairs are (operation, source), two per node, as the papers print them.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from pyfast_nas.errors import GenotypeError
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.spaces.genotype import Genotype, GenotypeEdge

__all__ = ["check_tables", "count_cells", "draw_pairs", "edges_of_pairs", "strongest_pairs"]

Pairs = list[tuple[str, int]]


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


def strongest_pairs(rows: Sequence[Sequence[float]], nodes: int, names: Sequence[str]) -> Pairs:
    """Keep the two strongest edges of every node, and on each the likeliest operation.

    The strength of an edge is the largest probability among its operations but ``none``. Ties go
    to the lower index; the two edges of a node are listed by falling strength.

    Args:
        rows: Probabilities of every edge, in the order of `edge_list`.
        nodes: Intermediate nodes of the cell.
        names: Operations, in column order.

    Shape:
        rows ``[nodes * (nodes + 3) / 2, len(names)]``.

    Example:
        >>> strongest_pairs([[0.8, 0.2], [0.1, 0.9]], 1, ["none", "skip_connect"])
        [('skip_connect', 1), ('skip_connect', 0)]

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 2.4.
    """
    choices = [k for k, name in enumerate(names) if name != "none"]
    pairs: Pairs = []
    for node in range(2, nodes + 2):
        incoming = rows[len(edge_list(node - 2)) :][:node]
        # max and sorted keep the first of equals.
        best = [max(choices, key=row.__getitem__) for row in incoming]
        kept = sorted(range(node), key=lambda j: -incoming[j][best[j]])[:2]
        pairs += [(names[best[j]], j) for j in kept]
    return pairs


def draw_pairs(nodes: int, names: Sequence[str], generator: torch.Generator | None) -> Pairs:
    """Draw a cell uniformly: two different sources per node, any operation but ``none``.

    Example:
        >>> draw_pairs(1, ["none", "skip_connect"], None)
        [('skip_connect', 0), ('skip_connect', 1)]
    """
    names = [name for name in names if name != "none"]
    pairs: Pairs = []
    for node in range(2, nodes + 2):
        for source in sorted(torch.randperm(node, generator=generator)[:2].tolist()):
            pairs.append((names[int(torch.randint(len(names), (), generator=generator))], source))
    return pairs


def count_cells(nodes: int, names: Sequence[str]) -> int:
    """Return how many cells there are: over the nodes, pairs of sources times operations squared.

    Example:
        >>> count_cells(1, ["none", "skip_connect", "sep_conv_3x3"])
        4
    """
    choices = sum(name != "none" for name in names)
    return math.prod(math.comb(node, 2) * choices**2 for node in range(2, nodes + 2))


def check_tables(
    genotype: Genotype,
    where: str,
    names: Mapping[str, Sequence[str]],
    nodes: int,
    outputs: tuple[int, ...],
    *,
    all_edges: bool = False,
) -> None:
    """Raise at the first place where the genotype is not one of a space.

    Args:
        genotype: Any genotype.
        where: Start of the message: the name of the space's class.
        names: Table name -> operations.
        nodes: Intermediate nodes of a cell.
        outputs: States that leave a cell.
        all_edges: Whether every edge has to be there, be it as ``none``, rather than two a node.

    Raises:
        GenotypeError: Naming the place, what it holds and what it may hold.

    Example:
        >>> edges = edges_of_pairs([("skip_connect", 0), ("skip_connect", 1)])
        >>> genotype = Genotype("darts", {"normal": edges}, {"normal": (2,)})
        >>> check_tables(genotype, "DARTS", {"normal": ["none", "skip_connect"]}, 1, (2,))
    """
    if set(genotype.cells) != set(names):
        raise GenotypeError(
            f"{where}: cells must be {sorted(names)}, got {sorted(genotype.cells)!r:.200}"
        )
    for table, edges in genotype.cells.items():
        known = [name for name in names[table] if all_edges or name != "none"]
        for index, edge in enumerate(edges):
            path = f"cells.{table}[{index}]"
            if edge.op not in known:
                raise GenotypeError(
                    f"{where}: {path}.op must be one of {', '.join(known)}, got {edge.op!r}"
                )
            if not 2 <= edge.target < nodes + 2:
                raise GenotypeError(
                    f"{where}: {path}.target must be a node from 2 to {nodes + 1}, "
                    f"got {edge.target}"
                )
        for node in range(2, nodes + 2):
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
