"""``pyfast-nas``: which word runs which command, and how each kind of failure ends the process."""

import contextlib
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

__all__ = ["COMMANDS", "main"]


class Command(NamedTuple):
    """One row of the dispatch table; the module is imported when the command is called."""

    module: str
    options: str  # name of its dataclass
    summary: str
    takes: str = ""  # what stands before the options


COMMANDS = {
    "search": Command("search", "Search", "search an architecture, compare it with random ones"),
    "train": Command("train", "Train", "train the network of a genotype from scratch", "GENOTYPE"),
    "derive": Command("derive", "Derive", "take the genotype of any epoch of a run", "FOLDER"),
    "plot": Command("plot", "Plot", "draw cells: SVG, DOT or Mermaid", "GENOTYPE"),
    "report": Command("report", "Report", "write the HTML report of a run once more", "FOLDER"),
    "inspect": Command(
        "inspect",
        "Inspect",
        "show a genotype, a run, or costs of a space",
        "PATH | --cost COST --space SPACE",
    ),
    "info": Command("info", "Info", "say what is installed and which kernels serve"),
    "bench": Command("bench", "Bench", "time kernels and supernets against plain PyTorch"),
    "build": Command("build", "Build", "compile the kernels for this machine"),
}
USAGE = "usage: pyfast-nas COMMAND [OPTIONS]"

OK, FAILED, USAGE_ERROR, BAD_INPUT, CANNOT_WRITE, DIVERGED, NO_MEMORY = range(7)
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    Codes: 0 done; 1 anything else; 2 usage or configuration, nothing started; 3 bad input file;
    4 a file could not be written; 5 divergence; 6 out of memory; 130 interrupted.

    Args:
        arguments: Words after the program's name; those of the process if not given.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        pyfast-nas ...
        0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    name = words[0] if words and words[0] in COMMANDS else ""
    with _tolerant(sys.stdout), _tolerant(sys.stderr), _plain_warnings():
        try:
            code = _run(words)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # The reader has what it wanted; Python would complain once more at exit.
            _silence_stdout()
            return OK
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except SystemExit as stop:  # a help text was asked for
            return stop.code if isinstance(stop.code, int) else OK
        except Exception as error:
            if debug:
                traceback.print_exc()
            code = _code(error)
            if code is None:
                if not debug:
                    traceback.print_exc()
                return FAILED
            print(f"error: {_one_line(error)}", file=sys.stderr)
            if code == USAGE_ERROR:
                print(_usage(name), file=sys.stderr)
            return code


def _run(words: list[str]) -> int:
    from pyfast_nas._version import __version__

    first = words[0] if words else ""
    if first in {"-h", "--help", "help"}:
        print(_overview())
        return OK
    if first == "--version":
        print(f"pyfast-nas {__version__}")
        return OK
    from pyfast_nas.errors import ConfigError

    if first not in COMMANDS:
        from pyfast_nas.cli.parsing import did_you_mean
        from pyfast_nas.viz.markup import printable

        if not first:
            raise ConfigError(f"a command must be given: {', '.join(COMMANDS)}")
        kind = "option" if first.startswith("-") else "command"
        near = did_you_mean(first, list(COMMANDS))
        raise ConfigError(f"unknown {kind} {printable(first, 200)!r}{near}")
    command = COMMANDS[first]
    module = importlib.import_module(f"pyfast_nas.cli.{command.module}")
    if hasattr(module, "parse"):
        return module.run(module.parse(words[1:]))
    from pyfast_nas.cli.parsing import parse

    kind = getattr(module, command.options)
    parsed = parse({"options": kind}, words[1:], command=first, description=kind.__doc__)
    return module.run(parsed["options"])


def _usage(name: str) -> str:
    if not name:
        return f"{USAGE}   (pyfast-nas --help lists them)"
    words = " ".join(filter(None, ["pyfast-nas", name, COMMANDS[name].takes, "[OPTIONS]"]))
    return f"usage: {words}   (pyfast-nas {name} --help lists them)"


def _overview() -> str:
    lines = [USAGE, "", "Differentiable architecture search on native PyTorch kernels.", ""]
    lines += [f"  {name:<9}{command.summary}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "  pyfast-nas COMMAND --help   options of a command, with their defaults",
        "  --version                   show the version",
        "  --debug                     show where an error came from",
    ]
    return "\n".join(lines)


def _code(error: Exception) -> int | None:
    """Exit code of an error that is told in one line; ``None`` for one that is a fault of ours."""
    from pyfast_nas import errors

    table = (
        ((errors.ConfigError, errors.SearchSpaceError), USAGE_ERROR),
        ((errors.GenotypeError, errors.DataError), BAD_INPUT),
        ((errors.DivergenceError,), DIVERGED),
        ((errors.MemoryBudgetError, MemoryError), NO_MEMORY),
        ((errors.Error,), FAILED),
        ((OSError,), CANNOT_WRITE),
    )
    for kinds, code in table:
        if isinstance(error, kinds):
            return code
    # torch says it with a RuntimeError of many lines, the GPU's is a subclass.
    text = str(error)
    if isinstance(error, RuntimeError) and (
        "out of memory" in text.lower() or "can't allocate memory" in text
    ):
        return NO_MEMORY
    return None


def _one_line(error: Exception) -> str:
    from pyfast_nas.viz.markup import printable

    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {printable(repr(error.filename), 300)}"
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(text, 1000)


@contextlib.contextmanager
def _tolerant(stream: TextIO) -> Iterator[None]:
    """Write what a terminal's character set lacks as an escape instead of failing."""
    change = getattr(stream, "reconfigure", None)
    before = getattr(stream, "errors", None)
    if change is None:
        yield
        return
    change(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            change(errors=before)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings and the package's log as one line each on stderr."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from pyfast_nas.viz.markup import printable

            with contextlib.suppress(OSError, ValueError):
                print(f"warning: {printable(record.getMessage(), 1000)}", file=sys.stderr)

    def show(message: Warning | str, *_where: object, **_more: object) -> None:
        logger.warning("%s", message)

    logger, handler = logging.getLogger("pyfast_nas"), Lines(logging.WARNING)
    before = warnings.showwarning, logger.propagate
    logger.addHandler(handler)
    warnings.showwarning, logger.propagate = show, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        warnings.showwarning, logger.propagate = before


def _silence_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        empty = os.open(os.devnull, os.O_WRONLY)
        os.dup2(empty, sys.stdout.fileno())
        os.close(empty)


if __name__ == "__main__":
    sys.exit(main())
