"""The lock on the store file: one worker writes, a second one is told who holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from worker.errors import ConfigurationError, StoreUnavailable


class StoreLock:
    """An flock on `<store>.lock`, which the kernel drops with the process, however it ends."""

    def __init__(self, store: Path) -> None:
        self._path = store.with_name(store.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock at once or raise `ConfigurationError` that names its holder."""
        try:
            # No link is followed: the file's name is guessable and its directory may be shared.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"{self._path} cannot be opened ({error.strerror}); make the directory of SWARM_STORE_URL writable, "
                "and the lock no symbolic link"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ConfigurationError(
                f"the store {self._path.with_suffix('')} is in use by {holder}; stop it, or give this worker "
                "a store of its own with SWARM_STORE_URL"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two workers lock two files of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
