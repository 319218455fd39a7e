"""Options of a search algorithm: typed fields with a range, checked from one table.

An option is a dataclass field. Its annotation says the type and, for a number, the allowed range::

    paths: Annotated[int, Range(at_least=1)] = 2

:func:`option_table` reads these annotations back, :func:`check_options` holds an instance to them.
"""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pyfast_nas.errors import ConfigError

__all__ = ["Option", "Range", "check_options", "option_table", "require_read"]


_KIND_WORDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The values a numeric option may take; bounds that are ``None`` do not bind.

    Example:
        >>> print(Range(above=0)), 0 in Range(above=0), 0.5 in Range(above=0)
        greater than 0
        (None, False, True)
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    odd: bool = False

    def __contains__(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (not self.odd or value % 2 == 1)
        )

    def __str__(self) -> str:
        words = [
            f"{phrase} {bound:g}"
            for phrase, bound in (
                ("at least", self.at_least),
                ("greater than", self.above),
                ("at most", self.at_most),
                ("less than", self.below),
            )
            if bound is not None
        ]
        return " and ".join(words)


@dataclasses.dataclass(frozen=True)
class Option:
    """One row of the option table: what a field of a configuration accepts."""

    name: str
    kind: type  # int, float, bool or str
    range: Range | None  # of numbers
    choices: tuple[str, ...]  # of strings
    count: int  # 0 for a plain value, n for a tuple of n
    optional: bool  # whether None is allowed

    def __str__(self) -> str:
        """What the option accepts, in the words of an error message."""
        if self.choices:
            words = "one of " + ", ".join(map(repr, self.choices))
        else:
            words = _KIND_WORDS[self.kind]
        if self.range is not None:
            words = words.replace("an integer", "an odd integer") if self.range.odd else words
            words = f"{words} {self.range}".rstrip()
        if self.count:
            words = f"{self.count} values, each {words}"
        return words + " or None" if self.optional else words

    def parse(self, value: object) -> Any:
        """Return ``value`` as the option's plain Python type.

        Raises:
            ValueError: If the option does not accept it.
        """
        if value is None and self.optional:
            return None
        if not self.count:
            return self._parse_one(value)
        if not isinstance(value, tuple | list) or len(value) != self.count:
            raise ValueError
        return tuple(map(self._parse_one, value))

    def _parse_one(self, value: object) -> Any:
        if self.kind is str:
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                raise ValueError
            return value
        if isinstance(value, bool) or self.kind is bool:
            if type(value) is not self.kind:
                raise ValueError
            return value
        wanted = numbers.Integral if self.kind is int else numbers.Real
        if not isinstance(value, wanted) or not math.isfinite(value):
            raise ValueError
        if self.range is not None and value not in self.range:
            raise ValueError
        return self.kind(value)


def option_table(config: type) -> tuple[Option, ...]:
    """Read the options of a configuration dataclass from its annotations.

    Args:
        config: A dataclass whose fields are ``int``, ``float``, ``bool``, ``str`` or a
            ``Literal`` of strings, a fixed tuple of one of these, or one of these ``| None``;
            numbers may stand in ``Annotated`` with a :class:`Range`.

    Example:
        >>> @dataclasses.dataclass(kw_only=True)
        ... class Config:
        ...     paths: typing.Annotated[int, Range(at_least=1)] = 2
        >>> [(option.name, str(option)) for option in option_table(Config)]
        [('paths', 'an integer at least 1')]
    """
    hints = typing.get_type_hints(config, include_extras=True)
    return tuple(
        _read_option(field.name, hints[field.name]) for field in dataclasses.fields(config)
    )


def _read_option(name: str, hint: Any) -> Option:
    limits = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        limits = next((extra for extra in extras if isinstance(extra, Range)), None)
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    count = 0
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        hint, count = parts[0], len(parts)
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return Option(name, str if choices else hint, limits, choices, count, optional)


def check_options(config: Any) -> None:
    """Check every field of a configuration and store it as its plain Python type.

    Args:
        config: An instance of a dataclass as :func:`option_table` describes it.

    Raises:
        ConfigError: If a value has the wrong type, is not finite, or is out of range; the message
            names the option, the value and what is allowed.

    Example:
        >>> from pyfast_nas.algorithms import MSGDAS
        >>> MSGDAS(paths=0)
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.ConfigError: MSGDAS: paths must be an integer at least 1, got 0
    """
    for option in option_table(type(config)):
        value = getattr(config, option.name)
        try:
            setattr(config, option.name, option.parse(value))
        except (ValueError, OverflowError):
            given = repr(value)[:200]
            raise ConfigError(
                f"{type(config).__name__}: {option.name} must be {option}, got {given}"
            ) from None


def require_read(config: Any, read: Mapping[str, bool], others: str) -> None:
    """Refuse options that have a value of their own where nothing looks at them.

    Args:
        config: An instance of a dataclass with a default for each of these options.
        read: Name of an option -> whether something looks at it.
        others: The options that say so, with their values.

    Raises:
        ConfigError: Naming the first of them.

    Example:
        >>> from pyfast_nas.algorithms import ProxylessNAS
        >>> ProxylessNAS(samples=3)
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.ConfigError: ProxylessNAS: samples must be 10 with gradient='full_v2', \
where nothing reads it, got 3
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, is_read in read.items():
        if not is_read and (value := getattr(config, name)) != defaults[name]:
            raise ConfigError(
                f"{type(config).__name__}: {name} must be {defaults[name]!r} with {others}, where "
                f"nothing reads it, got {value!r:.200}"
            )
