"""The SQLite store as a thing that is opened, checked, copied and closed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from worker.errors import ConfigurationError, StoreCorrupt, StoreUnavailable
from worker.store.sqlite.check_sums import CHANGED, Row, RowDamaged, check_sum
from worker.store.sqlite.connection import create_file, quick_check
from worker.store.sqlite.damage import Found, found_at
from worker.store.sqlite.migrate import schema_version
from worker.store.sqlite.role import Role

#: Pages copied at a time, so that the worker's own reads and writes get in between.
BACKUP_PAGES = 2_000

#: What goes wrong with the copy alone: a backup only reads the store.
_OF_WRITING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC}

_EVERY_RECORD = """
    SELECT scenario.name, record.position, record.kind, record.task_no, task.task_id, CAST(body AS BLOB), check_sum
    FROM record JOIN batch ON batch.batch_no = record.position >> 14 JOIN scenario USING (scenario_no)
    LEFT JOIN task ON task.task_no = record.task_no WHERE check_sum IS NOT NULL
"""


class Maintenance(Role):
    """`worker.store.port.Maintenance` on SQLite."""

    async def open(self) -> None:
        """Lock, check, migrate; or, read-only, only look."""
        await self._database.open()

    async def close(self) -> None:
        """Let what was begun come to its end, then let go of the file."""
        await self._database.close()

    async def probe(self) -> None:
        """Change one row and commit: what fails here fails for records too."""
        await self._database.write(
            lambda connection: connection.execute("UPDATE probe SET at_ms = at_ms + 1 WHERE probe_no = 1") and None,
            bulk=True,
        )

    async def backup(self, target: Path) -> None:
        """Copy to `target`, which must not exist; it gets that name only when it is whole, checked and synced.

        Records that are damaged are copied too, and noted: the copy is no worse than the store.
        """
        await self._note_damage(await self._database.read(lambda connection: _back_up(connection, target)))

    async def describe(self) -> dict[str, Any]:
        """Kind, place, schema, size on disk, durability."""
        return await self._database.read(self._describe)

    def _describe(self, connection: sqlite3.Connection) -> dict[str, Any]:
        path = self._database.path
        files = [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))]
        return {
            "kind": "sqlite",
            "path": str(path),
            "schema": schema_version(connection),
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "journal_mode": connection.execute("PRAGMA journal_mode").fetchone()[0],
            "synchronous": "FULL",  # the writer's own, verified when it connects
            "sqlite_version": sqlite3.sqlite_version,
        }


def _back_up(connection: sqlite3.Connection, target: Path) -> list[Found]:
    if target.exists():
        raise ConfigurationError(f"{target} exists; name a file that does not")
    if not target.parent.is_dir():
        # Making it would put the backup of a mistyped path where nobody looks for it.
        raise ConfigurationError(f"there is no directory {target.parent}; make it, or name a file elsewhere")
    partial = target.with_name(target.name + ".partial")
    with _blaming_the_copy(target):
        partial.unlink(missing_ok=True)
        try:
            create_file(partial)
            damaged = _copied(connection, partial)
            _sync(partial)
            partial.rename(target)
            _sync(target.parent)
        except BaseException:
            with suppress(OSError):  # what went wrong first says more
                partial.unlink(missing_ok=True)
            raise
    return damaged


@contextmanager
def _blaming_the_copy(target: Path) -> Iterator[None]:
    """Say of the copy what would else be said of the store: that it cannot be made, or that its disk is full."""
    cannot = f"the copy {target} cannot be written"
    try:
        yield
    except StoreUnavailable as error:
        raise ConfigurationError(
            f"{cannot} ({_why(error.__cause__)}); name a file where this user may write"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{cannot} ({_why(error)}); name a file where this user may write") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) not in _OF_WRITING:
            raise
        raise ConfigurationError(
            f"{cannot} ({error.sqlite_errorname}); free space there, or name a file elsewhere"
        ) from error


def _why(error: object) -> object:
    return error.strerror if isinstance(error, OSError) else error


def _copied(connection: sqlite3.Connection, partial: Path) -> list[Found]:
    copy = sqlite3.connect(partial, isolation_level=None)
    try:
        connection.backup(copy, pages=BACKUP_PAGES)
        # Not WAL: the copy is one file, complete without companions.
        copy.execute("PRAGMA journal_mode=DELETE")
        _refuse_damaged(partial, quick_check(copy))
        return _damaged_records(copy)
    finally:
        copy.close()


def _damaged_records(copy: sqlite3.Connection) -> list[Found]:
    """Records whose check sum is not that of their content: all of the log is read, 1 s per million."""
    damaged = []
    for scenario, *columns in copy.execute(_EVERY_RECORD):
        row = Row(*columns)
        if row.check_sum != check_sum(row.position, row.kind, row.task_no, row.body or b""):
            damaged.append(found_at(scenario, row, RowDamaged(CHANGED)))
    return damaged


def _refuse_damaged(copy: Path, found: str | None) -> None:
    if found is not None:
        raise StoreCorrupt(f"the copy {copy} is damaged ({found}); the store itself may be: run `swarm-worker check`")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
