"""Numbers the way a person reads them: shares, times, sizes."""

import math

__all__ = ["amount", "duration", "memory", "number", "percent", "share_of_one"]


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


def duration(seconds: float) -> str:
    """Write a time span the way a person says it.

    Example:
        >>> duration(0.42), duration(75.2), duration(3725)
        ('0.4 s', '1 min 15 s', '1 h 2 min')
    """
    if not math.isfinite(seconds):
        return "n/a"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(count: float) -> str:
    """Write a number of bytes in binary units.

    Example:
        >>> memory(3 * 2**20), memory(1.5 * 2**30)
        ('3 MiB', '1.5 GiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{number(count / size, 1 if unit == 'GiB' else 0)} {unit}"
    return f"{number(count, 0)} bytes"


def amount(value: float, unit: str) -> str:
    """Write a cost with its unit: four digits that count, or all of a whole number.

    Example:
        >>> amount(12345.0, "parameters"), amount(1.23456, "ms")
        ('12,345 parameters', '1.235 ms')
    """
    is_long = abs(value) >= 1000 or value == int(value)
    return f"{value:,.0f} {unit}" if is_long else f"{value:.4g} {unit}"
