"""Sizes that a chain can have: checks of the options, widths by a factor, strides by the image."""

from collections.abc import Collection, Sequence
from typing import Any

from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.spaces.sizes import check_count

__all__ = ["check_chain", "fitted_strides", "scaled"]

LEAST_SIDE = 4  # pixels that are left behind all strides
MOST_BLOCKS = 100  # of a stage
MOST_STAGES = 32
LARGEST_FACTOR = 100


def scaled(width: int, factor: float, divisor: int) -> int:
    """Return the multiple of ``divisor`` nearest to a width times a factor.

    As in MobileNet, never one below nine tenths of the product, unless all integers will do.

    Example:
        >>> scaled(24, 0.5, 8), scaled(24, 0.35, 8), scaled(24, 0.35, 1)
        (16, 8, 8)
    """
    exact = factor * width
    nearest = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return nearest + divisor if divisor > 1 and nearest < 0.9 * exact else nearest


def fitted_strides(side: int, strides: Sequence[int], free: Sequence[bool]) -> tuple[int, ...]:
    """Return strides from which the first free ones are dropped, as far as the image is too small.

    Args:
        side: Shorter side of the images.
        strides: 1 or 2, in the order of the layers.
        free: Which of them may be dropped.

    Example:
        >>> fitted_strides(16, (2, 2, 2), (False, True, True))
        (2, 1, 2)
    """
    surplus = list(strides).count(2) - max(0, (side // LEAST_SIDE).bit_length() - 1)
    fitted = []
    for stride, may_go in zip(strides, free, strict=True):
        drop = surplus > 0 and may_go and stride == 2
        surplus -= drop
        fitted.append(1 if drop else stride)
    return tuple(fitted)


def check_chain(where: str, space: Any, known: Collection[str], *, stages: int) -> None:
    """Raise unless the options of a chain space fit each other.

    Args:
        where: Start of the message.
        space: What holds the options.
        known: Names of the widths.
        stages: Stages of the chains that are known by name.

    Raises:
        SearchSpaceError: Naming option, value and range.
    """
    for option in ("num_classes", "in_channels", "divisor"):
        check_count(where, option, getattr(space, option))
    if space.width not in known:
        names = " or ".join(map(repr, known))
        raise SearchSpaceError(f"{where}: width must be {names}, got {space.width!r:.200}")
    factor = space.width_factor
    if type(factor) not in (int, float) or not 0 < factor <= LARGEST_FACTOR:
        raise SearchSpaceError(
            f"{where}: width_factor must be a number above 0 and at most {LARGEST_FACTOR}, "
            f"got {factor!r:.200}"
        )
    if space.stem_stride not in (None, 1, 2):
        raise SearchSpaceError(
            f"{where}: stem_stride must be 1 or 2, got {space.stem_stride!r:.200}"
        )
    count = stages if space.widths is None else _length(where, "widths", space.widths)
    _check_each(where, "widths", space.widths, count, 1 << 16)
    _check_each(where, "blocks", space.blocks, count, MOST_BLOCKS)
    if space.strides is None and count != stages:
        raise SearchSpaceError(
            f"{where}: strides must be given for a chain of {count} stages, since the paper's has "
            f"{stages}, got None"
        )
    _check_each(where, "strides", space.strides, count, 2)
    sides = space.image_size if isinstance(space.image_size, tuple) else (space.image_size,) * 2
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise SearchSpaceError(
            f"{where}: image_size must be at least 1 pixel on both sides, "
            f"got {space.image_size!r:.200}"
        )


def _length(where: str, option: str, values: Any) -> int:
    if not isinstance(values, tuple) or not 1 <= len(values) <= MOST_STAGES:
        raise SearchSpaceError(
            f"{where}: {option} must hold an integer for each of 1 to {MOST_STAGES} stages, "
            f"got {values!r:.200}"
        )
    return len(values)


def _check_each(where: str, option: str, values: Any, count: int, most: int) -> None:
    """Raise unless there is one integer from 1 to ``most`` for each stage, or None."""
    if values is not None and (
        not isinstance(values, tuple)
        or len(values) != count
        or any(type(value) is not int or not 1 <= value <= most for value in values)
    ):
        raise SearchSpaceError(
            f"{where}: {option} must be {count} integers from 1 to {most}, one for each stage, "
            f"got {values!r:.200}"
        )
