"""What the JSON files of a run must look like, so that no reader of them meets a surprise."""

import math
from collections.abc import Mapping
from typing import Any

from pyfast_nas.errors import DataError
from pyfast_nas.viz.markup import printable

__all__ = [
    "ALPHAS",
    "CONFIG",
    "EVALUATION",
    "METRICS",
    "RESULT",
    "SCORE",
    "TABLE",
    "TIMING",
    "require",
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
SCORE = {"column": WORD, "value": FIGURE, "rank": (int,), "best": FIGURE, "regret": FIGURE}
TABLE = {"file": WORD, "architectures": (int,), "arch": WORD, "valid": SCORE, "test": SCORE}
RESULT = {"warnings": [WORD], "table": TABLE}
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


def _require_kind(value: Any, kinds: tuple[type, ...], where: str) -> None:
    if type(value) not in kinds:
        names = ["null" if kind is type(None) else kind.__name__ for kind in kinds]
        raise DataError(f"run: {where} must be {' or '.join(names)}, got {type(value).__name__}")
    # Far beyond anything a run writes, and a plain float would overflow further on.
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < 1e30):
        raise DataError(f"run: {where} must be a number of reasonable size, got {value!r:.40}")
