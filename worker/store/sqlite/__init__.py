"""The store on SQLite: one file, one machine, no server."""

from __future__ import annotations

from worker.store.sqlite.maintenance import Maintenance


class SqliteStore(Maintenance):
    """`worker.store.port.Store`, role by role."""
