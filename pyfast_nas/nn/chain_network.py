"""The plain `torch.nn` network of one chain of inverted bottlenecks."""

from collections.abc import Sequence

from torch import Tensor, nn

from pyfast_nas.nn.chain import BlockSizes, ChainSizes, MBConv, head, stem

__all__ = ["ChainBlock", "ChainNetwork"]


class ChainBlock(nn.Module):
    """The chosen bottleneck of a block, and the shortcut where shapes allow it.

    Args:
        name: What was chosen; ``"zero"`` makes the block the identity.
        sizes: Channels and stride.
        track_running_stats: Whether batch norms keep running statistics.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 4, 8, 8)
        >>> ChainBlock("zero", BlockSizes(4, 4, 1))(x) is x
        True
    """

    def __init__(self, name: str, sizes: BlockSizes, track_running_stats: bool = True) -> None:
        super().__init__()
        self.name, self.has_shortcut = name, sizes.has_shortcut
        self.op = None if name == "zero" else sizes.layer(name, track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        if self.op is None:
            return x
        return x + self.op(x) if self.has_shortcut else self.op(x)


class ChainNetwork(nn.Module):
    """Stem, one fixed bottleneck, the chosen blocks, a last convolution, classifier.

    Args:
        operations: What was chosen for every block.
        sizes: Widths and strides.

    Attributes:
        operations: As given.

    Shape:
        ``[N, in_channels, H, W]`` -> ``[N, num_classes]``.

    Example:
        >>> import torch
        >>> sizes = ChainSizes(
        ...     in_channels=3, stem=8, stem_stride=1, first=8, widths=(8,), strides=(1,), head=16,
        ...     num_classes=5, track_running_stats=True,
        ... )
        >>> ChainNetwork(["mbconv_5x5_e6"], sizes)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 5])

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, section 4.1.
    """

    def __init__(self, operations: Sequence[str], sizes: ChainSizes) -> None:
        super().__init__()
        self.operations = tuple(operations)
        track = sizes.track_running_stats
        self.stem = stem(sizes)
        self.first = MBConv(sizes.stem, sizes.first, 3, 1, track_running_stats=track)
        self.blocks = nn.ModuleList(
            ChainBlock(name, block, track)
            for name, block in zip(self.operations, sizes.blocks, strict=True)
        )
        self.head = head(sizes)
        self.classifier = nn.Linear(sizes.head, sizes.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits."""
        x = self.first(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.head(x).mean((2, 3)))
