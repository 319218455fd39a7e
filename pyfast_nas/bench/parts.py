"""Cases of an edge, a node and a cell of the DARTS supernet, fed as inside a network."""

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from pyfast_nas.bench.networks import NetworkCase
from pyfast_nas.bench.plain_darts import PlainCell, PlainMixedOp, PlainNode
from pyfast_nas.nn import PRIMITIVES, Cell, GateOutput, MixedOp
from pyfast_nas.nn.mixed_op import mix_edges
from pyfast_nas.spaces.darts import DARTS_OPERATIONS

__all__ = ["CellCase", "EdgeCase", "NodeCase"]

PARTS = (
    "eager",
    "channels-last",
    "compile",
    "compile-channels-last",
    "reference",
    "fused",
    "fused-nchw",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeCase(NetworkCase):
    """One mixed edge with all eight candidates."""

    operator: ClassVar[str] = "edge"
    providers: ClassVar[tuple[str, ...]] = PARTS

    channels: int = 16
    size: int = 32
    stride: int = 1

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        return f"[{self.batch}, {self.channels}, {self.size}, {self.size}], stride {self.stride}"

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the input."""
        return [(self.batch, self.channels, self.size, self.size)]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the outcome."""
        small = self.size // self.stride
        return (self.batch, self.channels, small, small)

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """One weight for each candidate."""
        return (len(DARTS_OPERATIONS),)

    def plain(self) -> nn.Module:
        """Return the edge in plain PyTorch."""
        return PlainMixedOp(self.channels, self.stride)

    def ours(self) -> nn.Module:
        """Return the package's edge."""
        return _edge(self.channels, self.stride)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeCase(EdgeCase):
    """A node with two edges into it."""

    operator: ClassVar[str] = "node"

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each input."""
        return super().input_shapes * 2

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """One row for each edge."""
        return (2, len(DARTS_OPERATIONS))

    def plain(self) -> nn.Module:
        """Return the node in plain PyTorch."""
        return PlainNode(self.channels, self.stride)

    def ours(self) -> nn.Module:
        """Return the package's node."""
        return _Node([_edge(self.channels, self.stride) for _ in range(2)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellCase(NetworkCase):
    """A cell behind two normal cells."""

    operator: ClassVar[str] = "cell"
    providers: ClassVar[tuple[str, ...]] = (*PARTS, "compile-edge", "compile-edge-channels-last")

    channels: int = 16
    size: int = 32
    reduction: bool = False

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        kind = "reduction" if self.reduction else "normal"
        return f"{kind}, C = {self.channels}, {self.input_shapes[0]!r}".replace("(", "[").replace(
            ")", "]"
        )

    @property
    def _previous(self) -> int:
        return 4 * self.channels // (2 if self.reduction else 1)

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of both inputs."""
        return [(self.batch, self._previous, self.size, self.size)] * 2

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the outcome."""
        small = self.size // (2 if self.reduction else 1)
        return (self.batch, 4 * self.channels, small, small)

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """One row for each edge."""
        return (14, len(DARTS_OPERATIONS))

    def plain(self) -> nn.Module:
        """Return the cell in plain PyTorch."""
        return PlainCell(self._previous, self._previous, self.channels, reduction=self.reduction)

    def ours(self) -> nn.Module:
        """Return the package's cell."""
        return _GatedCell(
            [DARTS_OPERATIONS] * 14,
            previous_channels=(self._previous, self._previous),
            channels=self.channels,
            reduction=self.reduction,
        )


class _Node(nn.Module):
    def __init__(self, edges: list[MixedOp]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(edges)

    def forward(self, *inputs_and_weights: Tensor) -> Tensor:
        *xs, weights = inputs_and_weights
        return mix_edges(list(self.edges), xs, GateOutput(weights))


class _GatedCell(Cell):
    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        return super().forward(s0, s1, GateOutput(weights))


def _edge(channels: int, stride: int) -> MixedOp:
    return MixedOp(
        {name: PRIMITIVES[name](channels, stride, False, False) for name in DARTS_OPERATIONS}
    )
