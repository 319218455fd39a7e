"""Checks of the sizes that a space of image cells can have."""

from typing import Any

from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn.stem import reduction_cells

__all__ = ["check_auxiliary", "check_count", "check_image", "check_stem"]


def check_count(where: str, option: str, value: Any, most: int | None = None) -> None:
    """Raise unless ``value`` is an integer from 1 to ``most``, which is the number of nodes.

    Raises:
        SearchSpaceError: Naming option, value and range.

    Example:
        >>> check_count("DARTS", "cells", 8)
    """
    if type(value) is not int or value < 1 or (most is not None and value > most):
        span = "at least 1" if most is None else f"from 1 to nodes={most}"
        raise SearchSpaceError(f"{where}: {option} must be an integer {span}, got {value!r:.200}")


def check_stem(where: str, stem: Any, channels: int) -> None:
    """Raise unless the stem is known and can have the given width.

    Raises:
        SearchSpaceError: If it cannot be.

    Example:
        >>> check_stem("DARTS", "imagenet", 16)
    """
    if stem not in ("cifar", "imagenet"):
        raise SearchSpaceError(f"{where}: stem must be 'cifar' or 'imagenet', got {stem!r:.200}")
    if stem == "imagenet" and channels % 2:
        raise SearchSpaceError(
            f"{where}: channels must be even with the imagenet stem, got {channels}"
        )


def check_image(where: str, image_size: Any, stem: str) -> int | tuple[int, int]:
    """Return the size of the images if the network can halve them as often as it does.

    Raises:
        SearchSpaceError: If a side is no multiple of 4, or of 32 with the imagenet stem.

    Example:
        >>> check_image("DARTS", [8, 16], "cifar")
        (8, 16)
    """
    divisor = 4 if stem == "cifar" else 32
    given = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size,) * 2
    if len(given) != 2 or any(type(s) is not int or s < 1 or s % divisor for s in given):
        raise SearchSpaceError(
            f"{where}: image_size must be a multiple of {divisor} on both sides, as they are "
            f"halved {divisor.bit_length() - 1} times, got {image_size!r:.200}"
        )
    return given if isinstance(image_size, tuple | list) else image_size


def check_auxiliary(where: str, image_size: int | tuple[int, int], stem: str, cells: int) -> None:
    """Raise unless the features that the auxiliary head sees are large enough for its pooling.

    Raises:
        SearchSpaceError: Naming the size and what is needed.

    Example:
        >>> check_auxiliary("DARTS.build", 32, "cifar", 20)
    """
    halvings = len(reduction_cells(cells)) + (3 if stem == "imagenet" else 0)
    least = 7 if stem == "imagenet" else 8
    side = min(image_size) if isinstance(image_size, tuple) else image_size
    if side >> halvings < least:
        raise SearchSpaceError(
            f"{where}: auxiliary must be off for images below {least << halvings} pixels, "
            f"got image_size {image_size!r:.200}"
        )
