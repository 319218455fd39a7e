"""Options of a search and of a training, with the range of each."""

import dataclasses
import difflib
import os
from typing import Annotated, Any, Literal, Self

import torch

from pyfast_nas.algorithms.options import Range, check_options, require_read
from pyfast_nas.data.image_data import shown
from pyfast_nas.engine.presets import Preset, preset
from pyfast_nas.errors import ConfigError

__all__ = ["SearchConfig", "TrainConfig", "nearest", "run_device"]

_Count = Annotated[int | None, Range(at_least=1)]
_OF_COMPARISON = ("train_epochs", "train_channels", "train_cells", "train_batch_size")


@dataclasses.dataclass(kw_only=True)
class SearchConfig:
    """Options of a search. ``None`` takes the preset of the data set.

    Example:
        >>> SearchConfig(epochs=5, seed=3).resolved("digits").batch_size
        64
    """

    epochs: Annotated[int | None, Range(at_least=0)] = None
    """Epochs of the search; 0 derives from the initial architecture parameters, untrained."""

    batch_size: _Count = None
    """Images in a training batch and in a validation batch."""

    valid_fraction: Annotated[float, Range(above=0, below=1)] = 0.5
    """Share of the training images that the architecture parameters are fitted on."""

    augment: bool = True
    """Crop images at random places, and mirror them where that keeps the class."""

    seed: Annotated[int, Range(at_least=0, at_most=2**63 - 1)] = 0
    """Seed of everything random: one seed, one result."""

    device: str = "auto"
    """Where to compute: 'cpu', 'cuda', 'cuda:1', or 'auto' for a GPU if there is one."""

    graph: bool = True
    """On a GPU, record the step as a CUDA graph where that can be, and replay it."""

    log_interval: Annotated[int, Range(at_least=1)] = 20
    """Steps between two lines of metrics, and between two looks for divergence."""

    collapse_limit: Annotated[float, Range(above=0, at_most=1)] = 0.5
    """Share of skip connections in a cell above which a collapse is reported."""

    stop_on_collapse: bool = False
    """End the search at the epoch in which a cell collapses."""

    curvature_interval: Annotated[int, Range(at_least=0)] = 0
    """Epochs between two measurements of the architecture Hessian's largest eigenvalue; 0: none."""

    curvature_action: Literal["watch", "stop", "go_back"] = "watch"
    """What to do when it grows: nothing, end with an earlier architecture, or go back there and on
    with a larger weight decay."""

    compare: Annotated[int | None, Range(at_least=0)] = None
    """Random architectures to train for comparison with the found one; 0 trains nothing."""

    compare_seeds: Annotated[int, Range(at_least=1)] = 3
    """Times the found architecture is trained, each from another seed."""

    train_epochs: _Count = None
    """Epochs of each training of the comparison."""

    train_channels: _Count = None
    """Initial channels of the networks of the comparison."""

    train_cells: _Count = None
    """Cells of the networks of the comparison."""

    train_batch_size: _Count = None
    """Images in a batch of the comparison."""

    table: str | None = None
    """File with the accuracies of every architecture of the space, to look up the found one."""

    table_columns: tuple[str, str] | None = None
    """Columns of the table: validation and test accuracy; by default those of the data set."""

    pareto_cost: str = "auto"
    """Cost that accuracies are held against at the end: 'parameters', 'multiply-adds', 'latency' on
    the device of the search, the file of a cost table, 'none', or 'auto' for the algorithm's."""

    pareto_samples: Annotated[int, Range(at_least=0)] = 32
    """Architectures drawn from the final probabilities, beside those that the epochs derived."""

    pareto_images: Annotated[int, Range(at_least=1)] = 1024
    """Validation images that each of them is scored on, in whole batches."""

    output: str | None = None
    """Folder for the files of the run; none are written without it."""

    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""

    def __post_init__(self) -> None:
        _check(self)
        read = {"curvature_action": self.curvature_interval > 0}
        require_read(self, read, f"curvature_interval={self.curvature_interval}")
        if self.table_columns is not None and self.table is None:
            raise ConfigError("SearchConfig: table_columns must go with a table, got none")

    @classmethod
    def from_options(cls, config: Self | None, options: dict[str, Any]) -> Self:
        """Merge keyword options into a configuration; an unknown one raises, with the nearest.

        Raises:
            ConfigError: If an option is unknown or a value is out of range.

        Example:
            >>> SearchConfig.from_options(None, {"epoch": 3})
            Traceback (most recent call last):
            ...
            pyfast_nas.errors.ConfigError: search: unknown option 'epoch'; did you mean 'epochs'?
        """
        return _merged(cls, "search", config, options)

    def resolved(
        self,
        data_name: str,
        image_size: tuple[int, ...] = (32, 32),
        space_name: str = "darts",
    ) -> Self:
        """Return a copy in which the preset of data set and space stands for every ``None``.

        Raises:
            ConfigError: If an option of the comparison is given and nothing is compared.
        """
        chosen = preset(data_name, image_size, space_name)
        resolved = _resolved(self, chosen)
        if not resolved.compare:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            for name in ("compare_seeds", *_OF_COMPARISON):
                usual = getattr(chosen, name, defaults[name])
                if getattr(resolved, name) != usual:
                    raise ConfigError(
                        f"SearchConfig: {name} must be {usual} with compare=0, where nothing reads "
                        f"it, got {getattr(self, name)!r}"
                    )
        return resolved


@dataclasses.dataclass(kw_only=True)
class TrainConfig:
    """Options of the training of one network. ``None`` takes the preset of the data set.

    The defaults are those of the DARTS paper and code for CIFAR-10.

    Example:
        >>> TrainConfig().resolved("cifar10").epochs, TrainConfig().resolved("digits").cutout
        (600, 0)
        >>> TrainConfig(mixup=-1)
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.ConfigError: TrainConfig: mixup must be a finite number at least 0, got -1
    """

    channels: _Count = None
    """Initial channels of the network."""

    cells: _Count = None
    """Cells of the network."""

    epochs: Annotated[int | None, Range(at_least=0)] = None
    """Passes over the training images."""

    batch_size: _Count = None
    """Images in a batch."""

    learning_rate: Annotated[float, Range(above=0)] = 0.025
    """Learning rate of SGD in the first epoch; it falls to 0 along a cosine."""

    momentum: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Momentum of SGD."""

    weight_decay: Annotated[float, Range(at_least=0)] = 3e-4
    """L2 penalty."""

    gradient_clip: Annotated[float, Range(above=0)] = 5.0
    """Largest global norm of the gradient."""

    augment: bool = True
    """Crop images at random places, and mirror them where that keeps the class."""

    cutout: Annotated[int | None, Range(at_least=0)] = None
    """Side of the square blanked in each image, in pixels; 0 for none."""

    mixup: Annotated[float, Range(at_least=0)] = 0.0
    """Strength of mixup, the parameter of its Beta law; 0 for none."""

    auxiliary: Annotated[float | None, Range(at_least=0)] = None
    """Weight of the auxiliary classifier's loss; 0 for no such classifier."""

    drop_path: Annotated[float | None, Range(at_least=0, below=1)] = None
    """Probability of dropping a path in the last epoch; it grows from 0 in proportion."""

    seed: Annotated[int, Range(at_least=0, at_most=2**63 - 1)] = 0
    """Seed of everything random."""

    device: str = "auto"
    """Where to compute: 'cpu', 'cuda', 'cuda:1', or 'auto' for a GPU if there is one."""

    log_interval: Annotated[int, Range(at_least=1)] = 50
    """Steps between two looks for divergence and two messages to the progress display."""

    output: str | None = None
    """Folder for the trained network and the files of the run; none are written without it."""

    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_options(cls, config: Self | None, options: dict[str, Any]) -> Self:
        """Merge keyword options into a configuration; an unknown one raises, with the nearest."""
        return _merged(cls, "train", config, options)

    def resolved(
        self,
        data_name: str,
        image_size: tuple[int, ...] = (32, 32),
        space_name: str = "darts",
    ) -> Self:
        """Return a copy in which the preset of data set and space stands for every ``None``."""
        chosen = preset(data_name, image_size, space_name)
        trained = {
            name: getattr(chosen, f"train_{name}")
            for name in ("channels", "cells", "epochs", "batch_size")
        }
        return _resolved(self, dataclasses.replace(chosen, **trained))


def nearest(name: str, known: list[str]) -> str:
    """Return the end of a message about an unknown name: what was probably meant.

    Example:
        >>> nearest("dart", ["darts", "random"])
        "; did you mean 'darts'?"
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def run_device(name: str) -> torch.device:
    """Return the device of an option's value, if this machine has it.

    Raises:
        ConfigError: If there is no such device; the message says what there is.

    Example:
        >>> run_device("cpu")
        device(type='cpu')
    """
    count = torch.cuda.device_count() if name != "cpu" else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "cpu":
        return torch.device("cpu")
    if device is None or device.type != "cuda" or (device.index or 0) >= count:
        there = ["'cpu'", *(f"'cuda:{index}'" for index in range(count))]
        raise ConfigError(f"device must be 'auto' or one of {', '.join(there)}, got {shown(name)}")
    return device


def _check(config: Any) -> None:
    for name in ("output", "table", "pareto_cost"):
        if isinstance(getattr(config, name, None), os.PathLike):
            setattr(config, name, os.fspath(getattr(config, name)))
    check_options(config)


def _merged(cls: type, function: str, config: Any, options: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            raise ConfigError(f"{function}: unknown option {name!r}{nearest(name, known)}")
    if config is not None and not isinstance(config, cls):
        raise ConfigError(
            f"{function}: config must be a {cls.__name__}, got {type(config).__name__}"
        )
    return dataclasses.replace(config or cls(), **options)


def _resolved(config: Any, chosen: Preset) -> Any:
    missing = {
        field.name: getattr(chosen, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is None and hasattr(chosen, field.name)
    }
    return dataclasses.replace(config, **missing)
