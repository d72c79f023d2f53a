"""The spool: a producer's batch counter and its unconfirmed batches, in one small file that survives the process.

A batch is on disk, under its identity and to the byte, before it is sent for the first time. So a restart goes on with
the next number, and what was not confirmed is sent again as the same batch, which the worker knows as a duplicate.

SQLite, because a torn write, a full disk and a second process on the same file are solved there. Everything blocks; one
thread at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import structlog
from msgspec import Struct

from worker.durable import make_private_directory
from worker.errors import ConfigurationError, StoreUnavailable
from worker.wire.records import SCHEMA_VERSION

log = structlog.get_logger(__name__)

_SCHEMA = """
CREATE TABLE counter (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, next_seq INTEGER NOT NULL);
CREATE TABLE batch (epoch INTEGER NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (epoch, seq));
"""
_VERSION = 1


class BatchKey(Struct, frozen=True, order=True):
    """Which batch of its producer."""

    epoch: int
    seq: int


class Spool:
    """One producer's spool for one scenario. `Spool.open(path, ...)`."""

    def __init__(self, database: sqlite3.Connection, path: Path, producer_id: str) -> None:
        self._database = database
        self._path = path
        self._producer_id = producer_id
        (self.epoch, self._next_seq) = database.execute("SELECT epoch, next_seq FROM counter").fetchone()

    @classmethod
    def open(cls, path: Path, producer_id: str, *, now_ms: int) -> Self:
        """The spool in `path`, made where there is none.

        A new counter starts in the epoch `now_ms`: whoever lost the old one does not know its number, but the clock has
        gone on since. A damaged file is put aside and logged, and a new one begun. Raises `ConfigurationError` where
        the file cannot be used or another process uses it.
        """
        try:
            make_private_directory(path.parent)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # records are nobody else's business
            try:
                return cls._open(path, producer_id, now_ms)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                aside = path.with_name(f"{path.name}.damaged-{now_ms}")
                for ending in ("", "-wal"):
                    part = path.with_name(path.name + ending)
                    if part.exists():
                        part.rename(aside.with_name(aside.name + ending))
                log.exception("spool_damaged", path=str(path), aside=str(aside), error=str(error))
                return cls._open(path, producer_id, now_ms)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise ConfigurationError(
                    f"{path} is in use by another publisher; give each its own producer_id or state_dir"
                ) from error
            raise ConfigurationError(
                f"{path} cannot be used: {error}; fix the rights of its folder or free space"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be used: {error}; choose another state_dir") from error

    @classmethod
    def _open(cls, path: Path, producer_id: str, now_ms: int) -> Self:
        database = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database, path, now_ms)
            return cls(database, path, producer_id)
        except BaseException:
            database.close()
            raise

    def add(self, records: Sequence[bytes], confirmed: Iterable[BatchKey] = ()) -> tuple[BatchKey, bytes]:
        """Make records (JSON each) the next batch, drop confirmed ones, and return the new one's key and body.

        It is on disk then. Raises `StoreUnavailable` where nothing was written (a full disk).
        """
        key = BatchKey(self.epoch, self._next_seq)
        body = batch_body(records, self._producer_id, key)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute("INSERT INTO batch VALUES (?, ?, ?)", (key.epoch, key.seq, body))
                self._database.execute("UPDATE counter SET next_seq = ?", (key.seq + 1,))
                self._delete(confirmed)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._path} takes no batch: {error}; free space or fix its rights") from error
        self._next_seq += 1
        return key, body

    def unconfirmed(self) -> list[BatchKey]:
        """Batches that wait for their confirm, oldest first."""
        return [BatchKey(*row) for row in self._database.execute("SELECT epoch, seq FROM batch ORDER BY epoch, seq")]

    def body(self, key: BatchKey) -> bytes:
        """What is sent for an unconfirmed batch: always the same bytes."""
        query = "SELECT body FROM batch WHERE epoch = ? AND seq = ?"
        body: bytes = self._database.execute(query, (key.epoch, key.seq)).fetchone()[0]
        return body

    def close(self, confirmed: Iterable[BatchKey] = ()) -> None:
        """Drop confirmed batches and close."""
        try:
            self._delete(confirmed)
        except sqlite3.Error as error:
            log.warning("spool_not_cleared", path=str(self._path), error=str(error))  # they are only sent once more
        finally:
            self._database.close()

    def _delete(self, confirmed: Iterable[BatchKey]) -> None:
        rows = [(key.epoch, key.seq) for key in confirmed]
        self._database.executemany("DELETE FROM batch WHERE epoch = ? AND seq = ?", rows)


def _prepare(database: sqlite3.Connection, path: Path, now_ms: int) -> None:
    """Lock the file, make what is missing, and see that it is whole."""
    # Exclusive before WAL: the lock is kept for life, so two processes never count in one file.
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("BEGIN IMMEDIATE")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute("INSERT INTO counter VALUES (1, ?, 0)", (now_ms,))
        database.execute(f"PRAGMA user_version={_VERSION}")
    database.execute("COMMIT")
    if version not in (0, _VERSION):
        raise ConfigurationError(f"{path} is of version {version}, newer than this program; use the newer one")
    if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("quick_check failed")


def batch_body(records: Sequence[bytes], producer_id: str, key: BatchKey) -> bytes:
    """The records message of records that are JSON already; the same bytes as `codec.encode_batch` gives."""
    head = (
        f'{{"schema_version":{SCHEMA_VERSION},"producer_id":"{producer_id}",'
        f'"producer_epoch":{key.epoch},"batch_seq":{key.seq},"records":['
    )
    return b"".join((head.encode(), b",".join(records), b"]}"))
