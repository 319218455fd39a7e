"""The layers of a supernet as the network that is derived from it has them."""

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyfast_nas.nn.cell import DenseCell, edge_list
from pyfast_nas.nn.chain import MixedBlock
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.primitives import PoolBN, ReLUConvBN, SkipConnect, Zero

__all__ = ["deployed"]


def deployed(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose layers are those of a network trained from scratch.

    Batch norms have a scale, a shift and running statistics, so that they read no statistics off
    the batch; convolutions in front of them lose the bias that stood in for the shift; poolings
    lose the norm behind them; identities are those of `torch.nn`.

    Args:
        model: A supernet, or any part of one that is none of these layers itself.

    Example:
        >>> net = nn.Sequential(PoolBN("max", 4), nn.BatchNorm2d(4, affine=False))
        >>> [type(layer).__name__ for layer in deployed(net)], deployed(net)[1].affine
        (['MaxPool2d', 'BatchNorm2d'], True)
    """
    model = copy.deepcopy(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
    for part in list(model.modules()):
        if isinstance(part, ReLUConvBN) and not part[2].affine:
            part[1].bias = None
        if isinstance(part, DenseCell):
            part.mix = functools.partial(_mix, part)
        if isinstance(part, MixedBlock):
            part.forward = functools.partial(_run_block, part)
        for name, child in part.named_children():
            setattr(part, name, _deployed(child, like))
    return model.eval().requires_grad_(False)


def _deployed(layer: nn.Module, like: torch.Tensor) -> nn.Module:
    if isinstance(layer, PoolBN):
        return layer[0]
    if isinstance(layer, SkipConnect):
        return nn.Identity()
    if isinstance(layer, _BatchNorm) and not (layer.affine and layer.track_running_stats):
        return type(layer)(layer.num_features, layer.eps, layer.momentum).to(like)
    return layer


def _mix(
    cell: DenseCell, inputs: Sequence[Tensor], gate: GateOutput, layers: Sequence[nn.Module] = ()
) -> Tensor:
    """Do what `DenseCell.mix` does under a gate of one candidate a row, as a derived cell does."""
    states = [layer(x) for layer, x in zip(layers, inputs, strict=True)] if layers else [*inputs]
    places = edge_list(cell.nodes, cell.inputs)
    for (source, target), edge, (column,) in zip(places, cell.edges, gate.active, strict=True):
        y = edge.candidate(column)(states[source])
        if target == len(states):
            states.append(y)
        else:
            states[target] = states[target] + y
    return states[-1] if cell.multiplier == 1 else torch.cat(states[-cell.multiplier :], dim=1)


def _run_block(block: MixedBlock, x: Tensor, gate: GateOutput, row: int) -> Tensor:
    """Do what `MixedBlock` does under a gate of one candidate a row, as a derived block does."""
    (column,) = gate.active[row]
    candidate = block.edge.candidate(column)
    if block.has_shortcut:
        return x if isinstance(candidate, Zero) else x + candidate(x)
    return candidate(x)
