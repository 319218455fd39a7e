"""Text that is safe inside SVG and HTML. No drawing here."""

import html
import unicodedata
from collections.abc import Mapping

from pyfast_nas.viz.units import number

__all__ = ["attributes", "escape", "printable"]


def printable(text: object, limit: int | None = None) -> str:
    r"""Return ``text`` with control, format and surrogate characters shown as escapes.

    What comes from a file may hold terminal sequences or characters that turn the writing
    direction round; a person reading the output must see them rather than obey them.

    Args:
        text: Anything; ``str`` is taken of it.
        limit: Longest result in characters; a longer one is cut and ends in an ellipsis.

    Example:
        >>> printable("skip\x1b[31m")
        'skip\\x1b[31m'
    """
    cleaned = "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char)[0] == "C" else char
        for char in str(text)
    )
    if limit is not None and len(cleaned) > limit:
        return cleaned[: limit - 1] + "…"
    return cleaned


def escape(text: object, limit: int | None = None) -> str:
    """Return ``text`` ready to stand between tags or in a quoted attribute.

    Example:
        >>> escape("a<b & 'c'")
        'a&lt;b &amp; &#x27;c&#x27;'
    """
    return html.escape(printable(text, limit), quote=True)


def attributes(values: Mapping[str, object]) -> str:
    """Write attributes, each with a leading space; floats are rounded, ``None`` is left out.

    Example:
        >>> attributes({"x": 1.50001, "class": "edge", "id": None})
        ' x="1.5" class="edge"'
    """
    parts = []
    for key, value in values.items():
        if value is not None:
            shown = number(value) if isinstance(value, float) else escape(value)
            parts.append(f' {key}="{shown}"')
    return "".join(parts)
