"""The files of a run: claimed once, whole ones replaced atomically, lines appended as they come."""

import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyfast_nas.data.image_data import shown
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces import SPACES

__all__ = ["RunFiles", "to_json"]

_LOG = logging.getLogger("pyfast_nas")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return strict JSON with sorted keys; what is not finite becomes ``null``.

    Example:
        >>> to_json({"b": float("nan"), "a": (1, 2.5)})
        '{"a": [1, 2.5], "b": null}'
    """
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RunFiles:
    """The output folder of a run, or nowhere when no folder is wanted.

    What is lost with a line of metrics is a line, so a failed append is reported once and the run
    goes on; a result that cannot be written is an error.

    Args:
        folder: Where to write; ``None`` writes nothing.
        overwrite: Take a folder that holds an earlier run, and remove that run's files.
        function: Who speaks in messages.

    Raises:
        ConfigError: If the folder exists and holds something, and ``overwrite`` is off.

    Example:
        >>> files = RunFiles(None)
        >>> files.append("metrics.jsonl", {"step": 1})
    """

    def __init__(
        self, folder: str | os.PathLike | None, *, overwrite: bool = False, function: str = "search"
    ):
        self.folder = Path(folder) if folder is not None else None
        self._silenced: set[str] = set()
        if self.folder is None:
            return
        self.require_free(folder, overwrite=overwrite, function=function)
        with _naming(folder, function):
            if self.folder.is_dir():
                _remove_earlier(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def require_free(
        folder: str | os.PathLike | None, *, overwrite: bool = False, function: str = "search"
    ) -> None:
        """Raise unless a run may write there; nothing is written yet.

        Raises:
            ConfigError: If the folder exists and holds something, and ``overwrite`` is off.

        Example:
            >>> RunFiles.require_free("no/such/folder")
        """
        if folder is None:
            return
        path, shown_path = Path(folder), shown(str(folder))
        with _naming(folder, function):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{function}: output must be a folder, got the file {shown_path}")
            if not overwrite and path.is_dir() and any(path.iterdir()):
                raise ConfigError(
                    f"{function}: output must be new or empty, got {shown_path}, which holds "
                    "files: name another folder (--output) or replace them (--overwrite)"
                )

    def path(self, name: str) -> Path | None:
        """Return where a file of the run belongs, or ``None`` when nothing is written."""
        return None if self.folder is None else self.folder / name

    def write(self, name: str, text: str) -> None:
        """Replace a whole file; a reader sees the old content or the new, never a part."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replace a whole file, as :meth:`write` does."""
        path = self.path(name)
        if path is None:
            return
        # No number of a process: in containers these come again.
        temporary = path.with_name(f".{name}.{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            reason = f"{error.strerror} (make room there, or name another output)"
            raise OSError(error.errno, reason, str(path)) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Replace a whole file with strict, readable JSON."""
        self.write(name, to_json(value, indent=2) + "\n")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Append one line of JSON; a failure is logged once a file and never raised."""
        path = self.path(name)
        if path is None or name in self._silenced:
            return
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(to_json(row) + "\n")
        except OSError as error:
            self._silenced.add(name)
            _LOG.warning(
                "%s cannot be written (%s); the run goes on without it",
                shown(str(path)),
                error.strerror,
            )


@contextlib.contextmanager
def _naming(folder: str | os.PathLike, function: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{function}: output must be a folder that can be written, got "
            f"{shown(str(folder))}: {error.strerror}"
        ) from error


def _remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier run, what it left half-written, and its pictures."""
    tables = {table for kind in SPACES.values() for table in kind().candidates}
    for name in (*_OWN_FILES, *(f"{table}.svg" for table in tables)):
        (folder / name).unlink(missing_ok=True)
        for half in folder.glob(f".{name}.*.tmp"):
            half.unlink(missing_ok=True)


_OWN_FILES = (
    "alphas.jsonl",
    "config.json",
    "evaluation.json",
    "genotype.json",
    "metrics.jsonl",
    "network.pt2",
    "pareto.json",
    "pareto.svg",
    "report.html",
    "result.json",
    "timing.jsonl",
    "weights.npz",
)
