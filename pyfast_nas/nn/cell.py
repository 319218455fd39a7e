"""The searchable cell: a directed acyclic graph whose every edge is a MixedOp."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyfast_nas.nn.assembly import Assembly
from pyfast_nas.nn.fusion import Recipes, run_alone
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import MixedOp, mix_edges
from pyfast_nas.nn.primitives import PRIMITIVES, FactorizedReduce, ReLUConvBN

__all__ = ["Cell", "edge_list"]


def edge_list(nodes: int) -> tuple[tuple[int, int], ...]:
    """Return (source, target) of every row of a cell with two inputs, node by node.

    Example:
        >>> edge_list(2)
        ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    """
    return tuple((source, node) for node in range(2, nodes + 2) for source in range(node))


class Cell(nn.Module):
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
        super().__init__()
        self.nodes = next(n for n in itertools.count(1) if len(edge_list(n)) >= len(candidates))
        self.multiplier = multiplier or self.nodes
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
        self._recipes = Recipes()
        self._assembly = Assembly(self._recipes)

    def forward(self, s0: Tensor, s1: Tensor, gate: GateOutput) -> Tensor:
        """Run the cell on the outputs of the two cells before it."""
        layers = self.preprocess0, self.preprocess1
        rows = self._rows()
        whole = self._assembly.run(layers, rows, (s0, s1), gate, self.multiplier)
        if whole is not None:
            return whole
        states = [
            run_alone(layer, self._recipes.of(place, layer), x)
            for place, (layer, x) in enumerate(zip(layers, (s0, s1), strict=True))
        ]
        row = 0
        for edges in rows:
            states.append(mix_edges(edges, states, gate, row))
            row += len(edges)
        return torch.cat(states[-self.multiplier :], dim=1)

    def _rows(self) -> list[list[MixedOp]]:
        """Return for each node the edges into it."""
        edges = iter(self.edges)
        return [list(itertools.islice(edges, width)) for width in range(2, self.nodes + 2)]
