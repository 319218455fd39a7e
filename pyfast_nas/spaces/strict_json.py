"""JSON text as a document, with every reading that JSON libraries disagree on refused.

Limits come first, so that no text of any kind takes more than a moment or a little memory.
"""

import json
import re
from typing import Any

from pyfast_nas.errors import Error, GenotypeError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "parse"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
# A string is one token, so brackets inside it do not count; possessive, so time stays linear.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)


def parse(text: str, what: str = "Genotype", error: type[Error] = GenotypeError) -> Any:
    """Return the document that a JSON text holds.

    Args:
        text: At most `MAX_BYTES` characters.
        what: What the document describes, for messages.
        error: What is raised where the text is no such JSON.

    Raises:
        Error: If it is not JSON, or holds NaN, infinity, a doubled key, a byte order mark, NUL, a
            long number or deep nesting.

    Example:
        >>> parse('{"version": 1}')
        {'version': 1}
    """
    try:
        return _parsed(text)
    except json.JSONDecodeError as broken:
        raise error(
            f"{what}: not a {what.lower()}: {broken.msg} at line {broken.lineno}, column "
            f"{broken.colno}; a JSON object was expected"
        ) from None
    except ValueError as broken:
        raise error(f"{what}: {broken}") from None


def _parsed(text: str) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {type(text).__name__}")
    if len(text) > MAX_BYTES:
        raise ValueError(f"the text must be at most {MAX_BYTES} bytes long, got {len(text)}")
    if text.startswith("\ufeff"):
        raise ValueError("the text must not start with a byte order mark (BOM)")
    if "\x00" in text:
        raise ValueError(f"the text must not hold NUL, got one at character {text.index(chr(0))}")
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"the text must nest at most {MAX_DEPTH} deep, got more")
    return json.loads(
        text,
        parse_constant=_refuse_constant,
        parse_int=_integer,
        parse_float=_finite,
        object_pairs_hook=_unique,
    )


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"numbers must be finite, got {text}")


def _integer(text: str) -> int:
    if len(text) > 18:
        raise ValueError(f"numbers must have at most 18 digits, got {len(text)}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 32 else float("inf")
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"numbers must be finite and short, got {text:.40}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"keys must not repeat, got duplicate key {key!r:.200}")
        document[key] = value
    return document
