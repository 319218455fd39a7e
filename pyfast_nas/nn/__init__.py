"""Building blocks: candidate operations, gates, MixedOp, cells, supernets, derived networks."""

from pyfast_nas.nn.cell import Cell
from pyfast_nas.nn.chain import ChainSizes, ChainSupernet, MBConv
from pyfast_nas.nn.chain_network import ChainNetwork
from pyfast_nas.nn.gates import (
    Gate,
    GateOutput,
    GumbelSoftmax,
    GumbelTopK,
    Softmax,
    straight_through,
)
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.network import CellNetwork
from pyfast_nas.nn.primitives import PRIMITIVES
from pyfast_nas.nn.staged import StageCell, StagedSupernet
from pyfast_nas.nn.staged_network import StagedNetwork
from pyfast_nas.nn.statistics import frozen_statistics
from pyfast_nas.nn.supernet import CellSupernet, Supernet

__all__ = [
    "PRIMITIVES",
    "Cell",
    "CellNetwork",
    "CellSupernet",
    "ChainNetwork",
    "ChainSizes",
    "ChainSupernet",
    "Gate",
    "GateOutput",
    "GumbelSoftmax",
    "GumbelTopK",
    "MBConv",
    "MixedOp",
    "Softmax",
    "StageCell",
    "StagedNetwork",
    "StagedSupernet",
    "Supernet",
    "frozen_statistics",
    "straight_through",
]
