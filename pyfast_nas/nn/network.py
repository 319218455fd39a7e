"""A genotype as a plain network of `torch.nn` layers, with no operator of ours inside."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn.primitives import (
    PRIMITIVES,
    FactorizedReduce,
    PoolBN,
    ReLUConvBN,
    SkipConnect,
    pool,
)
from pyfast_nas.nn.stem import Stem, reduction_cells

__all__ = ["CellNetwork", "DerivedCell"]

Edges = Sequence[tuple[int, int, str]]  # (source, target, op), in the genotype's order


class DerivedCell(nn.Module):
    """A cell that runs the chosen operations only.

    Args:
        edges: (source, target, op) of every kept edge, in rising order of targets.
        outputs: States that are concatenated.
        previous_channels: Channels of the two inputs, older one first.
        channels: Width of the cell.
        reduction: Whether edges leaving the inputs halve the image.
        previous_reduction: Whether the newer input is half as large as the older one.
        searching: Layers as the supernet has them: batch norms without scale and shift, and one
            after each pooling. False is the network that is trained from scratch.
        track_running_stats: Whether batch norms keep running statistics.

    Shape:
        s0 ``[N, C0, H, W]`` (twice H and W after a reduction), s1 ``[N, C1, H, W]`` ->
        ``[N, len(outputs) * channels, H, W]``, halved by a reduction cell.

    Example:
        >>> edges = [(0, 2, "skip_connect"), (1, 2, "sep_conv_3x3")]
        >>> cell = DerivedCell(edges, (2,), previous_channels=(3, 3), channels=4)
        >>> cell(torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        edges: Edges,
        outputs: Sequence[int],
        *,
        previous_channels: tuple[int, int],
        channels: int,
        reduction: bool = False,
        previous_reduction: bool = False,
        searching: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        affine = not searching
        older, newer = previous_channels
        align = FactorizedReduce if previous_reduction else ReLUConvBN
        self.preprocess0 = align(older, channels, affine, track_running_stats)
        self.preprocess1 = ReLUConvBN(newer, channels, affine, track_running_stats)
        self.edges = tuple(edges)
        self.ops = nn.ModuleList(
            _layer(
                op,
                channels,
                2 if reduction and source < 2 else 1,
                searching=searching,
                track_running_stats=track_running_stats,
            )
            for source, _, op in edges
        )
        self.outputs = tuple(outputs)

    def forward(self, s0: Tensor, s1: Tensor, drop_path: float = 0.0) -> Tensor:
        """Run the cell; ``drop_path`` is the rate at which whole edges vanish in training."""
        states = {0: self.preprocess0(s0), 1: self.preprocess1(s1)}
        for (source, target, _), op in zip(self.edges, self.ops, strict=True):
            y = op(states[source])
            if self.training and drop_path > 0 and not isinstance(op, nn.Identity):
                y = _drop_path(y, drop_path)
            states[target] = states[target] + y if target in states else y
        return torch.cat([states[node] for node in self.outputs], dim=1)


class CellNetwork(nn.Module):
    """Stem, a stack of derived cells of which two reduce, global pooling, classifier.

    Args:
        cells_edges: Table name (``"normal"``, ``"reduce"``) -> kept edges.
        cells_outputs: Table name -> states that are concatenated.
        channels: Width of the first cells; it doubles at each reduction cell.
        cells: Number of cells; those at a third and at two thirds reduce.
        num_classes: Classes of the classifier.
        in_channels: Channels of the images.
        stem: ``"cifar"`` or ``"imagenet"``.
        auxiliary: Whether a second classifier sits behind the cell at two thirds; in training
            the output is then (logits, auxiliary logits).
        drop_path: Initial value of the attribute ``drop_path``.
        searching: Layers as the supernet has them; see `DerivedCell`.
        track_running_stats: Whether batch norms keep running statistics.

    Attributes:
        edges: The kept edges by table, as given.
        outputs: The concatenated states by table, as given.
        drop_path: Rate at which the output of each operation but identities is dropped, per
            sample, while training. Set it between epochs.

    Shape:
        ``[N, in_channels, H, W]`` -> ``[N, num_classes]``.

    Example:
        >>> edges = {"normal": [(0, 2, "skip_connect"), (1, 2, "sep_conv_3x3")]}
        >>> edges["reduce"] = [(0, 2, "max_pool_3x3"), (1, 2, "max_pool_3x3")]
        >>> outputs = {"normal": (2,), "reduce": (2,)}
        >>> net = CellNetwork(edges, outputs, channels=4, cells=3, num_classes=5)
        >>> net(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 5])

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, appendix A.
    """

    def __init__(
        self,
        cells_edges: Mapping[str, Edges],
        cells_outputs: Mapping[str, Sequence[int]],
        *,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int = 3,
        stem: str = "cifar",
        auxiliary: bool = False,
        drop_path: float = 0.0,
        searching: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.edges = {table: tuple(edges) for table, edges in cells_edges.items()}
        self.outputs = {table: tuple(nodes) for table, nodes in cells_outputs.items()}
        # The ImageNet stem of a network trained from scratch is as wide as its first cell.
        width = channels if stem == "imagenet" and not searching else 3 * channels
        self.stem = Stem(stem, in_channels, width, track_running_stats)
        previous = (width, width)
        previous_reduction = stem == "imagenet"
        self.cells = nn.ModuleList()
        self.auxiliary_cell = 2 * cells // 3
        self.auxiliary = None
        for index in range(cells):
            reduction = index in reduction_cells(cells)
            channels *= 2 if reduction else 1
            table = "reduce" if reduction else "normal"
            self.cells.append(
                DerivedCell(
                    cells_edges[table],
                    cells_outputs[table],
                    previous_channels=previous,
                    channels=channels,
                    reduction=reduction,
                    previous_reduction=previous_reduction,
                    searching=searching,
                    track_running_stats=track_running_stats,
                )
            )
            previous = (previous[1], len(cells_outputs[table]) * channels)
            previous_reduction = reduction
            if auxiliary and index == self.auxiliary_cell:
                self.auxiliary = AuxiliaryHead(
                    previous[1], num_classes, imagenet=stem == "imagenet"
                )
        self.classifier = nn.Linear(previous[1], num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the class logits, in training with an auxiliary head (logits, auxiliary)."""
        s0, s1 = self.stem(x)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path)
            if self.training and self.auxiliary is not None and index == self.auxiliary_cell:
                auxiliary = self.auxiliary(s1)
        logits = self.classifier(s1.mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)


class AuxiliaryHead(nn.Sequential):
    """Second classifier on 8 x 8 features (7 x 7 with the ImageNet stem), used in training only."""

    def __init__(self, channels: int, num_classes: int, *, imagenet: bool = False) -> None:
        super().__init__(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=2 if imagenet else 3, padding=0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            # The published ImageNet head has no batch norm here.
            nn.Identity() if imagenet else nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(768, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the auxiliary class logits."""
        if min(x.shape[-2:]) < (7 if isinstance(self[6], nn.Identity) else 8):
            raise SearchSpaceError(
                f"AuxiliaryHead: the features must be at least 8 x 8 (7 x 7 with the imagenet "
                f"stem), got {x.shape[-2]} x {x.shape[-1]}; build without auxiliary"
            )
        return super().forward(x)


def _layer(
    name: str, channels: int, stride: int, *, searching: bool, track_running_stats: bool
) -> nn.Module:
    """Return one operation; without ``searching`` pools stand alone."""
    layer = PRIMITIVES[name](channels, stride, not searching, track_running_stats)
    if isinstance(layer, SkipConnect):
        return nn.Identity()
    if isinstance(layer, PoolBN) and not searching:
        return pool(name[:3], stride)
    return layer


def _drop_path(x: Tensor, rate: float) -> Tensor:
    """Drop whole samples and scale the kept ones, so that the mean stays."""
    keep = 1.0 - rate
    mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
    return x * (mask / keep)
