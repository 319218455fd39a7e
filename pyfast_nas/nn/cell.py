"""Searchable cells: directed acyclic graphs whose every edge is a MixedOp."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyfast_nas.nn.assembly import Assembly
from pyfast_nas.nn.fusion import Recipes, run_alone
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import MixedOp, mix_edges
from pyfast_nas.nn.primitives import PRIMITIVES, FactorizedReduce, ReLUConvBN

__all__ = ["Cell", "DenseCell", "edge_list"]


def edge_list(nodes: int, inputs: int = 2) -> tuple[tuple[int, int], ...]:
    """Return (source, target) of every row of a cell, node by node.

    Example:
        >>> edge_list(2), edge_list(2, inputs=1)
        (((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), ((0, 1), (0, 2), (1, 2)))
    """
    targets = range(inputs, nodes + inputs)
    return tuple((source, node) for node in targets for source in range(node))


class DenseCell(nn.Module):
    """Base of the cells: every node sums mixed edges from all states before it.

    A subclass makes ``edges``, one for each row of `edge_list`, and says in its ``forward`` what
    each input goes through first.

    Args:
        rows: Number of edges.
        inputs: Number of inputs.
        multiplier: How many of the last states are concatenated; None means all nodes.

    Attributes:
        inputs: As given.
        nodes: Number of nodes, the inputs not among them.
        multiplier: As given, or the number of nodes.
    """

    edges: nn.ModuleList

    def __init__(self, rows: int, *, inputs: int, multiplier: int | None = None) -> None:
        super().__init__()
        self.inputs = inputs
        self.nodes = next(n for n in itertools.count(1) if len(edge_list(n, inputs)) >= rows)
        self.multiplier = multiplier or self.nodes
        self._recipes = Recipes()
        self._assembly = Assembly(self._recipes)

    def mix(
        self, inputs: Sequence[Tensor], gate: GateOutput, layers: Sequence[nn.Module] = ()
    ) -> Tensor:
        """Return the last states, along the channels.

        Args:
            inputs: The inputs of the cell.
            gate: Weights of all edges.
            layers: What each input goes through first; none where they fit as they are.
        """
        rows = self._rows()
        whole = self._assembly.run(layers, rows, inputs, gate, self.multiplier)
        if whole is not None:
            return whole
        states = list(inputs)
        for place, layer in enumerate(layers):
            states[place] = run_alone(layer, self._recipes.of(place, layer), inputs[place])
        row = 0
        for edges in rows:
            states.append(mix_edges(edges, states, gate, row))
            row += len(edges)
        return torch.cat(states[-self.multiplier :], dim=1)

    def _rows(self) -> list[list[MixedOp]]:
        """Return for each node the edges into it."""
        edges = iter(self.edges)
        widths = range(self.inputs, self.inputs + self.nodes)
        return [list(itertools.islice(edges, width)) for width in widths]


class Cell(DenseCell):
    """Two inputs, ``nodes`` intermediate states that sum mixed edges, and their concatenation.

    Args:
        candidates: Candidate names of every edge, in the order of `edge_list`.
        previous_channels: Channels of the two inputs, older one first.
        channels: Width of the cell.
        reduction: Whether edges leaving the inputs halve the image.
        previous_reduction: Whether the newer input is half as large as the older one.
        multiplier: How many of the last states are concatenated; None means all nodes.
        track_running_stats: Whether batch norms keep running statistics.

    Shape:
        s0 ``[N, C0, H, W]`` (twice H and W after a reduction), s1 ``[N, C1, H, W]`` ->
        ``[N, multiplier * channels, H, W]``, halved by a reduction cell.

    Example:
        >>> cell = Cell([["none", "skip_connect"]] * 2, previous_channels=(3, 3), channels=4)
        >>> gate = GateOutput(torch.full((2, 2), 0.5))
        >>> cell(torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8), gate).shape
        torch.Size([2, 4, 8, 8])

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 2.1.
    """

    def __init__(
        self,
        candidates: Sequence[Sequence[str]],
        *,
        previous_channels: tuple[int, int],
        channels: int,
        reduction: bool = False,
        previous_reduction: bool = False,
        multiplier: int | None = None,
        track_running_stats: bool = False,
    ) -> None:
        super().__init__(len(candidates), inputs=2, multiplier=multiplier)
        older, newer = previous_channels
        align = FactorizedReduce if previous_reduction else ReLUConvBN
        self.preprocess0 = align(older, channels, False, track_running_stats)
        self.preprocess1 = ReLUConvBN(newer, channels, False, track_running_stats)
        self.edges = nn.ModuleList(
            MixedOp(
                {
                    name: PRIMITIVES[name](
                        channels, 2 if reduction and source < 2 else 1, False, track_running_stats
                    )
                    for name in names
                }
            )
            for (source, _), names in zip(edge_list(self.nodes), candidates, strict=True)
        )

    def forward(self, s0: Tensor, s1: Tensor, gate: GateOutput) -> Tensor:
        """Run the cell on the outputs of the two cells before it."""
        return self.mix((s0, s1), gate, (self.preprocess0, self.preprocess1))
