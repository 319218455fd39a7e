"""Files and folders that a person names on the command line, and names for new ones."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.spaces.base import Genotype, SearchSpace
from pyfast_nas.viz.markup import printable
from pyfast_nas.viz.run_folder import RunFolder

__all__ = [
    "check_output",
    "free_folder",
    "quoted_path",
    "read_genotype",
    "read_run",
    "space_of",
    "writing",
]


def read_genotype(path: Path) -> Genotype:
    """Read a genotype file, or the one of a run folder.

    Raises:
        GenotypeError: If the file is no genotype.
        DataError: If it cannot be read.
    """
    if path.is_dir():
        path = path / "genotype.json"
    with _reading(path):
        return Genotype.load(path)


def read_run(path: Path) -> RunFolder:
    """Read the folder of a run.

    Raises:
        DataError: If it is no run folder, or cannot be read.
    """
    with _reading(path):
        return RunFolder.read(path)


def space_of(path: Path, genotype: Genotype) -> SearchSpace | None:
    """Space of the run beside whose files a genotype stands, or ``None`` if it stands alone."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        return None
    space = read_run(folder).space
    return space if space is not None and space.name == genotype.space else None


def check_output(command: str, path: Path) -> None:
    """Raise unless a file can be written there, before the work that it is for.

    Raises:
        ConfigError: If the folder is missing or closed, or the name is that of a folder.

    Example:
        >>> check_output("inspect", Path("no/such/costs.json"))
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.ConfigError: inspect: --output must be a file in a folder that exists, \
got no/such/costs.json; make the folder or name another
    """
    where = quoted_path(path)
    if path.is_dir():
        raise ConfigError(f"{command}: --output must be a file, got the folder {where}")
    if not path.parent.is_dir():
        raise ConfigError(
            f"{command}: --output must be a file in a folder that exists, got {where}; make the "
            f"folder or name another"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{command}: --output must be in a folder that can be written, got {where}; "
            f"name another"
        )


@contextlib.contextmanager
def writing(command: str, path: Path) -> Iterator[None]:
    """Name the file of ``--output`` and the way out where it cannot be written.

    Raises:
        OSError: Where the body raised one.
    """
    try:
        yield
    except OSError as error:
        reason = f"{command}: --output {quoted_path(path)} cannot be written: "
        raise OSError(f"{reason}{error.strerror}; name another file") from None


def free_folder(parent: Path, stem: str) -> Path:
    """Name a folder that does not exist yet: the stem and the first free number.

    Example:
        >>> free_folder(Path("no/such/parent"), "digits-darts").name
        'digits-darts-1'
    """
    number = 1
    while (folder := parent / f"{stem}-{number}").exists():
        number += 1
    return folder


def quoted_path(path: str | os.PathLike[str]) -> str:
    """Path as it can be pasted into a shell, free of control characters.

    Example:
        >>> quoted_path("my run/a")
        "'my run/a'"
    """
    import shlex

    text = os.fspath(path)
    if printable(text) != text:  # the shell's own escapes keep such a name whole
        return "$'" + printable(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"
    return shlex.quote(text if not text.startswith("-") else f"./{text}")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{quoted_path(path)} cannot be read: {reason}") from None
