"""Published latencies of the layers of a chain, as a cost table.

The file is the look-up table that the ProxylessNAS code loads, as comma-separated values: one
measured layer a line, in milliseconds, with shapes at 224 pixels and 1000 classes.
"""

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Self

import torch

from pyfast_nas.costs.table import CostTable
from pyfast_nas.errors import DataError
from pyfast_nas.nn.chain import BOTTLENECKS, BlockSizes
from pyfast_nas.spaces.proxyless import TABLE, ProxylessNAS
from pyfast_nas.spaces.text_files import read_text

__all__ = ["LatencyLookup", "LayerKey"]

_COLUMNS = ("op", "input", "output", "expand", "kernel", "stride", "idskip", "mean_ms")
_NUMBERS = ("expand", "kernel", "stride", "idskip")


class LayerKey(NamedTuple):
    """What a measured layer is known by; numbers are None for layers without a choice.

    Example:
        >>> str(LayerKey("Logits", "7x7x1280", "1000"))
        'Logits-input:7x7x1280-output:1000'
    """

    op: str
    input: str
    output: str
    expand: int | None = None
    kernel: int | None = None
    stride: int | None = None
    idskip: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.op}-input:{self.input}-output:{self.output}"]
        parts += [f"{n}:{v}" for n in _NUMBERS if (v := getattr(self, n)) is not None]
        return "-".join(parts)


@dataclass(frozen=True, eq=False)
class LatencyLookup:
    """Measured latencies of layers, in milliseconds.

    Args:
        milliseconds: Mean latency of every layer.
        source: Where they are from, for messages.

    Example:
        >>> layers = {LayerKey("Logits", "7x7x1280", "1000"): 0.31}
        >>> LatencyLookup(layers, "mine").costs(ProxylessNAS(num_classes=1000, image_size=224))
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.DataError: mine: must hold the layer \
'Conv-input:224x224x3-output:112x112x32', got 1 other layer

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, section 3.3 and appendix B.
    """

    milliseconds: Mapping[LayerKey, float]
    source: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "milliseconds", MappingProxyType(dict(self.milliseconds)))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of comma-separated values with a header.

        Args:
            path: File with the columns op, input, output, expand, kernel, stride, idskip, mean_ms.

        Raises:
            DataError: If the file cannot be read or is broken; the message names line and layer.
        """
        source = f"latencies {os.fspath(path)!r:.200}"
        found: dict[LayerKey, float] = {}
        try:
            text = read_text(path, "latencies", DataError)
            for number, key, value in _lines(io.StringIO(text, newline=""), source):
                if key in found:
                    raise DataError(f"{source}: line {number} repeats the layer {str(key)!r}")
                found[key] = value
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}") from None
        except csv.Error as error:
            raise DataError(f"{source} must be comma-separated text: {error}") from None
        return cls(found, source)

    def costs(self, space: ProxylessNAS) -> CostTable:
        """Return the cost of every candidate of a chain; ``zero`` costs nothing.

        Fixed are the stem, the first block, the last convolution and the classifier.

        Args:
            space: A chain whose layers were measured: that of the published search, at 224 pixels
                and with 1000 classes, is.

        Raises:
            DataError: If a layer is missing; the message names it.
        """
        sizes, candidates = space.sizes, space.candidates[TABLE]
        sides = space.image_size
        height, width = sides if isinstance(sides, tuple) else (sides, sides)
        image = height, width, sizes.in_channels
        x = _halved(image, sizes.stem_stride, sizes.stem)
        fixed = self._of(LayerKey("Conv", _shape(image), _shape(x)))
        first = BlockSizes(sizes.stem, sizes.first, 1)
        # No shortcut, whatever its widths.
        y = _halved(x, 1, sizes.first)
        fixed += self._of(_bottleneck(x, y, first, 3, 1, has_shortcut=False))
        rows = torch.zeros(len(candidates), max(map(len, candidates)), dtype=torch.float64)
        for row, (names, block) in enumerate(zip(candidates, sizes.blocks, strict=True)):
            x, y = y, _halved(y, block.stride, block.out_channels)
            for column, name in enumerate(names):
                if name != "zero":
                    key = _bottleneck(x, y, block, *BOTTLENECKS[name], block.has_shortcut)
                    rows[row, column] = self._of(key)
        last = (*y[:2], sizes.head)
        fixed += self._of(LayerKey("Conv_1", _shape(y), _shape(last)))
        fixed += self._of(LayerKey("Logits", _shape(last), str(sizes.num_classes)))
        about = f"layers of a look-up table, {_shape(image)}"
        return CostTable("ms", fixed, {TABLE: rows}, space.candidates, about)

    def _of(self, key: LayerKey) -> float:
        if key not in self.milliseconds:
            count = len(self.milliseconds)
            raise DataError(
                f"{self.source}: must hold the layer {str(key)!r}, got {count} other "
                f"layer{'s' * (count != 1)}"
            )
        return self.milliseconds[key]


def _lines(file, source: str) -> Iterator[tuple[int, LayerKey, float]]:
    """Yield line number, layer and milliseconds."""
    reader = csv.DictReader(file, strict=True)
    if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
        raise DataError(f"{source}: line 1 must name the column {missing[0]!r}")
    for line in reader:
        where = f"{source}: line {reader.line_num}"
        if None in line or None in line.values():
            raise DataError(f"{where} must have {len(reader.fieldnames)} fields")
        try:
            numbers = [int(line[name]) if line[name] else None for name in _NUMBERS]
        except ValueError:
            raise DataError(
                f"{where}: {', '.join(_NUMBERS)} must be integers or empty, got "
                f"{[line[name] for name in _NUMBERS]!r:.200} of {line['op']!r:.80}"
            ) from None
        key = LayerKey(line["op"], line["input"], line["output"], *numbers)
        value = _number(line["mean_ms"])
        if not (math.isfinite(value) and value >= 0):
            raise DataError(
                f"{where}: mean_ms of {str(key)!r:.200} must be a finite number at least 0, "
                f"got {line['mean_ms']!r:.80}"
            )
        yield reader.line_num, key, value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _bottleneck(
    x: tuple[int, int, int],
    y: tuple[int, int, int],
    block: BlockSizes,
    kernel: int,
    expansion: int,
    has_shortcut: bool,
) -> LayerKey:
    numbers = expansion, kernel, block.stride, int(has_shortcut)
    return LayerKey("expanded_conv", _shape(x), _shape(y), *numbers)


def _halved(shape: tuple[int, int, int], stride: int, channels: int) -> tuple[int, int, int]:
    height, width, _ = shape
    return -(-height // stride), -(-width // stride), channels


def _shape(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
