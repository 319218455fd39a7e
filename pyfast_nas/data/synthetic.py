"""Learnable data made from a seed: for tests, demonstrations and the toy search space."""

import torch
from torch import Generator, Tensor

from pyfast_nas.data.image_data import ImageData, shown
from pyfast_nas.errors import ConfigError

__all__ = ["synthetic_images", "toy_data"]


def toy_data(samples: int = 4096, seed: int = 0) -> ImageData:
    r"""Make the data of the toy search space.

    .. math:: x = 0.5\,y\,\mathbf{1} + \epsilon \in \mathbb{R}^8

    Labels :math:`y` are -1 and 1, kept as classes 0 and 1; the noise is standard normal. One
    fifth as many test samples are drawn alike.

    Args:
        samples: Training samples, at least 2.
        seed: Seed of all draws.

    Shape:
        samples ``[samples, 8]``.

    Example:
        >>> data = toy_data(100)
        >>> data.train_x.shape, data.test_x.shape
        (torch.Size([100, 8]), torch.Size([20, 8]))
    """
    _check_samples("toy_data", samples)
    draws = Generator("cpu").manual_seed(seed)

    def part(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count, device="cpu") % 2
        noise = torch.randn(count, 8, generator=draws, dtype=torch.float32, device="cpu")
        return 0.5 * (2 * labels[:, None] - 1) + noise, labels

    return ImageData.create("toy", part(samples), part(max(2, samples // 5)), num_classes=2)


def synthetic_images(
    samples: int = 512,
    *,
    num_classes: int = 4,
    channels: int = 3,
    size: int = 16,
    noise: float = 0.5,
    seed: int = 0,
) -> ImageData:
    """Make ``uint8`` images that a small network can learn: a smooth pattern a class, plus noise.

    Args:
        samples: Training images, at least two a class; a quarter as many test images come too.
        num_classes: Number of classes, at least 2.
        channels: Channels of an image.
        size: Height and width in pixels, at least 4.
        noise: Standard deviation of the noise in units of the pattern's.
        seed: Seed of all draws.

    Shape:
        samples ``[samples, channels, size, size]``.

    Example:
        >>> data = synthetic_images(64, size=8)
        >>> data.train_x.shape, data.train_x.dtype
        (torch.Size([64, 3, 8, 8]), torch.uint8)
    """
    if num_classes < 2:
        raise ConfigError(
            f"synthetic_images: num_classes must be at least 2, got {shown(num_classes)}"
        )
    if size < 4:
        raise ConfigError(f"synthetic_images: size must be at least 4, got {shown(size)}")
    _check_samples("synthetic_images", samples, 2 * num_classes)
    draws = Generator("cpu").manual_seed(seed)
    shape = (num_classes, channels, 4, 4)
    coarse = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
    patterns = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")

    def part(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count, device="cpu") % num_classes
        shape = (count, channels, size, size)
        grain = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
        pixels = 127.5 + 50 * (patterns[labels] + noise * grain)
        return pixels.round().clamp(0, 255).to(torch.uint8), labels

    test = part(max(num_classes, samples // 4))
    return ImageData.create("synthetic", part(samples), test, num_classes=num_classes)


def _check_samples(function: str, samples: int, least: int = 2) -> None:
    if samples < least:
        raise ConfigError(f"{function}: samples must be at least {least}, got {shown(samples)}")
