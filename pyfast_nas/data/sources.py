"""From whatever names or holds a data set to :class:`ImageData`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pyfast_nas.data.cifar import load_cifar10, load_cifar100
from pyfast_nas.data.digits import load_digits
from pyfast_nas.data.image_data import ImageData, hold_out, shown
from pyfast_nas.data.synthetic import toy_data
from pyfast_nas.errors import ConfigError, DataError

__all__ = ["DATA_SETS", "load_data"]

DATA_SETS = {
    "digits": load_digits,
    "toy": toy_data,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
_WITH_PATH = ("cifar10", "cifar100")
_FORMS = "'digits', 'toy', 'cifar10:FOLDER' or 'cifar100:FOLDER'"


def load_data(source: Any, *, name: str = "custom", num_classes: int | None = None) -> ImageData:
    """Load a data set by name, or check and take over one that is in memory.

    Args:
        source: One of

            - ``"digits"``, ``"toy"``, ``"cifar10:FOLDER"``, ``"cifar100:FOLDER"``;
            - ``((x, y), (x_test, y_test))``, or ``(x, y)``, of which one sample in five is kept
              for testing;
            - a map-style ``Dataset`` of ``(sample, label)``, or a pair of them for training and
              test. It is read once, so its random transforms are drawn once;
            - an :class:`ImageData`, returned as it is.
        name: What data from memory are called in reports.
        num_classes: Classes of data from memory; by default one more than the largest label.

    Raises:
        ConfigError: If ``source`` is none of these.
        DataError: If files or tensors are not what they ought to be.

    Example:
        >>> load_data("digits").num_classes
        10
        >>> x, y = torch.rand(40, 3, 16, 16), torch.arange(40) % 4
        >>> data = load_data((x, y))
        >>> len(data.train_x), len(data.test_x), data.notes
        (32, 8, ('no test samples were given: 8 of 40 samples are kept for testing',))
    """
    if isinstance(source, ImageData):
        return source
    if isinstance(source, str):
        return _load_named(source)
    if _is_dataset(source):
        source = _read_dataset(source, "data")
    if not isinstance(source, Sequence) or len(source) != 2:
        raise ConfigError(
            f"load_data: source must be {_FORMS}, (x, y), ((x, y), (x_test, y_test)), a map-style "
            f"Dataset or a pair of them, got {_kind(source)}"
        )
    first, second = source
    notes: tuple[str, ...] = ()
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        train, test = _split(first, second)
        kept, total = len(test[0]), len(first)
        notes = (f"no test samples were given: {kept} of {total} samples are kept for testing",)
    else:
        train, test = _part(first, "train"), _part(second, "test")
    return ImageData.create(name, train, test, num_classes=num_classes, notes=notes)


def _load_named(source: str) -> ImageData:
    kind, colon, folder = source.partition(":")
    if kind not in DATA_SETS or bool(colon) != (kind in _WITH_PATH) or (colon and not folder):
        raise ConfigError(f"load_data: source must be {_FORMS}, got {shown(source)}")
    return DATA_SETS[kind](Path(folder)) if colon else DATA_SETS[kind]()


def _split(x: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if y.dim() != 1 or len(x) != len(y):
        raise DataError(
            f"data: labels must have shape [{len(x)}], one a sample, got {list(y.shape)}"
        )
    x, y = x.detach().cpu(), y.detach().cpu()
    train, test = hold_out(x, y)
    if not len(test[0]):
        raise DataError(
            f"data: (x, y) must hold at least 5 samples of a class, got {len(x)} samples in all"
        )
    return train, test


def _part(part: Any, where: str) -> tuple[Tensor, Tensor]:
    if _is_dataset(part):
        return _read_dataset(part, where)
    if isinstance(part, Sequence) and not isinstance(part, str) and len(part) == 2:
        return part[0], part[1]
    raise DataError(f"{where}: must be (samples, labels) or a map-style Dataset, got {_kind(part)}")


def _is_dataset(source: Any) -> bool:
    is_map = isinstance(source, Dataset) or (
        hasattr(source, "__getitem__") and hasattr(source, "__len__")
    )
    is_plain = isinstance(source, str | bytes | Sequence | dict | Tensor | np.ndarray)
    return is_map and not is_plain


def _read_dataset(dataset: Any, where: str) -> tuple[Tensor, Tensor]:
    """Read every item of a map-style data set into two tensors."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(f"{where}: must be a map-style Dataset with a length, got {_kind(dataset)}")
    samples, labels = [], []
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
            raise DataError(f"{where}[{index}] must be (sample, label), got {_kind(item)}")
        sample = _to_tensor(item[0], f"{where}[{index}] sample")
        if samples and (sample.shape != samples[0].shape or sample.dtype != samples[0].dtype):
            raise DataError(
                f"{where}[{index}] sample must be {list(samples[0].shape)} {samples[0].dtype} like "
                f"the first, got {list(sample.shape)} {sample.dtype}"
            )
        label = _to_tensor(item[1], f"{where}[{index}] label")
        if label.numel() != 1 or label.dtype.is_floating_point or label.dtype.is_complex:
            raise DataError(f"{where}[{index}] label must be one integer, got {shown(item[1])}")
        samples.append(sample)
        labels.append(int(label))
    if not samples:
        raise DataError(f"{where}: must hold at least one sample, got an empty Dataset")
    return torch.stack(samples), torch.tensor(labels, device="cpu")


def _to_tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    is_picture = not isinstance(value, np.ndarray) and hasattr(value, "__array_interface__")
    try:
        tensor = torch.from_numpy(np.array(value))
    except (TypeError, ValueError):
        raise DataError(f"{where} must be a tensor, array or number, got {_kind(value)}") from None
    # Pictures of imaging libraries have their channels last.
    return tensor.movedim(2, 0) if is_picture and tensor.dim() == 3 else tensor


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
