"""What supernets and derived networks of cells share around their cells: stem and depth plan."""

from torch import Tensor, nn

__all__ = ["Stem", "reduction_cells"]


class Stem(nn.Module):
    """First layers of a network of cells: give the two inputs of the first cell.

    Args:
        kind: ``"cifar"`` (one 3x3 convolution) or ``"imagenet"`` (three of stride 2).
        in_channels: Channels of the images.
        channels: Channels of both outputs.
        track_running_stats: Whether batch norms keep running statistics.

    Shape:
        ``[N, in_channels, H, W]`` -> twice ``[N, channels, H, W]`` (cifar), or
        ``[N, channels, H / 4, W / 4]`` and ``[N, channels, H / 8, W / 8]`` (imagenet).
    """

    def __init__(
        self, kind: str, in_channels: int, channels: int, track_running_stats: bool = True
    ) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(c_out, track_running_stats=track_running_stats),
            ]

        if kind == "cifar":
            self.stem0 = nn.Sequential(*conv(in_channels, channels, 1))
            self.stem1 = nn.Identity()
        else:
            half = channels // 2
            self.stem0 = nn.Sequential(
                *conv(in_channels, half, 2), nn.ReLU(), *conv(half, channels, 2)
            )
            self.stem1 = nn.Sequential(nn.ReLU(), *conv(channels, channels, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the older and the newer input of the first cell."""
        s0 = self.stem0(x)
        return s0, self.stem1(s0)


def reduction_cells(cells: int) -> tuple[int, ...]:
    """Return the places of the reduction cells: at a third and at two thirds of the depth.

    Example:
        >>> reduction_cells(8), reduction_cells(1)
        ((2, 5), (0,))
    """
    return tuple(sorted({cells // 3, 2 * cells // 3}))
