"""Directories whose names survive a power cut. A name is on the disk once the directory that holds it was synced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def make_private_directory(path: Path) -> None:
    """Make `path` and what is missing above it, for this user alone (0700); OSError where it cannot be made."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
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
    descriptor = os.open(path, _DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
