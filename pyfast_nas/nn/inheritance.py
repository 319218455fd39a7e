"""A derived network that takes over the weights its architecture has in a supernet."""

import torch
from torch import nn

from pyfast_nas.nn.cell import DenseCell, edge_list
from pyfast_nas.nn.chain import MixedBlock
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.supernet import Supernet

__all__ = ["inherit"]


def inherit(network: nn.Module, supernet: Supernet) -> None:
    """Copy the weights of a supernet into a derived network of its sizes.

    Both have children of the same names; what a cell of the network keeps stands in its ``edges``
    and ``ops``, what a block of a chain keeps in its ``name`` and ``op``.

    Args:
        network: A network whose layers are those of the search.
        supernet: Where the weights come from.

    Example:
        >>> from pyfast_nas.nn.network import CellNetwork
        >>> from pyfast_nas.nn.supernet import CellSupernet
        >>> rows = [["none", "skip_connect"]] * 2
        >>> net = CellSupernet({"normal": rows, "reduce": rows}, channels=4, cells=3, num_classes=2)
        >>> edges = [(0, 2, "skip_connect"), (1, 2, "skip_connect")]
        >>> cells = {"normal": edges, "reduce": edges}, {"normal": (2,), "reduce": (2,)}
        >>> small = CellNetwork(*cells, **net.sizes, searching=True)
        >>> inherit(small, net)
        >>> bool((small.classifier.weight == net.classifier.weight).all())
        True
    """
    network.to(next(iter(supernet.weight_parameters())))
    with torch.no_grad():
        _copy(network, supernet)
    network.train(supernet.training)


def _copy(target: nn.Module, source: nn.Module) -> None:
    for name, child in target.named_children():
        if isinstance(source, DenseCell) and name == "ops":
            _copy_operations(target, source)
        elif isinstance(source, MixedBlock):
            child.load_state_dict(_candidate(source.edge, target.name).state_dict())
        elif isinstance(child, nn.ModuleList):
            for part, other in zip(child, getattr(source, name), strict=True):
                _copy(part, other)
        else:
            child.load_state_dict(getattr(source, name).state_dict())


def _copy_operations(target: nn.Module, cell: DenseCell) -> None:
    rows = {edge: row for row, edge in enumerate(edge_list(cell.nodes, cell.inputs))}
    for op, (source, node, name) in zip(target.ops, target.edges, strict=True):
        op.load_state_dict(_candidate(cell.edges[rows[source, node]], name).state_dict())


def _candidate(mixed: MixedOp, name: str) -> nn.Module:
    return mixed.candidate(mixed.names.index(name))
