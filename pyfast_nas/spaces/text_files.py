"""Small text files that describe something: read with care, replaced in one instant."""

import errno
import os
import secrets
import stat
from pathlib import Path

from pyfast_nas.errors import Error
from pyfast_nas.spaces.strict_json import MAX_BYTES

__all__ = ["read_text", "write_text"]


def read_text(path: str | os.PathLike[str], what: str, error: type[Error]) -> str:
    """Return the text of a regular file of at most `MAX_BYTES` bytes.

    Args:
        path: Pipes and devices are refused.
        what: What the file ought to be, for messages.
        error: What is raised where it is something else.

    Raises:
        OSError: If the file is missing, a directory or unreadable.
    """
    name = os.fspath(path)
    # Without O_NONBLOCK, opening a pipe nobody writes to would wait for ever.
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if not stat.S_ISREG(mode):
            raise error(f"{what}: {name!r:.200} must be a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise error(f"{what}: {name!r:.200} must be at most {MAX_BYTES} bytes long")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as broken:
        raise error(
            f"{what}: {name!r:.200} must be text: byte {broken.start} is not UTF-8"
        ) from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text so that the file is at every instant the old or the new one.

    Args:
        path: File to write or replace.
        text: Its whole content.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
