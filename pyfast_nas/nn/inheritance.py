"""A derived network that takes over the weights its architecture has in a super-net."""

from collections.abc import Mapping, Sequence

import torch

from pyfast_nas.nn.cell import edge_list
from pyfast_nas.nn.network import CellNetwork, Edges
from pyfast_nas.nn.supernet import CellSupernet

__all__ = ["inherit"]


def inherit(
    supernet: CellSupernet,
    cells_edges: Mapping[str, Edges],
    cells_outputs: Mapping[str, Sequence[int]],
) -> CellNetwork:
    """Return the derived network in the super-net's sizes, holding copies of its weights.

    Args:
        supernet: Where the weights come from.
        cells_edges: Table name -> kept edges (source, target, op).
        cells_outputs: Table name -> states that are concatenated.

    Example:
        >>> rows = [["none", "skip_connect"]] * 2
        >>> net = CellSupernet({"normal": rows, "reduce": rows}, channels=4, cells=3, num_classes=2)
        >>> edges = [(0, 2, "skip_connect"), (1, 2, "skip_connect")]
        >>> outputs = {"normal": (2,), "reduce": (2,)}
        >>> small = inherit(net, {"normal": edges, "reduce": edges}, outputs)
        >>> bool((small.classifier.weight == net.classifier.weight).all())
        True
    """
    network = CellNetwork(cells_edges, cells_outputs, **supernet.sizes, searching=True)
    network.to(next(supernet.classifier.parameters()))
    with torch.no_grad():
        for name in ("stem", "classifier"):
            getattr(network, name).load_state_dict(getattr(supernet, name).state_dict())
        for cell, source_cell, table in zip(
            network.cells, supernet.cells, supernet.tables, strict=True
        ):
            for name in ("preprocess0", "preprocess1"):
                getattr(cell, name).load_state_dict(getattr(source_cell, name).state_dict())
            rows = {edge: row for row, edge in enumerate(edge_list(source_cell.nodes))}
            for op, (source, target, name) in zip(cell.ops, cells_edges[table], strict=True):
                mixed = source_cell.edges[rows[source, target]]
                op.load_state_dict(mixed.candidate(mixed.names.index(name)).state_dict())
    return network.train(supernet.training)
