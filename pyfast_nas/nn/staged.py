"""Networks of three stages of cells with one input: the supernet and what it is made of."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pyfast_nas.nn.cell import DenseCell
from pyfast_nas.nn.fusion import is_served
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.primitives import ReLUConvBN, SkipConnect, Zero, pool
from pyfast_nas.nn.supernet import Supernet

__all__ = [
    "STAGE_PRIMITIVES",
    "Residual",
    "StageCell",
    "StagedSupernet",
    "head",
    "stage_layers",
    "stem",
]

STAGES = 3


def _conv(channels: int, size: int, affine: bool, track_running_stats: bool) -> nn.Module:
    # Where the norm has no shift the convolution has one, as in the published code.
    return ReLUConvBN(
        channels, channels, affine, track_running_stats, kernel_size=size, bias=not affine
    )


# Name -> factory(channels, affine, track_running_stats); no pooling has a norm, no stride is 2.
STAGE_PRIMITIVES: dict[str, Callable[[int, bool, bool], nn.Module]] = {
    "none": lambda c, affine, track: Zero(),
    "skip_connect": lambda c, affine, track: SkipConnect(),
    "nor_conv_1x1": lambda c, affine, track: _conv(c, 1, affine, track),
    "nor_conv_3x3": lambda c, affine, track: _conv(c, 3, affine, track),
    "avg_pool_3x3": lambda c, affine, track: pool("avg", 1),
}


class StageCell(DenseCell):
    """One input, and nodes that sum mixed edges from every state before them; the last one leaves.

    Args:
        candidates: Candidate names of every edge, in the order of `edge_list` with one input.
        channels: Width of the cell, of its input and of its outcome.
        track_running_stats: Whether batch norms keep running statistics.

    Shape:
        ``[N, channels, H, W]`` -> ``[N, channels, H, W]``.

    Example:
        >>> cell = StageCell([["none", "skip_connect"]] * 3, channels=4)
        >>> cell(torch.ones(2, 4, 8, 8), GateOutput(torch.full((3, 2), 0.5))).shape
        torch.Size([2, 4, 8, 8])

    References:
        Dong & Yang, "NAS-Bench-201", ICLR 2020, section 2.1.
    """

    def __init__(
        self,
        candidates: Sequence[Sequence[str]],
        *,
        channels: int,
        track_running_stats: bool = False,
    ) -> None:
        super().__init__(len(candidates), inputs=1, multiplier=1)
        self.edges = nn.ModuleList(
            MixedOp(
                {name: STAGE_PRIMITIVES[name](channels, False, track_running_stats) for name in row}
            )
            for row in candidates
        )

    def forward(self, x: Tensor, gate: GateOutput) -> Tensor:
        """Run the cell."""
        return self.mix((x,), gate)


class Residual(nn.Module):
    """Halve the image and double the width: two 3x3 convolutions beside a pooled 1x1 convolution.

    Args:
        channels: Channels of the input.
        track_running_stats: Whether batch norms keep running statistics.

    Shape:
        ``[N, channels, H, W]`` with even H and W -> ``[N, 2 * channels, H / 2, W / 2]``.

    Example:
        >>> Residual(4)(torch.ones(2, 4, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, track_running_stats: bool = True) -> None:
        super().__init__()
        wide, track = 2 * channels, track_running_stats
        self.main = nn.Sequential(
            ReLUConvBN(channels, wide, True, track, kernel_size=3, stride=2),
            ReLUConvBN(wide, wide, True, track, kernel_size=3),
        )
        self.side = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(channels, wide, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches."""
        return self.main(x) + self.side(x)


def stem(in_channels: int, channels: int, track_running_stats: bool) -> nn.Sequential:
    """Return the first layers: a 3x3 convolution and its norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels, track_running_stats=track_running_stats),
    )


def stage_layers(
    cell: Callable[[int], nn.Module], channels: int, cells: int, track_running_stats: bool
) -> nn.ModuleList:
    """Return the cells of all stages with a residual block in front of the second and the third.

    Args:
        cell: Width -> a cell.
        channels: Width of the first stage.
        cells: Cells of a stage.
        track_running_stats: Whether the batch norms of the blocks keep running statistics.
    """
    layers: list[nn.Module] = []
    for stage in range(STAGES):
        if stage:
            layers.append(Residual(channels, track_running_stats))
            channels *= 2
        layers += [cell(channels) for _ in range(cells)]
    return nn.ModuleList(layers)


def head(channels: int, track_running_stats: bool) -> nn.Sequential:
    """Return what stands between the last of the cells and the pooling.

    Args:
        channels: Width of the first stage.
        track_running_stats: Whether the batch norm keeps running statistics.
    """
    width = channels * 2 ** (STAGES - 1)
    norm = nn.BatchNorm2d(width, track_running_stats=track_running_stats)
    return nn.Sequential(norm, nn.ReLU())


class StagedSupernet(Supernet):
    """Stem, three stages of searchable cells with residual blocks between them, classifier.

    Args:
        candidates: Rows of the one table, ``"cell"``.
        channels: Width of the first stage; it doubles twice.
        cells: Cells of a stage.
        num_classes: Classes of the classifier.
        in_channels: Channels of the images.
        track_running_stats: Whether batch norms keep running statistics.

    Attributes:
        sizes: The arguments that a derived network of the same sizes needs.

    Shape:
        ``[N, in_channels, H, W]`` with H and W multiples of 4 -> ``[N, num_classes]``.

    Example:
        >>> rows = {"cell": [["none", "skip_connect"]] * 6}
        >>> net = StagedSupernet(rows, channels=4, cells=1, num_classes=3)
        >>> net(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 3])

    References:
        Dong & Yang, "NAS-Bench-201", ICLR 2020, section 2.1.
    """

    def __init__(
        self,
        candidates: Mapping[str, Sequence[Sequence[str]]],
        *,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int = 3,
        track_running_stats: bool = False,
    ) -> None:
        super().__init__(candidates)
        track = track_running_stats
        self.sizes = {
            "channels": channels,
            "cells": cells,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "track_running_stats": track,
        }
        rows = self.candidates["cell"]
        self.stem = stem(in_channels, channels, track)
        self.layers = stage_layers(
            lambda width: StageCell(rows, channels=width, track_running_stats=track),
            channels,
            cells,
            track,
        )
        self.head = head(channels, track)
        self.classifier = nn.Linear(channels * 2 ** (STAGES - 1), num_classes)

    def placed_edges(self) -> Iterator[tuple[str, int, MixedOp]]:
        """Yield every mixed operation with the table and the row whose weights it takes."""
        for layer in self.layers:
            if isinstance(layer, StageCell):
                yield from (("cell", row, edge) for row, edge in enumerate(layer.edges))

    def mix(self, x: Tensor, gates: Mapping[str, GateOutput]) -> Tensor:
        """Return the class logits under the given gates."""
        served = is_served(x, x)
        x = self.stem(_channels_last(x) if served else x)
        if served:
            x = _channels_last(x)  # an image of one channel has both layouts
        for layer in self.layers:
            x = layer(x, gates["cell"]) if isinstance(layer, StageCell) else layer(x)
        return self.classifier(self.head(x).mean((2, 3)))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
