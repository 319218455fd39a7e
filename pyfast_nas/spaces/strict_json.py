"""JSON text as a document, with every reading that JSON libraries disagree on refused.

Limits come first, so that no text of any kind takes more than a moment or a little memory.
"""

import json
import re
from typing import Any

from pyfast_nas.errors import GenotypeError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "parse"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
# A string is one token, so brackets inside it do not count; possessive, so time stays linear.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)


def parse(text: str) -> Any:
    """Return the document that a JSON text holds.

    Args:
        text: At most `MAX_BYTES` characters.

    Raises:
        GenotypeError: If it is not JSON, or holds NaN, infinity, a doubled key, a byte order
            mark, NUL, a long number or deep nesting.

    Example:
        >>> parse('{"version": 1}')
        {'version': 1}
    """
    if not isinstance(text, str):
        raise GenotypeError(f"Genotype.from_json: text must be a string, got {type(text).__name__}")
    if len(text) > MAX_BYTES:
        raise GenotypeError(
            f"Genotype: the text must be at most {MAX_BYTES} bytes long, got {len(text)}"
        )
    if text.startswith("\ufeff"):
        raise GenotypeError("Genotype: the text must not start with a byte order mark (BOM)")
    if "\x00" in text:
        raise GenotypeError(
            f"Genotype: the text must not hold NUL, got one at character {text.index(chr(0))}"
        )
    if text.lstrip().startswith("Genotype("):
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
