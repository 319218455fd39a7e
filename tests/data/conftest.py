"""Writers of small files in the published layouts, opcode by opcode as Python 2 wrote them."""

import struct

import numpy as np
import pytest


def dump(value) -> bytes:
    """Pickle plain data as protocol 2 of Python 2 does, without the memo."""
    return b"\x80\x02" + _encode(value) + b"."


def _encode(value) -> bytes:
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case None:
            return b"N"
        case int():
            return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
        case str():
            return _encode(value.encode())
        case bytes() if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case list():
            return b"](" + b"".join(map(_encode, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_encode, value)) + b"t"
        case dict():
            items = (_encode(key) + _encode(item) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
        case np.ndarray():
            return array(value.shape, value.tobytes())
    raise TypeError(type(value))


def array(shape, raw: bytes, kind: str = "u1", order: bool = False) -> bytes:
    """Pickle an array of bytes, with a shape that need not fit."""
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    start += _encode((0,)) + _encode("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + _encode((kind, 0, 1)) + b"R"
    dtype += _encode((3, "|", None, None, None, -1, -1, 0)) + b"b"
    state = b"(" + _encode(1) + _encode(tuple(shape)) + dtype + _encode(order) + _encode(raw) + b"t"
    return start + state + b"b"


class Files:
    """What the tests build broken and whole files with."""

    dump = staticmethod(dump)
    array = staticmethod(array)

    @staticmethod
    def images(rows: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (rows, 3072), dtype=np.uint8)

    @classmethod
    def python_batch(cls, path, rows: int, *, classes: int = 10, key="labels", seed=0, **changes):
        """Write a batch of the python layout; ``changes`` replace entries."""
        labels = [index % classes for index in range(rows)]
        batch = {"batch_label": "a batch", key: labels, "data": cls.images(rows, seed)} | changes
        path.write_bytes(dump(batch))
        return batch

    @classmethod
    def binary_batch(cls, path, rows: int, *, classes: int = 10, label_bytes: int = 1, seed=0):
        """Write a batch of the binary layout."""
        labels = (np.arange(rows) % classes).astype(np.uint8)[:, None]
        coarse = [np.zeros_like(labels)] * (label_bytes - 1)
        path.write_bytes(np.concatenate([*coarse, labels, cls.images(rows, seed)], 1).tobytes())

    @classmethod
    def cifar10(cls, folder, batches=(1, 2)):
        """Write a small CIFAR-10 of the python layout."""
        for number in batches:
            cls.python_batch(folder / f"data_batch_{number}", 20, seed=number)
        cls.python_batch(folder / "test_batch", 10)
        return folder


@pytest.fixture
def files() -> type[Files]:
    return Files
