"""Locks that the kernel drops with the process, however it ends: one holder, and the next one is told who it is."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


class InUse(Exception):
    """Somebody else has the lock; the text says who."""


class FileLock:
    """An flock on a file that is there for nothing else, and stays: removed, two could lock two files of one name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock at once. Raises `InUse`, or `OSError` where the file cannot be opened or is a link."""
        # No link is followed: the file's name is guessable and its directory may be shared.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise InUse(holder) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
