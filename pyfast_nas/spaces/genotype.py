"""Genotype: the description of one discrete architecture, as strict JSON both ways.

Nothing that is read is ever evaluated; operations are names, looked up by the space.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

from pyfast_nas.errors import GenotypeError
from pyfast_nas.spaces.genotype_rules import FORMAT, VERSION, check_structure, read_document
from pyfast_nas.spaces.strict_json import parse
from pyfast_nas.spaces.text_files import read_text, write_text

__all__ = ["Genotype", "GenotypeEdge"]


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
        for field in ("cells", "outputs"):
            value = getattr(self, field)
            if not isinstance(value, Mapping) or not all(
                isinstance(row, tuple | list) for row in value.values()
            ):
                raise GenotypeError(
                    f"Genotype: {field} must map names to tuples, got {value!r:.200}"
                )
            rows = {table: tuple(row) for table, row in value.items()}
            object.__setattr__(self, field, MappingProxyType(rows))
        check_structure(self.space, self.cells, self.outputs)

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
        # Names hold no quotes and no line ends, so what spans three lines is an edge.
        return re.sub(r"\{\n\s+(\"op.*),\n\s+(.*),\n\s+(.*)\n\s+\}", r"{\1, \2, \3}", text) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a genotype from JSON text; nothing in it is executed.

        Args:
            text: At most 1 MiB of JSON.

        Raises:
            GenotypeError: If the text is not a genotype; the message says where and why.
        """
        if isinstance(text, str) and text[:200].lstrip().startswith("Genotype("):
            raise GenotypeError(
                "Genotype: not a genotype but Python text, as the original DARTS code prints it; "
                "to convert it, pass its lists to pyfast_nas.spaces.DARTS().from_pairs("
                "normal=[...], reduce=[...])"
            )
        return cls.from_dict(parse(text))

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        """Read a genotype from a parsed JSON document."""
        space, cells, outputs = read_document(document)
        edges = {table: [GenotypeEdge(*edge) for edge in row] for table, row in cells.items()}
        return cls(space, edges, outputs)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a genotype file.

        Args:
            path: A regular file; pipes and devices are refused.

        Raises:
            OSError: If the file is missing, a directory or unreadable.
            GenotypeError: If it is no regular file or holds no genotype.
        """
        text = read_text(path, "Genotype.load", GenotypeError)
        try:
            return cls.from_json(text)
        except GenotypeError as error:
            raise GenotypeError(f"{error} (in {os.fspath(path)!r:.200})") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON text so that the file is at every instant the old or the new one.

        Args:
            path: File to write or replace.
        """
        write_text(path, self.to_json())
