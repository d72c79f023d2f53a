"""Migrations: numbered .sql files, each in one transaction, only forward."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from worker.errors import ConfigurationError
from worker.store.sqlite.connection import APPLICATION_ID

FOLDER = Path(__file__).parent / "migrations"


def migrations(folder: Path = FOLDER) -> list[tuple[int, Path]]:
    """Number and file, in order; the numbers are 1, 2, 3, ... without a gap."""
    files = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    numbers = [int(file.name[:4]) for file in files]
    if numbers != list(range(1, len(files) + 1)):
        raise ValueError(f"migrations in {folder} are not numbered 1, 2, 3, ...: {numbers}")
    return list(zip(numbers, files, strict=True))


def schema_version(connection: sqlite3.Connection) -> int:
    """The number of the last migration that was carried out; 0 for a fresh file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `ConfigurationError` where the file is no store of ours or newer than this code."""
    application_id = int(connection.execute("PRAGMA application_id").fetchone()[0])
    empty = not connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()[0]
    if application_id != APPLICATION_ID and not (application_id == 0 and empty):
        raise ConfigurationError(f"{path} is the file of another program; point SWARM_STORE_URL somewhere else")
    version, newest = schema_version(connection), len(migrations())
    if version > newest:
        raise ConfigurationError(
            f"the store {path} has schema {version}, this worker knows schemas up to {newest}; "
            "install the newer worker again, or restore the backup made before the upgrade"
        )


def refuse_other_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `ConfigurationError` unless the schema is exactly this code's: for who may not migrate."""
    refuse_foreign(connection, path)
    version, newest = schema_version(connection), len(migrations())
    if version != newest:
        raise ConfigurationError(
            f"the store {path} has schema {version}, this program needs {newest}; "
            "start the worker of this version once, it migrates the store"
        )


def migrate(connection: sqlite3.Connection, folder: Path = FOLDER) -> list[int]:
    """Carry out what is missing; the numbers that were carried out."""
    done = []
    for number, file in migrations(folder):
        if number <= schema_version(connection):
            continue
        script = file.read_text(encoding="utf-8")
        try:
            # user_version and application_id are part of the file's header page, so they commit with the rest.
            header = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={number};"
            connection.executescript(f"BEGIN IMMEDIATE;\n{script};\n{header}\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.rollback()
            raise
        done.append(number)
    return done
