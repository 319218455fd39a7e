"""What the JSON files of a run must look like, so that no reader of them meets a surprise."""

from collections.abc import Mapping
from typing import Any

from pyfast_nas.costs.table_rules import LARGEST
from pyfast_nas.errors import DataError
from pyfast_nas.viz.markup import printable

__all__ = [
    "ALPHAS",
    "CONFIG",
    "EVALUATION",
    "METRICS",
    "PARETO",
    "RESULT",
    "TIMING",
    "require",
    "whole_pareto",
    "whole_table",
]

NUMBER = (int, float, type(None))  # what is not finite is written as null
FIGURE = (int, float)
COUNT = (int, type(None))
WORD = (str,)
OBJECT: Mapping = {}
EACH = object()  # stands for every key of an object

CONFIG = {
    "version": WORD,
    "algorithm": {"name": WORD},
    "space": {"name": WORD},
    "data": {"name": WORD, "notes": [WORD], "image": [COUNT]},
    "search": {"epochs": COUNT, "collapse_limit": NUMBER},
    "kernels": {EACH: WORD},
    "versions": OBJECT,
}
_SCORE = {"column": WORD, "value": FIGURE, "rank": (int,), "best": FIGURE, "regret": FIGURE}
_TABLE = {"file": WORD, "architectures": (int,), "arch": WORD, "valid": _SCORE, "test": _SCORE}
_SOURCES = ("final", "epoch", "sample")
_ARCHITECTURE = {
    "hash": WORD,
    "genotype": OBJECT,
    "source": WORD,
    "epochs": [(int,)],
    "accuracy": FIGURE,
    "cost": FIGURE,
    "on_front": (bool,),
}
PARETO = {
    "unit": WORD,
    "about": WORD,
    "images": (int,),
    "column": WORD,
    "architectures": [_ARCHITECTURE | {"test": FIGURE}],
}
RESULT = {"warnings": [WORD], "table": _TABLE, "epoch": COUNT}
METRICS = {
    "kind": WORD,
    "epoch": COUNT,
    "entropy": NUMBER,
    "margin": NUMBER,
    "skip_count": {EACH: COUNT},
}
ALPHAS = {"epoch": (int,), "alphas": {EACH: [[NUMBER]]}}
TIMING = {
    "kind": WORD,
    "phase": WORD,
    "epoch": COUNT,
    "seconds": NUMBER,
    "steps_per_second": NUMBER,
    "images_per_second": NUMBER,
    "memory_bytes": NUMBER,
}
_TRAINED = [{"seed": COUNT, "accuracy": NUMBER, "loss": NUMBER, "parameters": COUNT}]
EVALUATION = {
    "searched": _TRAINED,
    "random": _TRAINED,
    "difference": NUMBER,
    "standard_error": NUMBER,
    "verdict": WORD,
    "sentence": WORD,
}


def require(value: Any, shape: Any, where: str) -> None:
    """Refuse a JSON value of another shape; keys may be missing, and unknown ones are free.

    Args:
        value: What was read.
        shape: A mapping of keys to shapes, a list with the shape of every entry, or the types of
            a plain value.
        where: What to call it in a message.

    Raises:
        DataError: Naming the place.

    Example:
        >>> require({"epoch": "one"}, METRICS, "metrics.jsonl")
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.DataError: run: metrics.jsonl: epoch must be int or null, got str
    """
    if isinstance(shape, Mapping):
        _require_kind(value, (dict,), where)
        for key, part in value.items():
            if (wanted := shape.get(key, shape.get(EACH))) is not None:
                require(part, wanted, f"{where}: {printable(key, 60)}")
    elif isinstance(shape, list):
        _require_kind(value, (list,), where)
        for part in value:
            require(part, shape[0], where)
    else:
        _require_kind(value, shape, where)


def whole_table(table: Any, where: str) -> Any:
    """Return what a result says of a table of measured architectures, if nothing is missing.

    Raises:
        DataError: If something is.

    Example:
        >>> whole_table({"file": "a.csv"}, "result.json")
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.DataError: run: result.json: table must have arch
    """
    if table is not None:
        splits = [(table.get(split, {}), _SCORE) for split in ("valid", "test")]
        for part, shape in ((table, _TABLE), *splits):
            _require_keys(part, shape, f"{where}: table")
    return table


def whole_pareto(record: Any, where: str) -> Any:
    """Return the content of ``pareto.json``, if nothing is missing: a picture needs every row.

    Raises:
        DataError: If something is missing or out of range, a source is none, other than one row
            is final, none is on the front, or only some have a published accuracy.

    Example:
        >>> whole_pareto({"unit": "ms", "images": 64, "architectures": []}, "pareto.json")
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.DataError: run: pareto.json must have one final architecture, got 0
    """
    if record is None:
        return None
    _require_keys(
        record, {key: PARETO[key] for key in PARETO if key not in ("about", "column")}, where
    )
    if record["images"] < 1:
        raise DataError(f"run: {where}: images must be at least 1, got {record['images']}")
    for row in record["architectures"]:
        _require_keys(row, _ARCHITECTURE, f"{where}: architectures")
        if row["source"] not in _SOURCES:
            raise DataError(
                f"run: {where}: architectures: source must be one of {', '.join(_SOURCES)}, got "
                f"{printable(row['source'], 60)!r}"
            )
        if not 0 <= row["accuracy"] <= 1:
            raise DataError(
                f"run: {where}: architectures: accuracy must be from 0 to 1, got {row['accuracy']}"
            )
    rows = record["architectures"]
    found = sum(row["source"] == "final" for row in rows)
    if found != 1:
        raise DataError(f"run: {where} must have one final architecture, got {found}")
    if not any(row["on_front"] for row in rows):
        raise DataError(f"run: {where} must have an architecture on the front, got none")
    if 0 < (tested := sum("test" in row for row in rows)) < len(rows):
        raise DataError(
            f"run: {where}: architectures must all have test or none, got {tested} of {len(rows)}"
        )
    return record


def _require_keys(record: Mapping[str, Any], shape: Mapping[str, Any], where: str) -> None:
    if missing := sorted(shape.keys() - record.keys()):
        raise DataError(f"run: {where} must have {missing[0]}")


def _require_kind(value: Any, kinds: tuple[type, ...], where: str) -> None:
    if type(value) not in kinds:
        names = ["null" if kind is type(None) else kind.__name__ for kind in kinds]
        raise DataError(f"run: {where} must be {' or '.join(names)}, got {type(value).__name__}")
    # Far beyond anything a run writes, and a plain float would overflow further on.
    if isinstance(value, int | float) and not abs(value) < LARGEST:
        got = f"{value:.4g}" if isinstance(value, float) else f"{value.bit_length()} bits"
        raise DataError(f"run: {where} must be a number of reasonable size, got {got}")
