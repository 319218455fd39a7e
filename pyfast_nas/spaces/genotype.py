"""Genotype: the description of one discrete architecture, as strict JSON both ways.

Nothing that is read is ever evaluated; operations are names, looked up by the space.
"""

import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pyfast_nas.errors import GenotypeError

__all__ = ["FORMAT", "MAX_BYTES", "VERSION", "Genotype", "GenotypeEdge"]

FORMAT = "pyfast_nas.genotype"
VERSION = 1
MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_NODE = 9999
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_KEYS = ("format", "version", "space", "cells", "outputs")
# A string is one token, so brackets inside it do not count; possessive, so time stays linear.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)


@dataclass(frozen=True)
class GenotypeEdge:
    """One kept edge: operation ``op`` from state ``source`` to state ``target``."""

    source: int
    target: int
    op: str


@dataclass(frozen=True)
class Genotype:
    """A discrete architecture: per kind of cell the kept edges and the states that leave it.

    Args:
        space: Name of the space it belongs to.
        cells: Table name -> edges. Their order is kept and fixes the order of parameters.
        outputs: Table name -> states whose features leave the cell.

    Raises:
        GenotypeError: If the description contradicts itself; the message names the place.

    Example:
        >>> edge = GenotypeEdge(0, 2, "skip_connect")
        >>> genotype = Genotype("darts", {"normal": (edge,)}, {"normal": (2,)})
        >>> Genotype.from_json(genotype.to_json()) == genotype
        True
        >>> genotype.hash
        'fa591a39e7aeb8cc'
    """

    space: str
    cells: Mapping[str, tuple[GenotypeEdge, ...]]
    outputs: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        cells = {table: tuple(edges) for table, edges in self.cells.items()}
        outputs = {table: tuple(nodes) for table, nodes in self.outputs.items()}
        object.__setattr__(self, "cells", MappingProxyType(cells))
        object.__setattr__(self, "outputs", MappingProxyType(outputs))
        _check(self)

    def __hash__(self) -> int:
        return int(self.hash, 16)

    def __reduce__(self) -> tuple[Any, ...]:
        return Genotype, (self.space, dict(self.cells), dict(self.outputs))

    @cached_property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document as plain dictionaries and lists."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "space": self.space,
            "cells": {
                table: [dataclasses.asdict(edge) for edge in edges]
                for table, edges in self.cells.items()
            },
            "outputs": {table: list(nodes) for table, nodes in self.outputs.items()},
        }

    def to_json(self) -> str:
        """Return the JSON text, keys sorted, one line per edge."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        return re.sub(r"\{\n\s+(\"op.*),\n\s+(.*),\n\s+(.*)\n\s+\}", r"{\1, \2, \3}", text) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a genotype from JSON text; nothing in it is executed.

        Args:
            text: At most 1 MiB of JSON.

        Raises:
            GenotypeError: If the text is not a genotype; the message says where and why.
        """
        return cls.from_dict(_parse(text))

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        """Read a genotype from a parsed JSON document."""
        _expect(document, dict, "the document")
        if document.get("format") != FORMAT:
            raise GenotypeError(
                f"Genotype: format must be {FORMAT!r}, got {document.get('format')!r:.200}; "
                f"this is not a genotype"
            )
        version = _expect(document.get("version"), int, "version")
        if version > VERSION:
            raise GenotypeError(
                f"Genotype: version must be at most {VERSION}, got {version:.200}; "
                f"it was written by a newer pyfast_nas"
            )
        _exact_keys(document, _KEYS, "")
        cells = {}
        for table, edges in _expect(document["cells"], dict, "cells").items():
            path = f"cells.{table}"
            cells[table] = tuple(
                _edge(edge, f"{path}[{index}]")
                for index, edge in enumerate(_expect(edges, list, path))
            )
        outputs = {
            table: tuple(_expect(nodes, list, f"outputs.{table}"))
            for table, nodes in _expect(document["outputs"], dict, "outputs").items()
        }
        return cls(document["space"], cells, outputs)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a genotype file.

        Args:
            path: A regular file; pipes and devices are refused.

        Raises:
            OSError: If the file is missing, a directory or unreadable.
            GenotypeError: If it is no regular file or holds no genotype.
        """
        name = os.fspath(path)
        # Without O_NONBLOCK, opening a pipe nobody writes to would wait for ever.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            if not stat.S_ISREG(mode):
                raise GenotypeError(f"Genotype.load: {name!r:.200} must be a regular file")
            data = file.read(MAX_BYTES + 1)
        try:
            if len(data) > MAX_BYTES:
                raise GenotypeError(_TOO_LONG)
            return cls.from_json(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise GenotypeError(
                f"Genotype.load: {name!r:.200} is not a genotype: byte {error.start} is not UTF-8"
            ) from None
        except GenotypeError as error:
            raise GenotypeError(f"{error} (in {name!r:.200})") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON text so that the file is at every instant the old or the new one.

        Args:
            path: File to write or replace.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_TOO_LONG = f"Genotype: the text must be at most {MAX_BYTES} bytes long, got more"


def _parse(text: str) -> Any:
    """JSON text -> document, with every reading that JSON libraries disagree on refused."""
    if not isinstance(text, str):
        raise GenotypeError(f"Genotype.from_json: text must be a string, got {type(text).__name__}")
    if len(text) > MAX_BYTES:
        raise GenotypeError(_TOO_LONG)
    if text.startswith("\ufeff"):
        raise GenotypeError("Genotype: the text must not start with a byte order mark (BOM)")
    if "\x00" in text:
        raise GenotypeError(
            f"Genotype: the text must not hold NUL, got one at {text.index(chr(0))}"
        )
    if re.match(r"\s*Genotype\s*\(", text):
        raise GenotypeError(
            "Genotype: not a genotype but Python text, as the original DARTS code prints it; to "
            "convert it, pass its lists to pyfast_nas.spaces.DARTS().from_pairs(normal=[...], "
            "reduce=[...])"
        )
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise GenotypeError(f"Genotype: the text must nest at most {MAX_DEPTH} deep, got more")
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except json.JSONDecodeError as error:
        raise GenotypeError(
            f"Genotype: not a genotype: {error.msg} at line {error.lineno}, column {error.colno}; "
            f"a JSON object was expected"
        ) from None


def _refuse_constant(text: str) -> Any:
    raise GenotypeError(f"Genotype: numbers must be finite, got {text}")


def _integer(text: str) -> int:
    if len(text) > 18:
        raise GenotypeError(f"Genotype: numbers must have at most 18 digits, got {len(text)}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 32 else float("inf")
    if value in (float("inf"), float("-inf")):
        raise GenotypeError(f"Genotype: numbers must be finite and short, got {text:.40}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = {}
    for key, value in pairs:
        if key in document:
            raise GenotypeError(f"Genotype: keys must not repeat, got duplicate key {key!r:.200}")
        document[key] = value
    return document


_WORDS = {dict: "an object", list: "a list", int: "an integer", str: "a string"}


def _expect(value: Any, kind: type, path: str) -> Any:
    if type(value) is not kind:
        got = "nothing" if value is None else f"{type(value).__name__} {value!r:.100}"
        raise GenotypeError(
            f"Genotype: {path!s:.200} must be {_WORDS[kind]}, got {got}; this is not a genotype"
            if path == "the document"
            else f"Genotype: {_safe(path)} must be {_WORDS[kind]}, got {got}"
        )
    return value


def _safe(path: str) -> str:
    """A path for a message: control characters and surrogates escaped, cut at 200 characters."""
    return repr(path[:200])[1:-1]


def _exact_keys(document: Mapping[str, Any], keys: tuple[str, ...], path: str) -> None:
    prefix = f"{path}." if path else ""
    for key in keys:
        if key not in document:
            raise GenotypeError(f"Genotype: {_safe(prefix + key)} is missing")
    for key in document:
        if key not in keys:
            raise GenotypeError(
                f"Genotype: {_safe(prefix + key)} must not be there; known keys are "
                f"{', '.join(keys)}"
            )


def _edge(document: Any, path: str) -> GenotypeEdge:
    _expect(document, dict, path)
    _exact_keys(document, ("source", "target", "op"), path)
    return GenotypeEdge(document["source"], document["target"], document["op"])


def _node(value: Any, path: str) -> int:
    _expect(value, int, path)
    if not 0 <= value <= MAX_NODE:
        raise GenotypeError(
            f"Genotype: {_safe(path)} must be a state from 0 to {MAX_NODE}, got {value}"
        )
    return value


def _name(value: Any, path: str) -> str:
    _expect(value, str, path)
    if not _NAME.fullmatch(value):
        kind = next(
            (
                word
                for word, pattern in (("NUL", "\x00"), ("an unpaired surrogate", "[\ud800-\udfff]"))
                if re.search(pattern, value)
            ),
            "another character or length",
        )
        raise GenotypeError(
            f"Genotype: {_safe(path)} must be a name of 1 to 64 letters, digits, '_', '.' and "
            f"'-', got {kind} in {value!r:.100}"
        )
    return value


def _check(genotype: Genotype) -> None:
    """Everything that can be said without knowing the space."""
    _name(genotype.space, "space")
    if not genotype.cells:
        raise GenotypeError("Genotype: cells must not be empty")
    if set(genotype.cells) != set(genotype.outputs):
        raise GenotypeError(
            f"Genotype: outputs must have the tables of cells, {sorted(genotype.cells)!r:.200}, "
            f"got {sorted(genotype.outputs)!r:.200}"
        )
    for table, edges in genotype.cells.items():
        _name(table, "a key of cells")
        seen = set()
        for index, edge in enumerate(edges):
            path = f"cells.{table}[{index}]"
            source, target = (
                _node(edge.source, f"{path}.source"),
                _node(edge.target, f"{path}.target"),
            )
            if source >= target:
                raise GenotypeError(
                    f"Genotype: {path}.source must be an earlier state than target {target}, "
                    f"got {source}"
                )
            _name(edge.op, f"{path}.op")
            if (source, target) in seen:
                raise GenotypeError(
                    f"Genotype: {path} must not repeat an edge, got {source} -> {target} again"
                )
            seen.add((source, target))
        nodes = genotype.outputs[table]
        if not nodes:
            raise GenotypeError(f"Genotype: outputs.{table} must not be empty")
        for index, node in enumerate(nodes):
            path = f"outputs.{table}[{index}]"
            if _node(node, path) not in {edge.target for edge in edges}:
                raise GenotypeError(
                    f"Genotype: {path} must be a state that an edge leads to, got {node}"
                )
            if nodes.index(node) != index:
                raise GenotypeError(f"Genotype: {path} must not repeat a state, got {node} again")
