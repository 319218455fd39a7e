"""What a search and a training prepare alike: space, data and a record of both."""

import dataclasses
import platform
from typing import Any

import torch

from pyfast_nas._version import __version__
from pyfast_nas.data.image_data import ImageData, shown
from pyfast_nas.engine.config import nearest
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces import SPACES
from pyfast_nas.spaces.base import SearchSpace

__all__ = ["data_record", "fitted_space", "package_record"]


def fitted_space(
    function: str, space: SearchSpace | str, data: ImageData, **sizes: int | None
) -> SearchSpace:
    """Return a space fitted to a data set; a name makes one of the given sizes.

    Args:
        function: Who speaks in messages.
        space: A space, or the name of one.
        data: What will be searched or trained on.
        sizes: Options of a space made from its name; ``None`` keeps the space's default.

    Raises:
        ConfigError: If no space has that name, or ``space`` is not one.
        SearchSpaceError: If the space cannot take such data.

    Example:
        >>> from pyfast_nas.data import load_data
        >>> space = fitted_space("search", "darts", load_data("digits"), channels=4)
        >>> space.channels, space.in_channels, space.image_size
        (4, 1, (8, 8))
    """
    if isinstance(space, str):
        if space not in SPACES:
            raise ConfigError(
                f"{function}: unknown space {shown(space)}{nearest(space, list(SPACES))}"
            )
        known = {field.name for field in dataclasses.fields(SPACES[space])}
        given = {name: size for name, size in sizes.items() if size is not None and name in known}
        space = SPACES[space](**given)
    if not hasattr(space, "with_data"):
        raise ConfigError(
            f"{function}: space must be a search space or one of {', '.join(sorted(SPACES))}, "
            f"got {type(space).__name__}"
        )
    return space.with_data(data.in_channels, data.num_classes, data.image_size)


def data_record(data: ImageData) -> dict[str, Any]:
    """Return what a run keeps about its data, as JSON values."""
    return {
        "name": data.name,
        "train": len(data.train_y),
        "test": len(data.test_y),
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "image": [data.in_channels, *data.image_size],
        "notes": list(data.notes),
        "fingerprint": data.fingerprint,
    }


def package_record() -> dict[str, Any]:
    """Return which versions a run uses, as JSON values."""
    return {
        "package": "pyfast_nas",
        "version": __version__,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pyfast_nas": __version__,
        },
    }
