"""Chains of inverted bottlenecks: the blocks, the sizes of a chain, and the supernet.

Every block of the chain chooses one bottleneck, or where it has a shortcut none at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import MixedOp, mix_edges
from pyfast_nas.nn.primitives import Zero
from pyfast_nas.nn.supernet import Supernet

__all__ = [
    "BOTTLENECKS",
    "BlockSizes",
    "ChainSizes",
    "ChainSupernet",
    "MBConv",
    "MixedBlock",
    "head",
    "stem",
]

# Name -> kernel size and expansion.
BOTTLENECKS = {f"mbconv_{k}x{k}_e{e}": (k, e) for k in (3, 5, 7) for e in (3, 6)}
_EPS = 1e-3


class MBConv(nn.Sequential):
    """Inverted bottleneck: widen by a 1x1 convolution, filter depthwise, narrow without a ReLU.

    Each convolution has a batch norm that learns, the first two a ReLU6. Without expansion there
    is no first convolution. The shortcut is not in here.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd side of the depthwise window.
        expansion: Width of the middle over that of the input.
        stride: 1 or 2, of the depthwise convolution.
        track_running_stats: Whether batch norms keep running statistics.

    Shape:
        ``[N, in_channels, H, W]`` -> ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.

    Example:
        >>> import torch
        >>> MBConv(8, 12, 5, 3, stride=2)(torch.ones(2, 8, 7, 8)).shape
        torch.Size([2, 12, 4, 4])

    References:
        Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
        section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        expansion: int,
        stride: int = 1,
        track_running_stats: bool = True,
    ) -> None:
        middle, track = expansion * in_channels, track_running_stats
        widen = [] if expansion == 1 else [*_conv_norm(in_channels, middle, 1, track), nn.ReLU6()]
        super().__init__(
            *widen,
            *_conv_norm(middle, middle, kernel_size, track, stride=stride, groups=middle),
            nn.ReLU6(),
            *_conv_norm(middle, out_channels, 1, track),
        )


@dataclass(frozen=True)
class BlockSizes:
    """Channels into and out of a block of a chain, and its stride."""

    in_channels: int
    out_channels: int
    stride: int

    @property
    def has_shortcut(self) -> bool:
        """Whether input and output have one shape, and are added up."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def layer(self, name: str, track_running_stats: bool) -> nn.Module:
        """Return a candidate by its name."""
        if name == "zero":
            return Zero()
        sizes = self.in_channels, self.out_channels
        return MBConv(*sizes, *BOTTLENECKS[name], self.stride, track_running_stats)


@dataclass(frozen=True, kw_only=True)
class ChainSizes:
    """Widths and strides of a chain.

    Args:
        in_channels: Channels of the images.
        stem: Width of the first convolution.
        stem_stride: Its stride.
        first: Width behind the first block, of which there is no choice.
        widths: Width behind every block that is chosen.
        strides: Strides of these blocks.
        head: Width of the last convolution.
        num_classes: Classes of the classifier.
        track_running_stats: Whether batch norms keep running statistics.
    """

    in_channels: int
    stem: int
    stem_stride: int
    first: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    head: int
    num_classes: int
    track_running_stats: bool

    @property
    def blocks(self) -> tuple[BlockSizes, ...]:
        """Sizes of the blocks that are chosen, in order."""
        before = (self.first, *self.widths)
        return tuple(map(BlockSizes, before, self.widths, self.strides))


class MixedBlock(nn.Module):
    """A block of a supernet: mixed bottlenecks, and the shortcut where shapes allow it.

    Args:
        names: Candidates; ``"zero"`` leaves the shortcut alone.
        sizes: Channels and stride.
        track_running_stats: Whether batch norms keep running statistics.

    Example:
        >>> import torch
        >>> block = MixedBlock(["mbconv_3x3_e3", "zero"], BlockSizes(4, 4, 1), False)
        >>> x, gate = torch.ones(2, 4, 8, 8), GateOutput(torch.ones(1, 1), ((1,),))
        >>> bool((block(x, gate, 0) == x).all())
        True
    """

    def __init__(self, names: Sequence[str], sizes: BlockSizes, track_running_stats: bool) -> None:
        super().__init__()
        self.has_shortcut = sizes.has_shortcut
        self.edge = MixedOp({name: sizes.layer(name, track_running_stats) for name in names})

    def forward(self, x: Tensor, gate: GateOutput, row: int) -> Tensor:
        """Run the block under the weights of its row of the table."""
        y = mix_edges([self.edge], [x], gate, row)
        return x + y if self.has_shortcut else y


class ChainSupernet(Supernet):
    """Stem, one fixed bottleneck, a chain of mixed blocks, a last convolution, classifier.

    Args:
        candidates: Rows of the one table, ``"blocks"``.
        sizes: Widths and strides.

    Attributes:
        sizes: As given.

    Shape:
        ``[N, in_channels, H, W]`` -> ``[N, num_classes]``.

    Example:
        >>> import torch
        >>> sizes = ChainSizes(
        ...     in_channels=3, stem=8, stem_stride=1, first=8, widths=(8,), strides=(1,), head=16,
        ...     num_classes=5, track_running_stats=False,
        ... )
        >>> net = ChainSupernet({"blocks": [["mbconv_3x3_e3", "zero"]]}, sizes)
        >>> net(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 5])

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, section 4.1.
    """

    def __init__(
        self, candidates: Mapping[str, Sequence[Sequence[str]]], sizes: ChainSizes
    ) -> None:
        super().__init__(candidates)
        self.sizes, track = sizes, sizes.track_running_stats
        self.stem = stem(sizes)
        self.first = MBConv(sizes.stem, sizes.first, 3, 1, track_running_stats=track)
        self.blocks = nn.ModuleList(
            MixedBlock(names, block, track)
            for names, block in zip(self.candidates["blocks"], sizes.blocks, strict=True)
        )
        self.head = head(sizes)
        self.classifier = nn.Linear(sizes.head, sizes.num_classes)

    def placed_edges(self) -> Iterator[tuple[str, int, MixedOp]]:
        """Yield every mixed operation with the table and the row whose weights it takes."""
        return (("blocks", row, block.edge) for row, block in enumerate(self.blocks))

    def mix(self, x: Tensor, gates: Mapping[str, GateOutput]) -> Tensor:
        """Return the class logits under the given gates."""
        x = self.first(self.stem(x))
        for row, block in enumerate(self.blocks):
            x = block(x, gates["blocks"], row)
        return self.classifier(self.head(x).mean((2, 3)))


def stem(sizes: ChainSizes) -> nn.Sequential:
    """Return the first layers of a chain: a 3x3 convolution, its norm, ReLU6."""
    track = sizes.track_running_stats
    conv_norm = _conv_norm(sizes.in_channels, sizes.stem, 3, track, stride=sizes.stem_stride)
    return nn.Sequential(*conv_norm, nn.ReLU6())


def head(sizes: ChainSizes) -> nn.Sequential:
    """Return what stands between the blocks and the pooling: a 1x1 convolution, norm, ReLU6."""
    width = (sizes.first, *sizes.widths)[-1]
    return nn.Sequential(*_conv_norm(width, sizes.head, 1, sizes.track_running_stats), nn.ReLU6())


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    track: bool,
    *,
    stride: int = 1,
    groups: int = 1,
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return (
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels, eps=_EPS, track_running_stats=track),
    )
