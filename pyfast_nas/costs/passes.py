"""What passes of a model share that is only looked at."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pyfast_nas.errors import ConfigError, Error, SearchSpaceError

__all__ = ["check_shape", "evaluating", "takes"]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards each module is in the mode it was in.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(net):
        ...     inside = [part.training for part in net]
        >>> inside, [part.training for part in net]
        ([False, False], [True, False])
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_shape(input_shape: Sequence[Any], where: str) -> tuple[int, ...]:
    """Return the shape of a batch as a tuple.

    Args:
        input_shape: Sizes, all at least 1.
        where: Who speaks in messages.

    Raises:
        ConfigError: If it is no such shape.

    Example:
        >>> check_shape([1, 3, 32, 32], "count")
        (1, 3, 32, 32)
    """
    shape = tuple(input_shape)
    if not shape or any(type(side) is not int or side < 1 for side in shape):
        raise ConfigError(f"{where}: input_shape must be positive integers, got {shape!r:.200}")
    return shape


@contextlib.contextmanager
def takes(input_shape: Sequence[int], where: str) -> Iterator[None]:
    """Run a pass, and name the shape of its batch where a network does not take it.

    Args:
        input_shape: Shape of the batch.
        where: Who speaks in messages.

    Raises:
        SearchSpaceError: If the pass fails for anything but a lack of memory.
    """
    try:
        yield
    except (Error, torch.OutOfMemoryError):
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if "allocate memory" in str(error):  # of the host, which has no error of its own
            raise
        reason = str(error).partition("\n")[0]
        raise SearchSpaceError(
            f"{where}: input_shape must be that of a batch that the network takes, got "
            f"{list(input_shape)!r:.200}: {reason:.300}"
        ) from error
