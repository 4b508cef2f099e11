"""Files that are written whole or not at all, folders that one process holds, and YAML that people edit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fogzo.errors import UserError, explained

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one reads 500 configs in a second, not in ten
LOCK = ".lock"
WAY_OUT = "mend it, or put back the version that was committed"


def atomic_write(path: Path, data: bytes) -> None:
    """Write all of ``data`` or nothing: a reader, or a crash, sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk says of no file that it was to be written
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def locked(folder: Path, *, wait: bool, kind: type[UserError] = UserError) -> Iterator[None]:
    """Hold ``folder`` alone.  The lock dies with its process, so a kill leaves none behind.

    Raises:
        UserError: as ``kind``, if another process holds it, and ``wait`` is false.
    """
    try:
        with FileLock(folder / LOCK, timeout=-1 if wait else 0):
            yield
    except Timeout as error:
        raise kind(f"another process is at work in {folder}: wait for it, or name another folder") from error


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Return the keys and values of a YAML file; ``None`` if there is no such file, or nothing in it.

    Raises:
        UserError: if it cannot be read, as with the marks of a merge in it, or holds something else.
    """
    return parse_yaml(path, read_bytes(path)) if path.exists() else None


def read_bytes(path: Path) -> bytes:
    """Return what a file holds that people edit and commit; UserError if it cannot be read."""
    with explained(path, WAY_OUT):
        return path.read_bytes()


def parse_yaml(path: Path, data: bytes) -> dict[str, Any] | None:
    """Return what ``read_yaml`` does, of a file's bytes."""
    with explained(path, WAY_OUT, also=(yaml.YAMLError,)):
        content = yaml.load(data, Loader)
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path} holds {str(content)[:40]!r}, no keys with values: {WAY_OUT}")
    return content
