"""Whether the store's files are still the ones that were opened.

SQLite in WAL mode does not look: it goes on writing to a file that was moved, replaced or removed, and what it commits
there is gone for whoever opens the path next.
"""

from __future__ import annotations

import os
from pathlib import Path

from worker.errors import StoreUnavailable


class FileIdentity:
    """The database file and its write-ahead log, as they were when the writer's connection was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_path = path.with_name(path.name + "-wal")
        self._file: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None

    def connected(self) -> None:
        """Note what the new connection opened."""
        self._file = self._file or _identity(self._path)
        self._log = _identity(self._log_path)

    def closed(self) -> None:
        """The log may be another after this: the last connection that closes removes it."""
        self._log = None

    def require(self) -> None:
        """Raise `StoreUnavailable` where a file is another now, or gone. Two `stat` calls, some microseconds."""
        if self._file is not None and _identity(self._path) != self._file:
            raise StoreUnavailable(
                f"the store {self._path} was moved, replaced or removed while it was open; put it back, "
                "or restart the worker to go on with what lies there now"
            )
        if self._log is not None and _identity(self._log_path) != self._log:
            raise StoreUnavailable(
                f"{self._log_path} was moved, replaced or removed while the store was open; stop the worker with "
                "SIGTERM, never SIGKILL: closing the store saves what is in it"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  Path.stat takes twice as long, and this runs in each transaction
    except OSError:
        return None
    return found.st_dev, found.st_ino
