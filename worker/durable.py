"""Files and directories that are whole or not there, after a power cut too.

A file is written, synced, renamed; a name is on the disk once the directory that holds it was synced.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Not blocking: opening a named pipe would wait for somebody who writes to it, for ever.
_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: What a full disk, or a quota that is used up, says.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_private_directory(path: Path, *, mode: int = 0o700) -> None:
    """Make `path` and what is missing above it, for this user alone (0700); OSError where it cannot be made.

    `mode` is of `path` itself, for one that others may look into where somebody lets them in further up.
    """
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(mode=mode if missing == path else 0o700, exist_ok=True)
        # Else all that is synced in it later would be in a directory without a name (found by the power-cut replay).
        sync_directory(missing.parent.resolve())


def refuse_links(path: Path, *, below: Path) -> None:
    """OSError where a directory from `below` (not itself) down to `path` is a link: it would lead our writes elsewhere.

    A check before the act: it is for links that lie there, not for somebody who races us and may write here anyway.
    """
    for part in (path, *path.parents):
        if part == below:
            return
        if part.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link; put the directory itself there", str(part))


def sync_directory(path: Path) -> None:
    """Make names in `path` (new, renamed, removed) survive a power cut; OSError where it is a link."""
    with synced_at_the_end(path):
        pass


@contextmanager
def synced_at_the_end(directory: Path) -> Iterator[None]:
    """Make what changes in `directory` within the block survive a power cut, unless the block fails.

    It is opened first: what cannot be made durable (the directory is a link) is refused before anything changes.
    """
    descriptor = os.open(directory, _DIRECTORY)
    try:
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    try:
        with synced_at_the_end(path.parent):
            write_new(temporary, data, mode=mode)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
