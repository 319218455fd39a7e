"""Settings that suit a data set, for every option that the caller leaves open."""

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS", "Preset", "preset"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that suit a data set; what the caller says goes first.

    The defaults of this class are those of the DARTS paper for CIFAR-10.
    """

    channels: int | None = 16
    cells: int | None = 8
    space_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 50
    batch_size: int = 64
    compare: int = 0
    alpha_lr: float | None = None  # None keeps the algorithm's own
    train_channels: int | None = 36
    train_cells: int | None = 20
    train_epochs: int = 600
    train_batch_size: int = 96
    cutout: int = 16
    auxiliary: float = 0.4
    drop_path: float = 0.2


PRESETS = {
    # Small enough for two processor cores and a few minutes. The alphas get about a hundred steps
    # instead of the paper's 19,500 at 3e-4; with this rate they can go as far.
    "digits": Preset(
        channels=8,
        cells=3,
        epochs=10,
        compare=5,
        alpha_lr=0.05,
        train_channels=8,
        train_cells=3,
        train_epochs=10,
        train_batch_size=64,
        cutout=0,
        auxiliary=0.0,
        drop_path=0.0,
    ),
    # The toy space has no width and no depth, and its data are no images.
    "toy": Preset(
        channels=None,
        cells=None,
        epochs=10,
        train_channels=None,
        train_cells=None,
        train_epochs=10,
        train_batch_size=64,
        cutout=0,
        auxiliary=0.0,
        drop_path=0.0,
    ),
}


# A chain has the widths of its stages, in the search and after it.
_CHAIN = dict.fromkeys(("channels", "cells", "train_channels", "train_cells"))

# What is other in the networks of a space than in those of DARTS: for the data sets of `PRESETS`,
# and for all others. Those of NAS-Bench-201 are as large as there, and have none of the rest; those
# of S1 to S4 are by default as large as the supernet, as in the code of RobustDARTS.
_OF_SPACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "proxylessnas": (
        # Eleven blocks of a quarter of the width, for two processor cores and a few minutes.
        _CHAIN | {"space_options": {"width_factor": 0.25, "blocks": (2, 2, 2, 2, 2, 1)}},
        _CHAIN | {"auxiliary": 0.0, "drop_path": 0.0},
    ),
    **dict.fromkeys(("s1", "s2", "s3", "s4"), ({}, {"train_channels": 16, "train_cells": 8})),
    "nas-bench-201": (
        {"cells": 1, "train_cells": 1},
        {
            "cells": 5,
            "train_channels": 16,
            "train_cells": 5,
            "train_epochs": 200,
            "train_batch_size": 256,
            "cutout": 0,
            "auxiliary": 0.0,
            "drop_path": 0.0,
        },
    ),
}


def preset(
    data_name: str, image_size: tuple[int, ...] = (32, 32), space_name: str = "darts"
) -> Preset:
    """Return the settings for a data set and a space, by their names.

    Others than those in :data:`PRESETS` have the settings of the DARTS paper, but images smaller
    than 32 pixels have no auxiliary classifier, which needs as many, and smaller holes. The cells
    of NAS-Bench-201 are those of a stage, and its networks as large as in the benchmark; those of
    S1 to S4 are as large as in the code of RobustDARTS. A chain of ProxylessNAS has the sizes of
    the paper, and smaller ones for the digits.

    Args:
        data_name: Name of the data set.
        image_size: Height and width of its images; ``()`` for samples that are not images.
        space_name: Name of the search space.

    Example:
        >>> preset("cifar10").epochs, preset("digits").compare, preset("mine", (16, 16)).cutout
        (50, 5, 8)
        >>> preset("cifar10", space_name="nas-bench-201").train_cells
        5
    """
    known, others = _OF_SPACES.get(space_name, ({}, {}))
    if data_name in PRESETS:
        return dataclasses.replace(PRESETS[data_name], **known)
    side = min(image_size, default=0)
    small = {} if side >= 32 else {"auxiliary": 0.0, "cutout": side // 2}
    return Preset(**(small | others))
