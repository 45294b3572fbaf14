"""Small files read once and written whole: what a decision rests on must not change between two looks at it.

A name can point to another file a moment later, so a file is opened once, judged by what was opened, and handed on as
bytes. A new one takes its name only when all of it is on disk, so that no reader ever sees half of one.
"""

import os
import secrets
import stat
from os import PathLike
from pathlib import Path

BINARY: int = getattr(os, "O_BINARY", 0)


class WrongFileError(ValueError):
    """A path that leads to something that is not read; the text says why, to follow the path."""


def read(path: str | PathLike[str], largest: int, kind: str) -> bytes:
    """All of the file at `path`, through links; WrongFileError if it is no file or has more than `largest` bytes.

    `kind` is what it should be, for the error. OSError where it cannot be read, ValueError for a null byte in the path.
    """
    # without O_NONBLOCK a pipe in the file's place would be waited for
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise WrongFileError("it is not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            contents = file.read(largest + 1) if status.st_size <= largest else None
    finally:
        os.close(descriptor)
    if contents is None or len(contents) > largest:
        raise WrongFileError(f"it is larger than the {largest} bytes that {kind} may have")
    return contents


def write(path: str | PathLike[str], contents: bytes, *, private: bool = False) -> None:
    """Put a file with `contents` at `path`: all of it, synced to disk, or nothing; readable by its owner if `private`.

    Through a link, the file that it points to is replaced. OSError, or ValueError for a path with a null byte.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY
        with os.fdopen(os.open(temporary, new, 0o600 if private else 0o666), "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
