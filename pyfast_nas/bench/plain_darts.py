"""The DARTS search supernet in plain PyTorch: what a user has without this package.

Written from the description in Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search",
ICLR 2019, sections 2.1 and 3.1, and the candidate operations of its appendix. Parameters come in
the order and the shapes of ``spaces.DARTS(...).supernet()``, so that values can be copied over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyfast_nas.spaces.darts import DARTS_OPERATIONS

__all__ = ["PlainCell", "PlainDARTS", "PlainMixedOp", "PlainNode"]


class _Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class _Halve(nn.Module):
    """Two 1x1 convolutions of stride 2, one of them shifted by a pixel, side by side."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.norm = _norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.norm(torch.cat((self.even(x), self.odd(x[:, :, 1:, 1:])), dim=1))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)


def _depthwise(c: int, size: int, stride: int, dilation: int) -> list[nn.Module]:
    pad = dilation * (size - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(c, c, size, stride, pad, dilation, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        _norm(c),
    ]


def _align(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), _norm(c_out))


def _candidate(name: str, c: int, stride: int) -> nn.Module:
    if name == "none":
        return _Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else _Halve(c, c)
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), _norm(c))
    if name == "avg_pool_3x3":
        return nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), _norm(c))
    kind, size = name[:3], int(name[-1])
    if kind == "sep":
        return nn.Sequential(*_depthwise(c, size, stride, 1), *_depthwise(c, size, 1, 1))
    return nn.Sequential(*_depthwise(c, size, stride, 2))


class PlainMixedOp(nn.Module):
    """One edge: all eight candidates, each times its weight, summed by a Python loop.

    Example:
        >>> PlainMixedOp(4, stride=2)(torch.ones(1, 4, 8, 8), torch.ones(8)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _candidate(name, channels, stride) for name in DARTS_OPERATIONS
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum the candidates' outputs by weight."""
        return sum(w * branch(x) for w, branch in zip(weights, self.branches, strict=True))


class PlainNode(nn.Module):
    """The edges into one node, summed.

    Example:
        >>> x = torch.ones(1, 4, 8, 8)
        >>> PlainNode(4)(x, x, torch.ones(2, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, channels: int, stride: int = 1, edges: int = 2) -> None:
        super().__init__()
        self.edges = nn.ModuleList(PlainMixedOp(channels, stride) for _ in range(edges))

    def forward(self, *inputs_and_weights: Tensor) -> Tensor:
        """Take one input for each edge, then the weights ``[edges, 8]``."""
        *xs, weights = inputs_and_weights
        return sum(edge(x, w) for edge, x, w in zip(self.edges, xs, weights, strict=True))


class PlainCell(nn.Module):
    """Four nodes, each the sum of an edge from every state before it; their concatenation.

    Example:
        >>> cell = PlainCell(3, 3, 4, reduction=True)
        >>> x = torch.ones(1, 3, 8, 8)
        >>> cell(x, x, torch.ones(14, 8)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self,
        older: int,
        newer: int,
        channels: int,
        *,
        reduction: bool = False,
        previous_reduction: bool = False,
    ) -> None:
        super().__init__()
        self.align0 = (_Halve if previous_reduction else _align)(older, channels)
        self.align1 = _align(newer, channels)
        self.edges = nn.ModuleList(
            PlainMixedOp(channels, 2 if reduction and source < 2 else 1)
            for node in range(4)
            for source in range(2 + node)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """Run the cell on the outputs of the two cells before it; weights ``[14, 8]``."""
        states = [self.align0(s0), self.align1(s1)]
        row = 0
        for _ in range(4):
            count = len(states)
            states.append(
                sum(self.edges[row + j](states[j], weights[row + j]) for j in range(count))
            )
            row += count
        return torch.cat(states[2:], dim=1)


class PlainDARTS(nn.Module):
    """The whole search supernet for CIFAR.

    Args:
        channels: Width of the first cells; it doubles in the two reduction cells.
        cells: Number of cells.
        classes: Classes to tell apart.

    Attributes:
        checkpointed: Whether cells are computed again in backward instead of kept.

    Example:
        >>> PlainDARTS(channels=2, cells=3)(torch.ones(1, 3, 8, 8)).shape
        torch.Size([1, 10])
    """

    def __init__(self, channels: int = 16, cells: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.checkpointed = False
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(14, 8))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(14, 8))
        width = 3 * channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=False),
        )
        older = newer = width
        halved = False
        self.cells = nn.ModuleList()
        self.reduces: list[bool] = []
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            cell = PlainCell(older, newer, channels, reduction=reduction, previous_reduction=halved)
            self.cells.append(cell)
            self.reduces.append(reduction)
            older, newer, halved = newer, 4 * channels, reduction
        self.classifier = nn.Linear(newer, classes)

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return both tables of logits."""
        return [self.alphas_normal, self.alphas_reduce]

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits."""
        normal, reduce = (table.softmax(dim=-1) for table in self.arch_parameters())
        s0 = s1 = self.stem(x)
        for cell, reduces in zip(self.cells, self.reduces, strict=True):
            weights = reduce if reduces else normal
            if self.checkpointed:
                out = checkpoint(cell, s0, s1, weights, use_reentrant=False)
            else:
                out = cell(s0, s1, weights)
            s0, s1 = s1, out
        return self.classifier(s1.mean((2, 3)))
