"""The lock on the store file: one worker writes, a second one is told who holds it."""

from __future__ import annotations

from pathlib import Path

from worker.errors import ConfigurationError, StoreUnavailable
from worker.locks import FileLock, InUse


class StoreLock:
    """A lock on `<store>.lock`."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._lock = FileLock(store.with_name(store.name + ".lock"))

    def acquire(self) -> None:
        """Take the lock at once or raise `ConfigurationError` that names its holder."""
        try:
            self._lock.acquire()
        except InUse as holder:
            raise ConfigurationError(
                f"the store {self._store} is in use by {holder}; stop it, or give this worker a SWARM_DATA_DIR of its "
                "own, and a SWARM_STORE_URL where that is set"
            ) from holder
        except OSError as error:
            raise StoreUnavailable(
                f"{self._lock.path} cannot be opened ({error.strerror}); make the directory of SWARM_STORE_URL "
                "writable, and the lock no symbolic link"
            ) from error

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()
