"""From words on the command line to the dataclass of a command, and back to one line of error.

Options are derived from dataclass fields by tyro. What it refuses comes out as a single sentence
in the wording of the package, with the nearest name that would have been right.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tyro

from pyfast_nas.errors import ConfigError
from pyfast_nas.viz.markup import printable

__all__ = ["as_options", "chosen", "did_you_mean", "group", "option_names", "parse"]

NARROWEST = 60  # columns; a help text squeezed further cannot be read by anyone
_KINDS = {"INT": "an integer", "FLOAT": "a number", "PATH": "a path"}
LONGEST_VALUE = 200  # characters of a value that an error repeats


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """End of a message about an unknown word: the nearest known one, or all of them if few.

    Example:
        >>> did_you_mean("--epoch", ["--epochs", "--seed"])
        "; did you mean '--epochs'?"
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if len(known) <= 12 else ""


def option_names(kind: type, hidden: Sequence[str] = ()) -> dict[str, bool]:
    """Option of each field of a dataclass, and whether it is a switch that takes no value.

    Example:
        >>> @dataclasses.dataclass
        ... class Options:
        ...     batch_size: int = 64
        ...     augment: bool = True
        >>> option_names(Options)
        {'--batch-size': False, '--augment': True, '--no-augment': True}
    """
    names: dict[str, bool] = {}
    for field in dataclasses.fields(kind):
        if field.name in hidden or _is_positional(field):
            continue
        word = field.name.replace("_", "-")
        switch = field.type is bool
        names[f"--{word}"] = switch
        if switch:
            names[f"--no-{word}"] = True
    return names


def as_options(message: str, kinds: Iterable[type], hidden: Sequence[str] = ()) -> str:
    """Say in the options of the command line what the library says in the names of Python.

    Args:
        message: What is wrong with a field of one of the dataclasses.
        kinds: The dataclasses.
        hidden: Names of fields that are no options.

    Example:
        >>> @dataclasses.dataclass
        ... class Options:
        ...     cost: str = "none"
        ...     cost_target: float | None = None
        >>> as_options("X: cost_target must be None with cost='none', got 3.0", [Options])
        'X: --cost-target must not be given with --cost none, got 3.0'
    """
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    for name in names.difference(hidden):
        option, alone = f"--{name.replace('_', '-')}", rf"(?<![-\w.']){name}"
        message = re.sub(rf"{alone} must be None\b", f"{option} must not be given", message)
        message = re.sub(rf"{alone} must\b", f"{option} must", message)
        message = re.sub(rf"{alone}='([^']*)'", rf"{option} \1", message)
        message = re.sub(rf"{alone}=([-\w.]+)", rf"{option} \1", message)
    return message


def chosen(arguments: Sequence[str], option: str, default: str) -> str:
    """Last value given to an option, before the rest can be parsed.

    Example:
        >>> chosen(["--space", "toy", "--seed=1"], "--space", "darts")
        'toy'
    """
    value = default
    for place, word in enumerate(arguments):
        if word == option and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def group(default: Any, *, hidden: Sequence[str] = (), title: str) -> Any:
    """Copy a dataclass instance into a group of options for :func:`parse`.

    Args:
        default: Instance whose values are the defaults.
        hidden: Fields that are no options and keep their value.
        title: Sentence above the options in the help text.

    Returns:
        An instance of a subclass, with the hidden fields fixed.
    """
    kind = type(default)
    fields = [
        (field.name, tyro.conf.Fixed[field.type], _as_default(getattr(default, field.name)))
        for field in dataclasses.fields(kind)
        if field.name in hidden
    ]
    frozen = kind.__dataclass_params__.frozen
    # The docstring of the original explains it to programmers; here one sentence is enough.
    subclass = dataclasses.make_dataclass(
        kind.__name__,
        fields,
        bases=(kind,),
        frozen=frozen,
        kw_only=True,
        namespace={"__doc__": title},
    )
    values = {f.name: getattr(default, f.name) for f in dataclasses.fields(kind) if f.init}
    return subclass(**values)


def parse(
    groups: Mapping[str, Any],
    arguments: Sequence[str],
    *,
    command: str,
    description: str,
    foreign: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Parse the words after a command into the dataclasses of its groups.

    Args:
        groups: Name -> dataclass type, or instance whose values are the defaults.
        arguments: Words after the command's name.
        command: Name of the command.
        description: First paragraph of the help text.
        foreign: Known options that do not apply here -> why.

    Returns:
        The parsed instance of each group, of the type that was given.

    Raises:
        ConfigError: If the words cannot be understood; the message names the option.
        SystemExit: With code 0, after the help text was asked for and shown.
    """
    kinds = {
        name: value if isinstance(value, type) else type(value) for name, value in groups.items()
    }
    arguments = _checked(arguments, kinds.values(), command, foreign or {})
    fields = []
    for name, value in groups.items():
        default = {} if isinstance(value, type) else {"default_factory": lambda value=value: value}
        kind = tyro.conf.OmitArgPrefixes[kinds[name]]
        fields.append((name, kind, dataclasses.field(**default)))
    whole = dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)
    said = io.StringIO()
    try:
        with _readable_width(), contextlib.redirect_stderr(said):
            parsed = tyro.cli(
                whole,
                args=arguments,
                prog=f"pyfast-nas {command}",
                description=description,
                config=(
                    tyro.conf.SuppressFixed,
                    tyro.conf.DisallowNone,
                    tyro.conf.PositionalMetavarFromFieldName,
                ),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(
            f"{command}: {_sentence(said.getvalue(), arguments, kinds.values())}"
        ) from None
    return {name: getattr(parsed, name) for name in groups}


def _is_positional(field: dataclasses.Field) -> bool:
    return tyro.conf.Positional[int].__metadata__[0] in getattr(field.type, "__metadata__", ())


def _as_default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


def _checked(
    arguments: Sequence[str], kinds: Sequence[type], command: str, foreign: Mapping[str, str]
) -> list[str]:
    """Refuse unknown options and missing values; return the words with hyphens in options."""
    known: dict[str, bool] = {}
    for kind in kinds:
        known |= option_names(kind, hidden=_fixed(kind))
    words = []
    for place, word in enumerate(arguments):
        if not word.startswith("--") or word == "--":
            words.append(word)
            continue
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        words.append(f"{option}{equals}{value}")
        if option in {"--help", *known}:
            following = arguments[place + 1] if place + 1 < len(arguments) else "--"
            if not known.get(option, True) and not equals and following.startswith("--"):
                raise ConfigError(f"{command}: {option} needs a value")
        elif option in foreign:
            raise ConfigError(f"{command}: {option} {foreign[option]}")
        else:
            shown = repr(printable(option, LONGEST_VALUE))
            near = did_you_mean(option, sorted(known))
            raise ConfigError(f"{command}: unknown option {shown}{near}")
    return words


def _fixed(kind: type) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(kind)
        if tyro.conf.Fixed[int].__metadata__[0] in getattr(field.type, "__metadata__", ())
    ]


@contextlib.contextmanager
def _readable_width() -> Iterator[None]:
    """Let the help text be no narrower than a person can read."""
    if shutil.get_terminal_size().columns >= NARROWEST:
        yield
        return
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(NARROWEST)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _sentence(box: str, arguments: Sequence[str], kinds: Iterable[type]) -> str:
    """Take what is said out of a drawn box of text: its first paragraph, without the frame."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        inside = line.strip().strip("│").strip()
        if inside and set(inside) <= set("─-"):
            paragraphs.append([])
        elif inside and not line.startswith(("╭", "╰")):
            paragraphs[-1].append(inside)
    # Where lines cannot be drawn, the title stands in a paragraph of its own above.
    said = paragraphs[0] if box.startswith("╭") else paragraphs[min(1, len(paragraphs) - 1)]
    text = " ".join(said) or "the options cannot be understood"
    if option := re.match(r"Error parsing (--[a-z0-9-]+):", text):
        kind = re.search(rf"^│?\s*{option[1]} (.+?)\s*│?$", box, re.MULTILINE)
        word = kind[1].strip() if kind else ""
        value = repr(printable(chosen(arguments, option[1], ""), LONGEST_VALUE))
        return f"{option[1]} must be {_KINDS.get(word, word or 'something else')}, got {value}"
    if choice := re.match(r"invalid choice '(.*)' for argument '(--[a-z0-9-]+)'\. ", text):
        allowed = [
            word for word in re.findall(r"'([^']*)'", text[choice.end() :]) if word != "None"
        ]
        return (
            f"{choice[2]} must be one of {', '.join(allowed)}, got "
            f"{printable(choice[1], LONGEST_VALUE)!r}{_near(choice[1], allowed)}"
        )
    if text.startswith("Unrecognized options: "):
        return f"unexpected argument {printable(text[22:], LONGEST_VALUE)!r}"
    if missing := re.match(r"Missing from [^:]*: (\S+) (.*?)\s*\(required\)", text):
        return f"{missing[1]} is missing: {missing[2]}".rstrip(".")
    # What a dataclass refuses names its class and field; here both go by the option.
    if refused := re.match(r"Error parsing \w+: \w+: (\w+) (must .*)", text):
        words = refused[2].replace(" or None, got", ", got")
        return printable(as_options(f"{refused[1]} {words}", kinds), 2 * LONGEST_VALUE)
    return printable(text[:1].lower() + text[1:], 2 * LONGEST_VALUE).rstrip(".")


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
