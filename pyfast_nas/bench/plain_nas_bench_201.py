"""The NAS-Bench-201 search supernet in plain PyTorch.

Written from the description in Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible
Neural Architecture Search", ICLR 2020, section 2.1: three stages of N cells with 16, 32 and 64
channels, residual blocks of stride 2 between them, five candidates on each of a cell's six edges.
As in the published code, a convolution has a bias where the batch norm behind it has no shift.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["CANDIDATES", "PlainNASBench201", "PlainStageCell", "PlainStageEdge"]

CANDIDATES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class _Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0


def _conv(c_in: int, c_out: int, size: int, stride: int = 1, affine: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=not affine),
        nn.BatchNorm2d(c_out, affine=affine),
    )


class PlainStageEdge(nn.Module):
    """One edge: five candidates, each times its weight, summed by a Python loop.

    Example:
        >>> PlainStageEdge(4)(torch.ones(1, 4, 8, 8), torch.ones(5)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _Nothing(),
                nn.Identity(),
                _conv(channels, channels, 1),
                _conv(channels, channels, 3),
                nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            ]
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum the candidates' outputs by weight."""
        return sum(w * branch(x) for w, branch in zip(weights, self.branches, strict=True))


class PlainStageCell(nn.Module):
    """Four states, each the sum of an edge from every one before it; the last is the outcome.

    Example:
        >>> PlainStageCell(4)(torch.ones(1, 4, 8, 8), torch.ones(6, 5)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(PlainStageEdge(channels) for _ in range(6))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Run the cell; weights ``[6, 5]``."""
        states, row = [x], 0
        for count in (1, 2, 3):
            states.append(
                sum(self.edges[row + j](states[j], weights[row + j]) for j in range(count))
            )
            row += count
        return states[-1]


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _conv(c_in, c_out, 3, stride=2, affine=True), _conv(c_out, c_out, 3, affine=True)
        )
        self.side = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.side(x) + self.main(x)


class PlainNASBench201(nn.Module):
    """The whole search supernet for CIFAR.

    Args:
        channels: Width of the first stage; it doubles twice.
        blocks: Cells a stage (N).
        classes: Classes to tell apart.

    Attributes:
        checkpointed: Whether cells are computed again in backward instead of kept.

    Example:
        >>> PlainNASBench201(channels=2, blocks=1)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 16, blocks: int = 5, classes: int = 10) -> None:
        super().__init__()
        self.checkpointed = False
        self.alphas = nn.Parameter(1e-3 * torch.randn(6, len(CANDIDATES)))
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.layers = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.layers.append(_Residual(channels, 2 * channels))
                channels *= 2
            self.layers.extend(PlainStageCell(channels) for _ in range(blocks))
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return the one table of logits."""
        return [self.alphas]

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits."""
        weights = self.alphas.softmax(dim=-1)
        x = self.stem(x)
        for layer in self.layers:
            if not isinstance(layer, PlainStageCell):
                x = layer(x)
            elif self.checkpointed:
                x = checkpoint(layer, x, weights, use_reentrant=False)
            else:
                x = layer(x, weights)
        return self.classifier(self.last(x).mean((2, 3)))
