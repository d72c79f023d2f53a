"""SQLite's errors in the port's words: try again later, never will be, or damaged."""

from __future__ import annotations

import sqlite3

from worker.errors import DataRefused, StoreCorrupt, StoreError, StoreUnavailable

_CURES = {
    sqlite3.SQLITE_BUSY: "another process holds its write lock; end that process",
    sqlite3.SQLITE_LOCKED: "another connection holds a table; it should pass",
    sqlite3.SQLITE_FULL: "the disk is full; free space and the worker goes on by itself",
    sqlite3.SQLITE_IOERR: "reading or writing the file failed; look at the disk, its quota and the kernel's log",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only; make both writable for this user",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; look at its directory, permissions and the limit of open files",
    sqlite3.SQLITE_PERM: "access was denied; look at the permissions of file and directory",
    sqlite3.SQLITE_AUTH: "access was denied; look at the permissions of file and directory",
    sqlite3.SQLITE_NOMEM: "memory ran out; give the worker more",
    sqlite3.SQLITE_INTERRUPT: "the statement was interrupted",
    sqlite3.SQLITE_PROTOCOL: "the file's locks do not work; the store must be on a local disk, never on NFS",
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_REFUSED = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}


def is_full(error: BaseException) -> bool:
    """Whether there was no room on the disk."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def translate(error: Exception, path: object) -> StoreError | None:
    """The port's error for one of SQLite's or of its binding of values; None where it is a fault of our own code."""
    if isinstance(error, OverflowError | UnicodeEncodeError):
        return DataRefused(f"the store {path} cannot hold a value of this data: {error}")
    if not isinstance(error, sqlite3.Error):
        return None
    # Extended codes carry the primary one in their low byte. Errors of the binding itself have none.
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in _CURES:
        name = getattr(error, "sqlite_errorname", primary)
        return StoreUnavailable(f"the store {path} is not available ({name}): {_CURES[primary]}")
    if primary in _DAMAGED or (primary is None and "decode to UTF-8" in str(error)):
        # The second is the sqlite3 module's own: text that was UTF-8 when it was stored.
        return StoreCorrupt(
            f"the store {path} is damaged ({error}); restore a backup (`swarm-worker backup` makes them)"
        )
    if primary in _REFUSED or isinstance(error, sqlite3.DataError | sqlite3.InterfaceError):
        return DataRefused(f"the store {path} refuses this data: {error}")
    return None
