"""The plain `torch.nn` network of one cell with one input, in three stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyfast_nas.nn.network import Edges
from pyfast_nas.nn.primitives import SkipConnect
from pyfast_nas.nn.staged import STAGE_PRIMITIVES, head, stage_layers, stem

__all__ = ["DerivedStageCell", "StagedNetwork"]


class DerivedStageCell(nn.Module):
    """A cell with one input that runs the chosen operations only.

    Args:
        edges: (source, target, op) of every edge, in rising order of targets; one with ``none``
            has no operation.
        output: State that leaves the cell; zeros if no operation leads to it.
        channels: Width of the cell.
        searching: Layers as the supernet has them: biases in place of the norms' scale and shift.
        track_running_stats: Whether batch norms keep running statistics.

    Shape:
        ``[N, channels, H, W]`` -> ``[N, channels, H, W]``.

    Example:
        >>> edges = [(0, 1, "nor_conv_1x1"), (0, 2, "skip_connect"), (1, 2, "none")]
        >>> x = torch.ones(2, 4, 8, 8)
        >>> bool((DerivedStageCell(edges, 2, channels=4)(x) == x).all())
        True
    """

    def __init__(
        self,
        edges: Edges,
        output: int,
        *,
        channels: int,
        searching: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.edges = tuple(edge for edge in edges if edge[2] != "none")
        self.output = output
        layers = (
            STAGE_PRIMITIVES[op](channels, not searching, track_running_stats)
            for *_, op in self.edges
        )
        self.ops = nn.ModuleList(
            nn.Identity() if isinstance(layer, SkipConnect) else layer for layer in layers
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the cell."""
        states = {0: x}
        for (source, target, _), op in zip(self.edges, self.ops, strict=True):
            y = op(states[source] if source in states else torch.zeros_like(x))
            states[target] = states[target] + y if target in states else y
        return states[self.output] if self.output in states else torch.zeros_like(x)


class StagedNetwork(nn.Module):
    """Stem, three stages of derived cells with residual blocks between them, classifier.

    Args:
        edges: (source, target, op) of every edge of the cell.
        outputs: The state that leaves it.
        channels: Width of the first stage; it doubles twice.
        cells: Cells of a stage.
        num_classes: Classes of the classifier.
        in_channels: Channels of the images.
        searching: Layers as the supernet has them; see `DerivedStageCell`.
        track_running_stats: Whether batch norms keep running statistics.

    Attributes:
        edges: As given.
        outputs: As given.

    Shape:
        ``[N, in_channels, H, W]`` with H and W multiples of 4 -> ``[N, num_classes]``.

    Example:
        >>> edges = [(0, 1, "nor_conv_3x3")]
        >>> net = StagedNetwork(edges, (1,), channels=4, cells=1, num_classes=5)
        >>> net(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 5])

    References:
        Dong & Yang, "NAS-Bench-201", ICLR 2020, section 2.1.
    """

    def __init__(
        self,
        edges: Edges,
        outputs: Sequence[int],
        *,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int = 3,
        searching: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.edges, self.outputs = tuple(edges), tuple(outputs)
        track = track_running_stats
        self.stem = stem(in_channels, channels, track)
        self.layers = stage_layers(
            lambda width: DerivedStageCell(
                self.edges,
                self.outputs[0],
                channels=width,
                searching=searching,
                track_running_stats=track,
            ),
            channels,
            cells,
            track,
        )
        self.head = head(channels, track)
        self.classifier = nn.Linear(self.head[0].num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.head(x).mean((2, 3)))
