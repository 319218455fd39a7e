"""Text that is safe inside SVG and HTML: escaping, numbers, attributes. No drawing here."""

import html
import math
import unicodedata
from collections.abc import Mapping

__all__ = ["attributes", "escape", "number", "percent", "printable", "share_of_one"]


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


def number(value: float, digits: int = 2) -> str:
    """Format a coordinate or a figure: fixed digits, no trailing zeros, no minus zero.

    Example:
        >>> number(3.10), number(-0.001), number(12.0)
        ('3.1', '0', '12')
    """
    if not math.isfinite(value):
        return "n/a"
    text = f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def percent(value: float, digits: int = 1) -> str:
    """Format a share as per cent.

    Example:
        >>> percent(0.91666)
        '91.7 %'
    """
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "n/a"


def share_of_one(value: float) -> str:
    """Format a share so that what is only nearly all is not called all.

    Example:
        >>> share_of_one(0.98765), share_of_one(0.999996), share_of_one(1.0)
        ('0.9877', 'above 0.9999', '1')
    """
    return "above 0.9999" if 0.99995 <= value < 1 else number(value, 4)


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
