"""Tables of measured architectures: accuracies published for every architecture of a space.

A table is a text of comma-separated values, gzip or not, whose column ``arch`` names architectures.
"""

import csv
import errno
import gzip
import io
import math
import os
import stat
import zlib
from collections.abc import Collection
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from pyfast_nas.errors import DataError
from pyfast_nas.spaces.genotype import Genotype
from pyfast_nas.spaces.nas_bench_201 import NASBench201

__all__ = ["AccuracyTable", "Score"]

LARGEST = 16 << 20  # bytes, packed and unpacked; fifteen thousand rows of sixteen columns take two
KEY, ISOMORPHS = "arch", "iso"


class Score(NamedTuple):
    """Where an architecture stands in a column.

    Attributes:
        value: Its value.
        rank: 1 for the largest value; equals share the better rank.
        best: The largest value.
        regret: How far the value is below it.
    """

    value: float
    rank: int
    best: float
    regret: float


class AccuracyTable:
    """One row for each architecture, one column for each thing measured.

    Columns are numbers as soon as they are asked for; one that is never read may hold anything.

    Args:
        path: What messages call the table.
        columns: Column name -> text of each row; one of them is ``"arch"``.

    Attributes:
        path: As given.
        columns: Names of all columns but ``"arch"``.
        architectures: Architecture -> number of its row.

    Example:
        >>> table = AccuracyTable("here", {"arch": ["a", "b", "c"], "test": ["90", "94.5", "90"]})
        >>> table.lookup("a"), table.score("a", "test")
        ({'test': 90.0}, Score(value=90.0, rank=2, best=94.5, regret=4.5))

    References:
        Dong & Yang, "NAS-Bench-201", ICLR 2020.
    """

    def __init__(self, path: str | os.PathLike[str], columns: dict[str, list[str]]) -> None:
        self.path = os.fspath(path)
        self._texts = columns
        self.columns = tuple(name for name in columns if name != KEY)
        self._numbers: dict[str, np.ndarray] = {}
        self.architectures: dict[str, int] = {}
        for row, name in enumerate(columns[KEY]):
            if self.architectures.setdefault(name, row) != row:
                raise self._error(
                    f"architectures must differ, got {name!r:.200} in lines "
                    f"{self.architectures[name] + 2} and {row + 2}"
                )

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], architectures: Collection[str] | None = None
    ) -> Self:
        """Read a table from a file.

        Args:
            path: A regular file of UTF-8 text, perhaps packed by gzip, with one header line.
            architectures: What must have a row each, and nothing else; None takes any.

        Raises:
            DataError: If the file cannot be read or is not such a table; the message says where
                and why.

        Example:
            >>> AccuracyTable.read("/no/table.csv")
            Traceback (most recent call last):
            ...
            pyfast_nas.errors.DataError: table '/no/table.csv': No such file or directory; name \
the file of the table
        """
        name = os.fspath(path)
        try:
            texts = _columns(_unpacked(_bytes_of(name)))
            table = cls(name, texts)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"table {name!r:.200}: {reason}; name the file of the table") from None
        except _Refusal as refusal:
            raise DataError(f"table {name!r:.200}: {refusal}") from None
        if architectures is not None:
            table._require(architectures)
        return table

    def __len__(self) -> int:
        return len(self.architectures)

    def column(self, name: str) -> np.ndarray:
        """Return a column as numbers, float64 ``[rows]``.

        Raises:
            DataError: If there is no such column, or a value of it is no finite number.

        Example:
            >>> AccuracyTable("here", {"arch": ["a"], "test": ["94.5"]}).column("test")
            array([94.5])
        """
        if name not in self._numbers:
            values = [self._number(name, row) for row in range(len(self._column_of_texts(name)))]
            self._numbers[name] = np.array(values, dtype=np.float64)
        return self._numbers[name]

    def known(self, name: str) -> dict[str, float]:
        """Return the numbers of a column by architecture, those left out that are empty.

        Raises:
            DataError: If there is no such column, or something else in it is no finite number.

        Example:
            >>> AccuracyTable("here", {"arch": ["a", "b"], "ms": ["", "2.5"]}).known("ms")
            {'b': 2.5}
        """
        texts = self._column_of_texts(name)
        return {a: self._number(name, row) for a, row in self.architectures.items() if texts[row]}

    def lookup(self, architecture: Genotype | str) -> dict[str, float]:
        """Return the numbers of an architecture by column, those left out that are empty.

        Args:
            architecture: A genotype of NAS-Bench-201, or the text in the column ``arch``.

        Raises:
            DataError: If the table has no such row, or something in it is no number.
            GenotypeError: If the genotype is of another space.
        """
        row = self._row(architecture)
        return {name: self._number(name, row) for name in self.columns if self._texts[name][row]}

    def score(self, architecture: Genotype | str, column: str) -> Score:
        """Return value, rank and regret of an architecture in a column of which more is better.

        Args:
            architecture: As in `lookup`.
            column: For example ``"c10_test_e200"``.

        Raises:
            DataError: As `lookup` and `column`.
        """
        values, row = self.column(column), self._row(architecture)
        value, best = float(values[row]), float(values.max())
        return Score(value, 1 + int((values > value).sum()), best, best - value)

    def isomorphic(self, architecture: Genotype | str) -> tuple[str, ...]:
        """Return all architectures that compute the same, this one among them.

        Raises:
            DataError: If the table has no such row, or no column ``iso``.

        Example:
            >>> table = AccuracyTable("here", {"arch": ["a", "b", "c"], "iso": ["0", "1", "0"]})
            >>> table.isomorphic("c")
            ('a', 'c')
        """
        row = self._row(architecture)
        if ISOMORPHS not in self._texts:
            raise self._error(f"must have the column {ISOMORPHS!r}, which says what is isomorphic")
        return self._classes[self._texts[ISOMORPHS][row]]

    @cached_property
    def _classes(self) -> dict[str, tuple[str, ...]]:
        classes: dict[str, list[str]] = {}
        for name, row in self.architectures.items():
            classes.setdefault(self._texts[ISOMORPHS][row], []).append(name)
        return {number: tuple(names) for number, names in classes.items()}

    def _column_of_texts(self, name: str) -> list[str]:
        if name not in self.columns:
            raise self._error(
                f"must have the column {name!r:.200}; it has {', '.join(self.columns)!r:.500}"
            )
        return self._texts[name]

    def _row(self, architecture: Genotype | str) -> int:
        if isinstance(architecture, Genotype):
            architecture = NASBench201().to_string(architecture)
        if architecture not in self.architectures:
            raise self._error(f"must have a row for {architecture!r:.200}, got none")
        return self.architectures[architecture]

    def _number(self, name: str, row: int) -> float:
        text = self._texts[name][row]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._error(
                f"{name} in line {row + 2} must be a finite number, got {text!r:.100}"
            )
        return value

    def _require(self, architectures: Collection[str]) -> None:
        """Raise unless the rows are those of ``architectures``."""
        if len(self) != len(architectures):
            raise self._error(
                f"must have {len(architectures)} rows, one for each architecture of the space, "
                f"got {len(self)}"
            )
        if unknown := self.architectures.keys() - set(architectures):
            row = min(self.architectures[name] for name in unknown)
            raise self._error(
                f"arch in line {row + 2} must be an architecture of the space, "
                f"got {self._texts[KEY][row]!r:.200}"
            )

    def _error(self, sentence: str) -> DataError:
        return DataError(f"table {self.path!r:.200}: {sentence}")


class _Refusal(Exception):
    """Why a file is no table."""


def _bytes_of(name: str) -> bytes:
    # Without O_NONBLOCK, opening a pipe nobody writes to would wait for ever.
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if not stat.S_ISREG(mode):
            raise _Refusal("must be a regular file")
        return _at_most(file.read(LARGEST + 1), "the file")


def _unpacked(content: bytes) -> str:
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = _at_most(file.read(LARGEST + 1), "what gzip packed")
        except (OSError, EOFError, zlib.error) as error:
            raise _Refusal(f"is a broken gzip file ({error}): fetch it again") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refusal(f"must be UTF-8 text, got byte {error.start} that is none") from None


def _at_most(content: bytes, what: str) -> bytes:
    if len(content) > LARGEST:
        raise _Refusal(f"{what} must be at most {LARGEST >> 20} MiB long")
    return content


def _columns(text: str) -> dict[str, list[str]]:
    """Return the columns of comma-separated values with a header."""
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except ValueError:
        raise _Refusal("must have a header line, got an empty file") from None
    except csv.Error as error:
        raise _Refusal(f"must be comma-separated values: {error}") from None
    if KEY not in header:
        raise _Refusal(f"must have the column {KEY!r}, got {', '.join(header)!r:.200}")
    if len(set(header)) < len(header):
        twice = next(name for place, name in enumerate(header) if name in header[:place])
        raise _Refusal(f"columns must differ, got {twice!r:.100} twice")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise _Refusal(f"line {line} must have {len(header)} values, got {len(row)}")
    if not rows:
        raise _Refusal("must have at least one row, got only a header")
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}
