"""The store file: one thread that writes, a few that read, every transaction whole or not at all."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from worker.clock import Clock
from worker.errors import ConfigurationError, StoreCorrupt, StoreUnavailable
from worker.store.sqlite.connection import connect_reader, connect_writer, create_file, quick_check
from worker.store.sqlite.damage import DamageBook
from worker.store.sqlite.errors import is_full, translate
from worker.store.sqlite.identity import FileIdentity
from worker.store.sqlite.lock import StoreLock
from worker.store.sqlite.migrate import migrate, refuse_foreign, refuse_other_version, schema_version
from worker.store.sqlite.reserve import Reserve

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Threads that read; each has its own connection.
READERS = 3


class Database:
    """One SQLite file with write-ahead log and full sync.

    `write` and `read` take a function of a connection and run it in a thread of theirs; a result is returned only when
    the transaction it belongs to is on disk. A call that is cancelled while it waits may still be carried out.
    """

    def __init__(self, path: Path, clock: Clock, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        #: Called in the writer's thread after every rollback: caches of what was written must forget it.
        self.on_rollback: list[Callable[[], None]] = []
        self.clock = clock
        #: Rows that are not what was stored.
        self.damage = DamageBook()
        self._lock = StoreLock(path)
        self._identity = FileIdentity(path)
        self._reserve = Reserve(path)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._writer: sqlite3.Connection | None = None
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._open = False

    async def open(self) -> None:
        """Lock, check, migrate; or, read-only, look whether the schema is ours and touch nothing."""
        if self._open:
            raise RuntimeError(f"the store {self.path} is open already")
        run = asyncio.get_running_loop().run_in_executor
        if self.read_only:
            await run(self._reading, self._open_read_only)
        else:
            await run(self._writing, self._open_writer)
        self._open = True

    async def close(self) -> None:
        """Let what was begun come to its end, then let go of the file."""
        self._open = False
        await asyncio.to_thread(self._close)

    async def write(self, function: Callable[[sqlite3.Connection], T], *, bulk: bool = False) -> T:
        """Run `function` in one transaction. `StoreUnavailable`, `DataRefused`, `StoreCorrupt`: nothing was written.

        What comes in `bulk` leaves the last room on the disk to what is small; see `Reserve`.
        """
        if self.read_only:
            raise ConfigurationError(f"the store {self.path} was opened read-only; send the worker a command instead")
        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._in_transaction, function, bulk)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on a reader's connection. It sees what was committed when its first statement began."""
        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._on_reader, function)

    def _require_open(self) -> None:
        if not self._open:
            raise StoreUnavailable(f"the store {self.path} is not open")

    # ------------------------------------------------------------ in the writer's thread

    def _open_writer(self) -> None:
        create_file(self.path)
        self._lock.acquire()
        try:
            with self._translated():
                connection = connect_writer(self.path)
                self._writer = connection
                refuse_foreign(connection, self.path)
                started = self.clock.monotonic()
                self._refuse_damaged(quick_check(connection))
                migrated = migrate(connection)
                self.damage.load(connection)
                self._identity.connected()
                self._reserve.make()
        except BaseException:
            self._close_writer()
            self._lock.release()
            raise
        log.info(
            "store_opened",
            path=str(self.path),
            schema=schema_version(connection),
            migrated=migrated,
            check_seconds=round(self.clock.monotonic() - started, 3),
        )

    def _refuse_damaged(self, found: str | None) -> None:
        if found is not None:
            cure = "restore a backup (`swarm-worker backup` makes them)"
            raise StoreCorrupt(f"the store {self.path} is damaged ({found}); {cure}")

    def _in_transaction(self, function: Callable[[sqlite3.Connection], T], bulk: bool) -> T:  # noqa: FBT001
        with self._translated():
            self._identity.require()
            if bulk:
                self._reserve.require()
            if self._writer is None:
                self._writer = connect_writer(self.path)
                self._identity.connected()
            connection = self._writer
            # Not deferred: a reader that turns writer gets SQLITE_BUSY_SNAPSHOT at once, whatever the timeout.
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = function(connection)
                connection.execute("COMMIT")
            except BaseException as error:
                self._roll_back(connection)
                if is_full(error):
                    self._reserve.give_up()
                raise
        return result

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        for forget in self.on_rollback:
            forget()
        try:
            # After SQLITE_FULL and some I/O errors SQLite has rolled back by itself.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            # A connection that cannot even do this is of no more use; the next transaction gets a new one.
            log.warning("rollback_failed", error=str(error))
            self._close_writer()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._identity.closed()

    # ------------------------------------------------------------ in a reader's thread

    def _open_read_only(self) -> None:
        if not self.path.exists():
            raise ConfigurationError(
                f"there is no store at {self.path}; check SWARM_STORE_URL and SWARM_DATA_DIR, or start the worker once"
            )
        with self._translated():
            connection = connect_reader(self.path)
            try:
                refuse_other_version(connection, self.path)
            except BaseException:
                connection.close()
                raise
        self._readers.put(connection)

    def _on_reader(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with self._translated():
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = connect_reader(self.path)
            try:
                connection.execute("BEGIN")
                try:
                    result = function(connection)
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
            except BaseException:
                connection.close()
                raise
            self._readers.put(connection)
            return result

    # ------------------------------------------------------------ both

    def _close(self) -> None:
        self._writing.shutdown(wait=True)
        self._reading.shutdown(wait=True)
        while not self._readers.empty():
            self._readers.get_nowait().close()
        if not self.read_only:
            # Before the log is merged into the file, which may need the room.
            self._reserve.release()
        self._close_writer()
        self._lock.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            translated = translate(error, self.path)
            if translated is None:
                raise
            raise translated from error
