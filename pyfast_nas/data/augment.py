"""Batched augmentation: every function is one tensor expression over the batch, drawn per sample.

Random numbers come from the generator that is handed in, so equal generator states give equal
batches. Nothing here knows which data set it works on.
"""

import torch
from torch import Generator, Tensor

__all__ = ["crop_padding", "cutout", "mixup", "random_crop"]


def crop_padding(image_size: tuple[int, ...]) -> int:
    """Return the padding of a random crop: 4 pixels of 32, and in proportion at other sizes.

    Example:
        >>> crop_padding((32, 32)), crop_padding((8, 8))
        (4, 1)
    """
    return min(image_size) // 8


def random_crop(x: Tensor, padding: int, *, flip: bool, generator: Generator) -> Tensor:
    """Pad each image with zeros, cut it back to its size at a random place, mirror half of them.

    Args:
        x: Raw images, before normalisation, so that the border is black.
        padding: Pixels added on each side, 0 or more.
        flip: Whether each image is mirrored left to right with probability one half.
        generator: Source of the draws, on the device of ``x``.

    Shape:
        x ``[batch, channels, height, width]`` -> the same.

    Example:
        >>> images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
        >>> random_crop(images, 1, flip=False, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([1, 1, 4, 4])

    References:
        Lee et al., "Deeply-Supervised Nets", AISTATS 2015, section 3.1.
    """
    batch, channels, height, width = x.shape
    device = x.device
    draws = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=device)
    rows = draws[0, :, None] + torch.arange(height, device=device)  # [batch, height]
    columns = draws[1, :, None] + torch.arange(width, device=device)  # [batch, width]
    if flip:
        mirrored = torch.rand(batch, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    samples = torch.arange(batch, device=device)[:, None, None, None]
    planes = torch.arange(channels, device=device)[None, :, None, None]
    return padded[samples, planes, rows[:, None, :, None], columns[:, None, None, :]]


def cutout(x: Tensor, size: int, *, generator: Generator) -> Tensor:
    """Set a square of each image to zero; its centre is uniform, its sides are cut at the border.

    Args:
        x: Normalised images, so that zero is the mean colour.
        size: Side of the square in pixels; 0 returns ``x``.
        generator: Source of the draws, on the device of ``x``.

    Shape:
        x ``[batch, channels, height, width]`` -> the same.

    Example:
        >>> holes = cutout(torch.ones(2, 1, 8, 8), 2, generator=torch.Generator().manual_seed(1))
        >>> bool((holes.sum((1, 2, 3)) >= 60).all()), bool((holes.sum((1, 2, 3)) < 64).all())
        (True, True)

    References:
        DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
        2017.
    """
    if size == 0:
        return x
    batch, _, height, width = x.shape

    def outside(length: int) -> Tensor:  # [batch, length]
        centre = torch.randint(length, (batch, 1), generator=generator, device=x.device)
        place = torch.arange(length, device=x.device)
        return (place < centre - size // 2) | (place >= centre - size // 2 + size)

    kept = outside(height)[:, None, :, None] | outside(width)[:, None, None, :]
    return x * kept


def mixup(
    x: Tensor, labels: Tensor, *, strength: float, num_classes: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Blend each sample and its one-hot label with those of another sample of the batch.

    Args:
        x: Samples.
        labels: Their classes.
        strength: Parameter of the Beta(strength, strength) law of the share, above zero.
        num_classes: Length of a one-hot label.
        generator: Source of the draws, on the device of ``x``.

    Shape:
        x ``[batch, ...]``, labels ``[batch]`` -> ``[batch, ...]``, ``[batch, num_classes]``.

    Example:
        >>> x, labels = torch.eye(4), torch.arange(4)
        >>> draws = torch.Generator().manual_seed(0)
        >>> _, soft = mixup(x, labels, strength=0.2, num_classes=4, generator=draws)
        >>> bool(torch.allclose(soft.sum(1), torch.ones(4)))
        True

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    concentration = torch.full((2, len(x)), strength, dtype=torch.float64, device=x.device)
    first, second = torch._standard_gamma(concentration, generator=generator)
    # Two gammas of a small strength can both underflow to zero; such a sample stays as it is.
    share = torch.where(first + second > 0, first / (first + second), torch.ones_like(first))
    share = share.to(x.dtype)
    other = torch.randperm(len(x), generator=generator, device=x.device)
    one_hot = torch.nn.functional.one_hot(labels, num_classes).to(x.dtype)
    share_x = share.view(-1, *(1,) * (x.dim() - 1))
    mixed = share_x * x + (1 - share_x) * x[other]
    return mixed, share[:, None] * one_hot + (1 - share[:, None]) * one_hot[other]
