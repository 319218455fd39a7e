"""What a genotype must look like, whatever its space: the JSON document and the graph it describes.

Every message names the place as a path, such as ``cells.normal[3].op``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyfast_nas.errors import GenotypeError

__all__ = ["FORMAT", "VERSION", "check_structure", "read_document"]

FORMAT = "pyfast_nas.genotype"
VERSION = 1
MAX_NODE = 9999
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_KEYS = ("format", "version", "space", "cells", "outputs")
_EDGE_KEYS = ("source", "target", "op")
_WORDS = {dict: "an object", list: "a list", int: "an integer", str: "a string"}


def read_document(
    document: Any,
) -> tuple[Any, dict[str, list[tuple[Any, Any, Any]]], dict[str, list[Any]]]:
    """Return space, edges as (source, target, op) and outputs of a JSON document.

    Keys and nesting are checked here, values by `check_structure`.

    Args:
        document: What the JSON text held.

    Raises:
        GenotypeError: If a key is missing or unknown, a value of the wrong kind, or the version
            newer than this one.

    Example:
        >>> edge = {"source": 0, "target": 2, "op": "skip_connect"}
        >>> rest = {"cells": {"normal": [edge]}, "outputs": {"normal": [2]}}
        >>> read_document({"format": FORMAT, "version": 1, "space": "darts"} | rest)
        ('darts', {'normal': [(0, 2, 'skip_connect')]}, {'normal': [2]})
    """
    if not isinstance(document, dict):
        raise GenotypeError(
            f"Genotype: line 1, column 1 must be an object, got {type(document).__name__} "
            f"{document!r:.100}; this is not a genotype"
        )
    if document.get("format") != FORMAT:
        raise GenotypeError(
            f"Genotype: format must be {FORMAT!r}, got {document.get('format')!r:.100}; "
            f"this is not a genotype"
        )
    version = _expect(document.get("version"), int, "version")
    if not 1 <= version <= VERSION:
        raise GenotypeError(
            f"Genotype: version must be from 1 to {VERSION}, got {version}; "
            f"a higher one was written by a newer pyfast_nas"
        )
    _exact_keys(document, _KEYS, "")
    cells = {}
    for table, edges in _expect(document["cells"], dict, "cells").items():
        path = f"cells.{table}"
        cells[table] = []
        for index, edge in enumerate(_expect(edges, list, path)):
            _exact_keys(_expect(edge, dict, f"{path}[{index}]"), _EDGE_KEYS, f"{path}[{index}].")
            cells[table].append(tuple(edge[key] for key in _EDGE_KEYS))
    outputs = {}
    for table, nodes in _expect(document["outputs"], dict, "outputs").items():
        outputs[table] = _expect(nodes, list, f"outputs.{table}")
    return document["space"], cells, outputs


def check_structure(
    space: Any, cells: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]
) -> None:
    """Raise unless the cells are acyclic graphs, without doubled edges, that reach their outputs.

    Args:
        space: Name of the space.
        cells: Table name -> edges with ``source``, ``target`` and ``op``.
        outputs: Table name -> states.

    Raises:
        GenotypeError: At the first place that is wrong.

    Example:
        >>> check_structure("darts", {}, {})
        Traceback (most recent call last):
            ...
        pyfast_nas.errors.GenotypeError: Genotype: cells must not be empty
    """
    _name(space, "space")
    if not cells:
        raise GenotypeError("Genotype: cells must not be empty")
    for table in (*cells, *outputs):
        _name(table, "a key of cells and outputs")
    if set(cells) != set(outputs):
        raise GenotypeError(
            f"Genotype: outputs must have the keys of cells, {sorted(cells)!r:.200}, "
            f"got {sorted(outputs)!r:.200}"
        )
    for table, edges in cells.items():
        reached = _check_edges(edges, f"cells.{table}")
        _check_outputs(outputs[table], f"outputs.{table}", reached)


def _check_edges(edges: Sequence[Any], path: str) -> set[int]:
    """Check one cell and return the states its edges lead to."""
    seen: set[tuple[int, int]] = set()
    last = 0
    for index, edge in enumerate(edges):
        place = f"{path}[{index}]"
        if not all(hasattr(edge, key) for key in _EDGE_KEYS):
            raise GenotypeError(f"Genotype: {place} must be a GenotypeEdge, got {edge!r:.100}")
        source, target = (
            _node(edge.source, f"{place}.source"),
            _node(edge.target, f"{place}.target"),
        )
        if source >= target:
            raise GenotypeError(
                f"Genotype: {place}.source must be an earlier state than target {target}, "
                f"got {source}"
            )
        if target < last:
            raise GenotypeError(
                f"Genotype: {place}.target must be at least {last}, as edges are listed target by "
                f"target, got {target}"
            )
        last = target
        _name(edge.op, f"{place}.op")
        if (source, target) in seen:
            raise GenotypeError(
                f"Genotype: {place} must not repeat an edge, got {source} -> {target} again"
            )
        seen.add((source, target))
    return {target for _, target in seen}


def _check_outputs(nodes: Sequence[Any], path: str, reached: set[int]) -> None:
    if not nodes:
        raise GenotypeError(f"Genotype: {path} must not be empty")
    seen: set[int] = set()
    for index, node in enumerate(nodes):
        place = f"{path}[{index}]"
        if _node(node, place) not in reached:
            raise GenotypeError(
                f"Genotype: {place} must be a state that an edge leads to, got {node}"
            )
        if node in seen:
            raise GenotypeError(f"Genotype: {place} must not repeat a state, got {node} again")
        seen.add(node)


def _expect(value: Any, kind: type, path: str) -> Any:
    # type() rather than isinstance: True is an int to Python, but no state of a cell.
    if type(value) is not kind:
        got = "nothing" if value is None else f"{type(value).__name__} {value!r:.100}"
        raise GenotypeError(f"Genotype: {_shown(path)} must be {_WORDS[kind]}, got {got}")
    return value


def _exact_keys(document: Mapping[str, Any], keys: Sequence[str], prefix: str) -> None:
    for key in keys:
        if key not in document:
            raise GenotypeError(f"Genotype: {_shown(prefix + key)} is missing")
    for key in document:
        if key not in keys:
            raise GenotypeError(
                f"Genotype: {_shown(prefix + key)} is unknown; the keys are {', '.join(keys)}"
            )


def _node(value: Any, path: str) -> int:
    _expect(value, int, path)
    if not 0 <= value <= MAX_NODE:
        raise GenotypeError(
            f"Genotype: {path} must be a state from 0 to {MAX_NODE}, got {value!r:.100}"
        )
    return value


def _name(value: Any, path: str) -> None:
    _expect(value, str, path)
    if not _NAME.fullmatch(value):
        found = "it"
        if "\x00" in value:
            found = "NUL in"
        elif re.search("[\ud800-\udfff]", value):
            found = "an unpaired surrogate in"
        raise GenotypeError(
            f"Genotype: {path} must be a name of 1 to 64 letters, digits, '_', '.' and '-', "
            f"got {found} {value!r:.100}"
        )


def _shown(path: str) -> str:
    """Escape what a terminal might obey, and cut at 200 characters."""
    return repr(path[:200])[1:-1]
