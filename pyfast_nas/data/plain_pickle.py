"""Read plain data out of a pickle file without running any of it.

Published batches of CIFAR are pickles. A pickle is a program that may call anything, so it is
never given to Python's own reader: the interpreter here knows dictionaries, lists, tuples, bytes,
integers, ``None`` and arrays of bytes, and calls nothing.
"""

import math
import os
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pyfast_nas.data.image_data import shown
from pyfast_nas.errors import DataError

__all__ = ["read_bytes", "read_plain_pickle"]

_LARGEST_FILE = 256 << 20  # bytes; the largest official file has 148 MiB
_MOST_OPCODES = 500_000  # the largest official file has about 310,000


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file of at most 256 MiB.

    Raises:
        DataError: If it is missing, empty, too large, unreadable, or not a regular file.

    Example:
        >>> read_bytes(Path("/nowhere/data_batch_1"))
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.DataError: '/nowhere/data_batch_1': No such file or directory
    """
    try:
        # Opening a pipe would wait for a writer, so the kind is looked at before and after.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{shown(str(path))}: not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LARGEST_FILE:
                raise DataError(
                    f"{shown(str(path))}: {size} bytes, more than the {_LARGEST_FILE} of any "
                    "official file"
                )
            content = file.read(size)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{shown(str(path))}: {reason}") from error
    if not content:
        raise DataError(f"{shown(str(path))}: the file is empty")
    return content


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of plain values and byte arrays.

    Text written by Python 2 comes back as ``bytes``, keys as ``str``, arrays of type ``u1`` as
    NumPy arrays that share the memory of the file's content. Time and memory are linear in the
    size of the file.

    Raises:
        DataError: If the file cannot be read, is no pickle of protocol 2, is cut short, or holds
            anything else than plain values; nothing it names is imported or called.
    """
    content = read_bytes(path)
    try:
        value = _Interpreter(content).run()
    except _Refusal as refusal:
        raise DataError(f"{shown(str(path))}: {refusal}") from None
    if not isinstance(value, dict):
        raise DataError(f"{shown(str(path))}: holds a {type(value).__name__}, not a dictionary")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value[key] for key in value
    }


class _Refusal(Exception):
    """What the interpreter found wrong; becomes a DataError that names the file."""


class _Name:
    """A global that may stand in an array's description; it stands for itself and is not called."""

    def __init__(self, text: str):
        self.text = text


class _DType:
    """The element type of an array; only bytes exist here."""


class _Array:
    """An array before its content is known."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None


_RECONSTRUCT = "numpy.core.multiarray _reconstruct"
_NAMES = {
    _RECONSTRUCT: _Name(_RECONSTRUCT),
    "numpy._core.multiarray _reconstruct": _Name(_RECONSTRUCT),
    "numpy ndarray": _Name("numpy ndarray"),
    "numpy dtype": _Name("numpy dtype"),
}
_MARK = object()


class _Interpreter:
    """Runs the opcodes of one pickle over a stack and takes no memory before a limit is checked."""

    def __init__(self, content: bytes):
        self._content = content
        self._place = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        if self._content[:2] != b"\x80\x02":
            raise _Refusal("not a pickle of protocol 2, as the official files are")
        self._place = 2
        for _ in range(_MOST_OPCODES):
            code = self._take(1)[0]
            if code == ord("."):
                if len(self._stack) != 1:
                    raise _Refusal("the pickle ends with an unbalanced stack")
                return _finished(self._pop())
            action = _ACTIONS.get(code)
            if action is None:
                raise _Refusal(
                    f"opcode {bytes([code])!r} at byte {self._place - 1} is not one that plain "
                    "data need"
                )
            action(self)
        raise _Refusal(f"more than {_MOST_OPCODES} opcodes")

    def _take(self, count: int) -> bytes:
        end = self._place + count
        if end > len(self._content):
            raise _Refusal(f"cut short: {end} bytes are needed, {len(self._content)} are there")
        taken = self._content[self._place : end]
        self._place = end
        return taken

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = self._content.find(b"\n", self._place, self._place + 256)
        if end < 0:
            raise _Refusal("a name is cut short or longer than 255 bytes")
        return self._take(end - self._place + 1)[:-1].decode("latin-1")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Refusal(f"the stack is empty at byte {self._place}")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while self._stack:
            item = self._stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise _Refusal(f"no mark on the stack at byte {self._place}")

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise _Refusal(f"a {kind.__name__} is missing on the stack at byte {self._place}")
        return self._stack[-1]

    def push_number(self, layout: str) -> None:
        self._stack.append(self._number(layout))

    def push_bytes(self, layout: str) -> None:
        length = self._number(layout)
        if length < 0:
            raise _Refusal(f"a text of {length} bytes at byte {self._place}")
        self._stack.append(self._take(length))

    def push_text(self) -> None:
        try:
            self._stack.append(self._take(self._number("<I")).decode())
        except UnicodeDecodeError:
            raise _Refusal(f"broken text at byte {self._place}") from None

    def push_tuple(self, count: int) -> None:
        self._stack.append(tuple([self._pop() for _ in range(count)][::-1]))

    def push_marked_tuple(self) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def push_global(self) -> None:
        name = f"{self._line()} {self._line()}"
        if name not in _NAMES:
            raise _Refusal(f"refers to {shown(name)}; only plain data are read, nothing was run")
        self._stack.append(_NAMES[name])

    def append(self, items: list[Any]) -> None:
        self._top(list).extend(map(_finished, items))

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2 or not all(isinstance(key, bytes | str | int) for key in items[::2]):
            raise _Refusal(f"a dictionary with odd keys at byte {self._place}")
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = _finished(value)

    def put(self, layout: str) -> None:
        if not self._stack:
            raise _Refusal(f"the stack is empty at byte {self._place}")
        self._memo[self._number(layout)] = self._stack[-1]

    def get(self, layout: str) -> None:
        index = self._number(layout)
        if index not in self._memo:
            raise _Refusal(f"refers to value {index} before it is there")
        self._stack.append(self._memo[index])

    def reduce(self) -> None:
        """Recognise the two calls that describe an array of bytes; make a note of it instead."""
        arguments, called = self._pop(), self._pop()
        if called is _NAMES["numpy dtype"]:
            if not isinstance(arguments, tuple) or arguments[:1] not in [(b"u1",), ("u1",)]:
                raise _Refusal(f"an array of {shown(arguments)}, not of bytes")
            self._stack.append(_DType())
        elif isinstance(called, _Name) and called.text == _RECONSTRUCT:
            self._stack.append(_Array())
        else:
            raise _Refusal("calls something that is not an array; nothing was run")

    def build(self) -> None:
        state, target = self._pop(), self._pop()
        if isinstance(target, _Array):
            target.value = _array(state)
        elif not isinstance(target, _DType):
            raise _Refusal("sets the state of something that is not an array")
        self._stack.append(target)


def _array(state: Any) -> np.ndarray:
    """Make an array of numpy's pickled state: version, shape, type, order, bytes."""
    match state:
        case (int(), tuple(shape), _DType(), bool() | int() as is_fortran, bytes(raw)):
            pass
        case _:
            raise _Refusal("an array that is not described as numpy describes one")
    if len(shape) not in (1, 2) or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refusal(f"an array of shape {shown(shape)}")
    if math.prod(shape) != len(raw):
        raise _Refusal(f"an array of shape {shown(shape)} with {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _finished(value: Any) -> Any:
    """Return a value that may be stored: an array with content, or plain data."""
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refusal("an array without content")
        return value.value
    if isinstance(value, _Name | _DType):
        raise _Refusal("a type stands where a value belongs")
    return value


def _constant(make: Callable[[], Any]) -> Callable[[_Interpreter], None]:
    return lambda machine: machine._stack.append(make())


def _actions() -> Iterable[tuple[str, Callable[[_Interpreter], None]]]:
    # Letters as in Python's pickletools.
    yield "}", _constant(dict)
    yield "]", _constant(list)
    yield ")", _constant(tuple)
    yield "N", _constant(lambda: None)
    yield "\x88", _constant(lambda: True)
    yield "\x89", _constant(lambda: False)
    yield "(", _constant(lambda: _MARK)
    yield "K", lambda machine: machine.push_number("<B")
    yield "M", lambda machine: machine.push_number("<H")
    yield "J", lambda machine: machine.push_number("<i")
    yield "U", lambda machine: machine.push_bytes("<B")
    yield "T", lambda machine: machine.push_bytes("<i")
    yield "X", lambda machine: machine.push_text()
    yield "\x85", lambda machine: machine.push_tuple(1)
    yield "\x86", lambda machine: machine.push_tuple(2)
    yield "\x87", lambda machine: machine.push_tuple(3)
    yield "t", lambda machine: machine.push_marked_tuple()
    yield "a", lambda machine: machine.append([machine._pop()])
    yield "e", lambda machine: machine.append(machine._pop_to_mark())
    yield "s", lambda machine: machine.set_items([machine._pop(), machine._pop()][::-1])
    yield "u", lambda machine: machine.set_items(machine._pop_to_mark())
    yield "q", lambda machine: machine.put("<B")
    yield "r", lambda machine: machine.put("<I")
    yield "h", lambda machine: machine.get("<B")
    yield "j", lambda machine: machine.get("<I")
    yield "c", lambda machine: machine.push_global()
    yield "R", lambda machine: machine.reduce()
    yield "b", lambda machine: machine.build()


_ACTIONS = {ord(letter): action for letter, action in _actions()}
