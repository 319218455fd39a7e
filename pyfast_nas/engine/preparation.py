"""What is prepared before a search or a training: space, algorithm, and a record of the data."""

import dataclasses
import platform
from typing import Any

import torch

from pyfast_nas._version import __version__
from pyfast_nas.algorithms import ALGORITHMS
from pyfast_nas.algorithms.base import SearchAlgorithm
from pyfast_nas.data.image_data import ImageData, shown
from pyfast_nas.engine.config import nearest
from pyfast_nas.engine.presets import preset
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces import SPACES
from pyfast_nas.spaces.base import SearchSpace

__all__ = ["data_record", "fitted_space", "package_record", "preset_algorithm"]


def fitted_space(
    function: str, space: SearchSpace | str, data: ImageData, **sizes: Any
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


def preset_algorithm(name: str, data_name: str) -> SearchAlgorithm:
    """Return the algorithm of a name, with the rate of the alphas that suits a data set.

    Args:
        name: One of :data:`pyfast_nas.algorithms.ALGORITHMS`.
        data_name: Name of the data set; see :func:`pyfast_nas.engine.preset`.

    Raises:
        ConfigError: If no algorithm has that name; the message gives the nearest.

    Example:
        >>> [preset_algorithm("darts", data).alpha_lr for data in ("cifar10", "digits")]
        [0.0003, 0.05]
    """
    if name not in ALGORITHMS:
        raise ConfigError(
            f"search: unknown algorithm {shown(name)}{nearest(name, list(ALGORITHMS))}"
        )
    kind, rate = ALGORITHMS[name], preset(data_name).alpha_lr
    has_rate = any(field.name == "alpha_lr" for field in dataclasses.fields(kind))
    return kind(alpha_lr=rate) if rate is not None and has_rate else kind()


def data_record(data: ImageData) -> dict[str, Any]:
    """Return what a run keeps about its data, as JSON values."""
    return {
        "name": data.name,
        "train": len(data.train_y),
        "test": len(data.test_y),
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "image": [data.in_channels, *data.image_size],
        # A trained network takes (x / scale - mean) / std, wherever it is loaded.
        "scale": data.scale,
        "mean": list(data.mean),
        "std": list(data.std),
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
