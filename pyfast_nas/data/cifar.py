"""Readers for CIFAR-10 and CIFAR-100 as published; what is missing is said, not fetched."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfast_nas.data.image_data import ImageData, shown
from pyfast_nas.data.plain_pickle import read_bytes, read_plain_pickle
from pyfast_nas.errors import DataError

__all__ = ["load_cifar10", "load_cifar100"]

_PIXELS = 3 * 32 * 32  # red, green and blue plane, each row by row
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


def load_cifar10(folder: Path | str) -> ImageData:
    """Read CIFAR-10 from a folder in the python or the binary layout.

    Takes the training batches that are there; a set that is not whole is named in ``notes``.

    Args:
        folder: ``cifar-10-batches-py``, ``cifar-10-batches-bin``, or the folder that holds one.

    Raises:
        DataError: If a file is missing, unreadable or not what its name says.

    Example:
        >>> load_cifar10("/nowhere")
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.DataError: '/nowhere': No such directory

    References:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    folder = _find(folder, ("cifar-10-batches-py", "cifar-10-batches-bin"))
    if any((folder / name).exists() for name in (*_BATCHES, "test_batch")):
        present = _present(folder, _BATCHES)
        train = [_read_python(path, b"labels", 10) for path in present]
        test = _read_python(folder / "test_batch", b"labels", 10)
        names = _python_names(folder / "batches.meta", "label_names")
    elif any((folder / f"{name}.bin").exists() for name in (*_BATCHES, "test_batch")):
        present = _present(folder, tuple(f"{name}.bin" for name in _BATCHES))
        train = [_read_binary(path, 1, 10) for path in present]
        test = _read_binary(folder / "test_batch.bin", 1, 10)
        names = _text_names(folder / "batches.meta.txt")
    else:
        raise DataError(
            f"{shown(str(folder))}: holds no CIFAR-10 files (data_batch_1 to data_batch_5 and "
            "test_batch, with or without .bin)"
        )
    merged = _merge(train)
    notes = ()
    if len(merged[1]) != 50_000:
        notes = (f"{len(present)} of 5 training batches: {len(merged[1])} of 50000 images",)
    return ImageData.create(
        "cifar10",
        merged,
        _merge([test]),
        num_classes=10,
        class_names=names,
        mean=(0.49139968, 0.48215827, 0.44653124),
        std=(0.24703233, 0.24348505, 0.26158768),
        flip=True,
        notes=(*notes, *_test_note(len(test[1]))),
    )


def load_cifar100(folder: Path | str) -> ImageData:
    """Read CIFAR-100 with its 100 fine classes from a folder in the python or the binary layout.

    Args:
        folder: ``cifar-100-python``, ``cifar-100-binary``, or the folder that holds one.

    Raises:
        DataError: If a file is missing, unreadable or not what its name says.

    Example:
        >>> load_cifar100("/nowhere")
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.DataError: '/nowhere': No such directory

    References:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    folder = _find(folder, ("cifar-100-python", "cifar-100-binary"))
    if (folder / "train").exists() or (folder / "test").exists():
        train, test = (
            _read_python(folder / part, b"fine_labels", 100) for part in ("train", "test")
        )
        names = _python_names(folder / "meta", "fine_label_names")
    elif (folder / "train.bin").exists() or (folder / "test.bin").exists():
        train, test = (_read_binary(folder / f"{part}.bin", 2, 100) for part in ("train", "test"))
        names = _text_names(folder / "fine_label_names.txt")
    else:
        raise DataError(
            f"{shown(str(folder))}: holds no CIFAR-100 files (train and test, with or without .bin)"
        )
    count = len(train[1])
    notes = () if count == 50_000 else (f"training set: {count} of 50000 images",)
    return ImageData.create(
        "cifar100",
        _merge([train]),
        _merge([test]),
        num_classes=100,
        class_names=names,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
        notes=(*notes, *_test_note(len(test[1]))),
    )


def _find(folder: Path | str, official: tuple[str, ...]) -> Path:
    """Return the folder itself, or the one of an official name inside it."""
    folder = Path(folder)
    try:
        if not folder.is_dir():
            finding = "not a directory" if folder.exists() else "No such directory"
            raise DataError(f"{shown(str(folder))}: {finding}")
        inside = [folder / name for name in official if (folder / name).is_dir()]
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shown(str(folder))}: {error}") from error
    return inside[0] if inside else folder


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    present = [folder / name for name in names if (folder / name).exists()]
    if not present:
        raise DataError(f"{shown(str(folder))}: holds none of the training batches {names[0]} to 5")
    return present


def _read_python(path: Path, key: bytes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one pickled batch: pixels ``[rows, 3072]`` and labels ``[rows]``."""
    batch: dict[str, Any] = read_plain_pickle(path)
    name = key.decode()
    pixels, labels = batch.get("data"), batch.get(name)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        found = list(pixels.shape) if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{shown(str(path))}: 'data' must be bytes [rows, {_PIXELS}], got {found}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{shown(str(path))}: {name!r} must be a list of integers")
    if len(labels) != len(pixels):
        raise DataError(
            f"{shown(str(path))}: {len(pixels)} images but {len(labels)} entries of {name!r}"
        )
    return pixels, _check_labels(path, np.array(labels, np.int64), num_classes)


def _read_binary(path: Path, label_bytes: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read rows of label bytes and pixels; the last label byte is the class."""
    content = read_bytes(path)
    row = label_bytes + _PIXELS
    if len(content) % row:
        raise DataError(
            f"{shown(str(path))}: {len(content)} bytes are not a whole number of rows of {row}"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    labels = rows[:, label_bytes - 1].astype(np.int64)
    return rows[:, label_bytes:], _check_labels(path, labels, num_classes)


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    if not len(labels):
        raise DataError(f"{shown(str(path))}: holds no image")
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise DataError(
            f"{shown(str(path))}: label {labels[bad[0]]} of image {bad[0]} is not between 0 and "
            f"{num_classes - 1}"
        )
    if len(np.unique(labels)) < 2:
        raise DataError(f"{shown(str(path))}: every image is of class {labels[0]}")
    return labels


def _python_names(path: Path, key: str) -> tuple[str, ...]:
    if not path.exists():
        return ()
    names = read_plain_pickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{shown(str(path))}: {key!r} must be a list of names")
    return tuple(name.decode("latin-1") if isinstance(name, bytes) else name for name in names)


def _text_names(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ()
    return tuple(read_bytes(path).decode("latin-1").split())


def _merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    pixels = np.concatenate([part[0] for part in parts])  # owns its memory, unlike the parts
    labels = np.concatenate([part[1] for part in parts])
    return torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(labels)


def _test_note(count: int) -> tuple[str, ...]:
    return () if count == 10_000 else (f"test set: {count} of 10000 images",)
