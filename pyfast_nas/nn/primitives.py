"""Candidate operations by name, built for a width and a stride. No weights of the mix live here.

All ReLUs are out of place: an edge's input is shared by all its candidates.
"""

import difflib
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn

from pyfast_nas.errors import SearchSpaceError

__all__ = [
    "PRIMITIVES",
    "DilConv",
    "FactorizedReduce",
    "Noise",
    "PoolBN",
    "ReLUConvBN",
    "SepConv",
    "SkipConnect",
    "Zero",
    "check_operations",
]


class Zero(nn.Module):
    """The operation ``none``: zeros of the strided shape.

    Zeros are written, not computed as ``x * 0``, so NaN and infinity do not pass.

    Shape:
        ``[N, C, H, W]`` -> ``[N, C, ceil(H / stride), ceil(W / stride)]``; with stride 1 any shape.

    Example:
        >>> Zero(stride=2)(torch.full((1, 2, 5, 4), float("nan"))).shape
        torch.Size([1, 2, 3, 2])
    """

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride])

    def extra_repr(self) -> str:
        """Show the stride."""
        return f"stride={self.stride}"


class Noise(nn.Module):
    """Standard normal noise of the strided shape, fresh in every call; nothing of the input counts.

    It is drawn as dropout draws, from torch's generator of the input's device: what gives that
    back, as a step of the architecture does, gives these draws back too. Values do not depend on
    the memory layout of the input. Evaluation draws as training does.

    Shape:
        ``[N, C, H, W]`` -> ``[N, C, ceil(H / stride), ceil(W / stride)]``; with stride 1 any shape.

    Example:
        >>> x = torch.full((1, 2, 5, 4), float("nan"), requires_grad=True)
        >>> y = Noise(stride=2)(x)
        >>> y.shape, bool(y.isfinite().all()), y.requires_grad
        (torch.Size([1, 2, 3, 2]), True, False)

    References:
        Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020,
        section 3 (space S4).
    """

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return noise."""
        like = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        return torch.randn(like.shape, dtype=x.dtype, device=x.device)

    def extra_repr(self) -> str:
        """Show the stride."""
        return f"stride={self.stride}"


class SkipConnect(nn.Module):
    """The identity, as a candidate of stride 1.

    Attributes:
        drop_block: Regulariser applied to the output while training, or None.

    Example:
        >>> skip, x = SkipConnect(), torch.ones(1, 2, 4, 4)
        >>> skip(x) is x
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.drop_block: Callable[[Tensor], Tensor] | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the output is the input as of now; a ``drop_block`` may say ``is_active``."""
        block = self.drop_block
        return block is None or not self.training or not getattr(block, "is_active", True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, through ``drop_block`` while training."""
        return x if self.is_identity else self.drop_block(x)


class FactorizedReduce(nn.Module):
    """Halve the image by two shifted 1x1 convolutions that together see every pixel row.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, even.
        affine: Whether the batch norm learns a scale and a shift.
        track_running_stats: Whether the batch norm keeps running statistics.

    Shape:
        ``[N, in_channels, H, W]`` with even H and W -> ``[N, out_channels, H / 2, W / 2]``.

    Raises:
        SearchSpaceError: If ``out_channels``, or a side of the image, is odd.

    Example:
        >>> FactorizedReduce(3, 4)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 4, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        if out_channels % 2:
            raise SearchSpaceError(
                f"FactorizedReduce: out_channels must be even, got {out_channels}"
            )
        half = out_channels // 2
        self.relu = nn.ReLU()
        self.conv0 = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.conv1 = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.bn = _bn(out_channels, affine, track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        """Return the halved image."""
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise SearchSpaceError(
                f"FactorizedReduce: the sides of the image must be even, "
                f"got {x.shape[-2]} x {x.shape[-1]}"
            )
        x = self.relu(x)
        return self.bn(torch.cat([self.conv0(x), self.conv1(x[:, :, 1:, 1:])], dim=1))


class ReLUConvBN(nn.Sequential):
    """ReLU, a full convolution, batch norm: by default 1x1, as it fits a cell's input to its width.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        affine: Whether the batch norm learns a scale and a shift.
        track_running_stats: Whether the batch norm keeps running statistics.
        kernel_size: Odd side of the window.
        stride: 1 or 2.
        bias: Whether the convolution has a bias.

    Example:
        >>> ReLUConvBN(3, 8)(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        bias: bool = False,
    ) -> None:
        padding = kernel_size // 2
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias),
            _bn(out_channels, affine, track_running_stats),
        )


class SepConv(nn.Sequential):
    """Twice ReLU, depthwise k x k, pointwise, batch norm; the stride is in the first half.

    Example:
        >>> SepConv(4, 3, stride=2)(torch.ones(2, 4, 8, 8)).shape
        torch.Size([2, 4, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(
            *_depthwise(channels, kernel_size, stride, 1, affine, track_running_stats),
            *_depthwise(channels, kernel_size, 1, 1, affine, track_running_stats),
        )


class DilConv(nn.Sequential):
    """ReLU, depthwise k x k with dilation 2, pointwise, batch norm.

    Example:
        >>> DilConv(4, 5)(torch.ones(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(*_depthwise(channels, kernel_size, stride, 2, affine, track_running_stats))


class PoolBN(nn.Sequential):
    """3x3 pooling followed by a batch norm without scale and shift, as in the supernet.

    Args:
        kind: ``"max"`` or ``"avg"``; padding does not count in the mean.
        channels: Channels of the input.
        stride: 1 or 2.
        track_running_stats: Whether the batch norm keeps running statistics.

    Example:
        >>> PoolBN("avg", 4, stride=2)(torch.ones(2, 4, 8, 8)).shape
        torch.Size([2, 4, 4, 4])
    """

    def __init__(
        self, kind: str, channels: int, stride: int = 1, track_running_stats: bool = True
    ) -> None:
        super().__init__(pool(kind, stride), _bn(channels, False, track_running_stats))


def pool(kind: str, stride: int) -> nn.Module:
    """Return the plain 3x3 pooling layer of ``kind`` ``"max"`` or ``"avg"``."""
    if kind == "max":
        return nn.MaxPool2d(3, stride=stride, padding=1)
    return nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)


def _bn(channels: int, affine: bool, track_running_stats: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=affine, track_running_stats=track_running_stats)


def _depthwise(
    channels: int, kernel_size: int, stride: int, dilation: int, affine: bool, track: bool
) -> list[nn.Module]:
    padding = dilation * (kernel_size - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=channels,
            bias=False,
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        _bn(channels, affine, track),
    ]


def _skip(channels: int, stride: int, affine: bool, track: bool) -> nn.Module:
    return SkipConnect() if stride == 1 else FactorizedReduce(channels, channels, affine, track)


# Name -> factory(channels, stride, affine, track_running_stats), as the supernet uses them.
PRIMITIVES: dict[str, Callable[[int, int, bool, bool], nn.Module]] = {
    "none": lambda c, s, affine, track: Zero(s),
    "noise": lambda c, s, affine, track: Noise(s),
    "max_pool_3x3": lambda c, s, affine, track: PoolBN("max", c, s, track),
    "avg_pool_3x3": lambda c, s, affine, track: PoolBN("avg", c, s, track),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda c, s, affine, track: SepConv(c, 3, s, affine, track),
    "sep_conv_5x5": lambda c, s, affine, track: SepConv(c, 5, s, affine, track),
    "sep_conv_7x7": lambda c, s, affine, track: SepConv(c, 7, s, affine, track),
    "dil_conv_3x3": lambda c, s, affine, track: DilConv(c, 3, s, affine, track),
    "dil_conv_5x5": lambda c, s, affine, track: DilConv(c, 5, s, affine, track),
}


def check_operations(
    where: str, names: Iterable[str], known: Collection[str] = (), nothing: str = "none"
) -> tuple[str, ...]:
    """Return the names of one edge's candidates, or say what is wrong with them.

    Args:
        where: Start of the message, such as ``"DARTS: operations"``.
        names: Names of `PRIMITIVES`, or of others.
        known: These others.
        nothing: Which of them is no operation.

    Raises:
        SearchSpaceError: If a name is unknown or doubled, or nothing but ``nothing`` is left.

    Example:
        >>> check_operations("DARTS: operations", ["none", "skip_connect"])
        ('none', 'skip_connect')
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise SearchSpaceError(f"{where} must be a sequence of names, got {names!r:.200}")
    names, known = tuple(names), known or PRIMITIVES
    for name in names:
        if not isinstance(name, str) or name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.0)
            raise SearchSpaceError(
                f"{where} must be known operations, got {name!r:.200}; nearest: {', '.join(near)}"
            )
        if names.count(name) > 1:
            raise SearchSpaceError(f"{where} must differ from each other, got {name!r} twice")
    if not names:
        raise SearchSpaceError(f"{where} must not be empty, got {names!r}")
    if set(names) == {nothing}:
        raise SearchSpaceError(f"{where} must hold more than {nothing!r}, got only {nothing!r}")
    return names
