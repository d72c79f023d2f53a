"""Files that are whole or not there, after a power cut too: write, fsync, rename, fsync the directory."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

#: Not blocking: opening a named pipe would wait for somebody who writes to it, for ever.
_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create `path` with `data` on disk; FileExistsError where something is there, a symlink included."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put `data` in the place of `path` at once: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Opened first: what cannot be made durable (the directory is a link) is refused before a reader sees it.
    directory = os.open(path.parent, _DIRECTORY)
    try:
        write_new(temporary, data, mode=mode)
        temporary.replace(path)
        os.fsync(directory)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(directory)


def read_file(path: Path, *, limit: int) -> bytes:
    """The bytes of a regular file; OSError where it is a symlink, ValueError where it is none or over `limit` bytes."""
    descriptor = os.open(path, _READ_ONLY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is no regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is over {limit} bytes")
    return data
