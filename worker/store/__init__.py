"""Storage: the port, its implementations, and the one place that chooses between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from worker.clock import Clock
from worker.errors import ConfigurationError
from worker.store.memory import MemoryStore
from worker.store.sqlite import SqliteStore
from worker.store.sqlite.database import Database

if TYPE_CHECKING:
    from worker.store.port import Store


def open_store(url: str, clock: Clock, *, read_only: bool = False) -> Store:
    """The store that a URL names, not opened yet: `sqlite:///absolute/path` or `memory:`.

    `read_only` is for commands beside a running worker: no lock, no migration.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return MemoryStore(clock)
    if parts.scheme == "sqlite" and not parts.netloc and len(parts.path) > 1:
        # Four slashes are as good as three.
        return SqliteStore(Database(Path("/" + unquote(parts.path).lstrip("/")), clock, read_only=read_only))
    raise ConfigurationError(
        f"SWARM_STORE_URL: {parts.scheme or 'no'}:// is no store that this worker has; write sqlite:///absolute/path/swarm.db"
    )
