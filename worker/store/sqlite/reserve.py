"""Room kept beside the store for when the disk is full: what the worker must write to stay in hand still fits then.

The file is given up at the first commit that finds no room. Records and projections wait from then on, and what is
small goes on: commands are accepted and answered, leases given back, a run's end is noted. Once there is room for the
file again it is made again, and all goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import structlog

from worker.errors import StoreUnavailable

log = structlog.get_logger(__name__)

#: As reliability practice has it; the write-ahead log is checkpointed at 16 MB too.
RESERVE_BYTES = 16 * 1024 * 1024
#: Free bytes at which the reserve is made again. More than itself: else what it freed would be room enough at once.
ROOM_TO_GO_ON = RESERVE_BYTES * 3 // 2


class Reserve:
    """`<store>.reserve`. Used in the writer's thread only."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store.with_name(store.name + ".reserve")
        self._kept = False

    def make(self) -> None:
        """Take the room, where it is there."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _allocate(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            self._remove()  # what was got of it
        else:
            self._kept = True

    def give_up(self) -> None:
        """Free the room for what is small."""
        if self._kept:
            log.error("reserve_freed", path=str(self._path), bytes=RESERVE_BYTES)
        self.release()

    def release(self) -> None:
        """Leave nothing behind: a store that is closed needs no room."""
        if self._kept:
            self._kept = False
            self._remove()

    def _free(self) -> int:
        try:
            found = os.statvfs(self._path.parent)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # where not even this can be done, the next commit says why
            self._path.unlink()

    def require(self) -> None:
        """Raise `StoreUnavailable` where there is no room but the reserve's."""
        if not self._kept and self._free() >= ROOM_TO_GO_ON:
            self.make()
        if not self._kept:
            raise StoreUnavailable(
                f"the store {self._store} is not available (SQLITE_FULL): the disk is full but for a reserve of "
                f"{RESERVE_BYTES >> 20} MB; free space and the worker goes on by itself"
            )


def _allocate(descriptor: int) -> None:
    """Blocks of the disk, not only a size."""
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    else:
        os.pwrite(descriptor, bytes(RESERVE_BYTES), 0)
