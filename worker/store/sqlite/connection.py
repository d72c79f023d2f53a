"""Connections to the store file, each with its settings made and verified."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from worker.durable import make_private_directory, sync_directory
from worker.errors import StoreUnavailable

#: "SWRM" in the file's header: `file swarm.db` and a human can tell what it is.
APPLICATION_ID = 0x5357524D
#: How long a statement waits for another process's lock, milliseconds.
BUSY_TIMEOUT_MS = 5_000
#: Pages of 4 KiB. A writer that rewrites the same hot pages group after group checkpoints them once, not each time.
CHECKPOINT_PAGES = 4_000

#: What SQLite answers for synchronous=FULL.
_FULL = 2

_COMMON = (
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
)


def create_file(path: Path) -> None:
    """Make the store's directory and file for this user alone; SQLite gives its -wal and -shm the same mode."""
    try:
        make_private_directory(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent.resolve())
    except OSError as error:
        raise StoreUnavailable(
            f"the store {path} cannot be created ({error.strerror}); make the directory of SWARM_STORE_URL writable"
        ) from error


def connect_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes; raises `StoreUnavailable` where its commits would not survive a power cut."""
    connection = _connect(path)
    try:
        _make_durable(connection, path)
        for pragma in (
            *_COMMON,
            "PRAGMA cache_size=-65536",
            "PRAGMA journal_size_limit=67108864",
            f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}",
        ):
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads.

    It is opened for writing all the same: after a crash the first reader may have to recover the write-ahead log.
    """
    connection = _connect(path)
    try:
        for pragma in (*_COMMON, "PRAGMA cache_size=-8192", "PRAGMA query_only=ON"):
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def quick_check(connection: sqlite3.Connection) -> str | None:
    """None where the file is sound, else the first thing found. 0.58 s per 34 MB on a cold 2-core machine."""
    first = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    return None if first == "ok" else first


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw: never create by accident; create_file does it, with the right mode.
    # Connections are made in one thread and closed in another, never used by two at once.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)


def _make_durable(connection: sqlite3.Connection, path: Path) -> None:
    mode = _answer(connection, "PRAGMA journal_mode=WAL")
    _answer(connection, "PRAGMA synchronous=FULL")
    synchronous = _answer(connection, "PRAGMA synchronous")
    if (mode, synchronous) != ("wal", _FULL):
        raise StoreUnavailable(
            f"the store {path} does not take durable settings (journal_mode={mode}, synchronous={synchronous}); "
            "put it on a local disk that supports shared memory"
        )


def _answer(connection: sqlite3.Connection, pragma: str) -> object:
    row = connection.execute(pragma).fetchone()
    return None if row is None else row[0]
