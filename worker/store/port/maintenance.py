"""The store as a thing that is opened, checked, copied and closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Maintenance(Protocol):
    """The store as a thing that is opened, checked, copied and closed."""

    async def open(self) -> None:
        """Migrate, verify durability settings, take the writer's lock.

        Raises `ConfigurationError` where the store is newer than this code or in use, `StoreCorrupt` where its check
        fails.
        """
        ...

    async def close(self) -> None:
        """Finish what is being written, and give the lock back."""
        ...

    async def probe(self) -> None:
        """Write and commit something small; raises `StoreUnavailable` with the reason."""
        ...

    async def backup(self, target: Path) -> None:
        """A consistent, checked copy, made while the worker goes on."""
        ...

    async def describe(self) -> dict[str, Any]:
        """Kind, place, schema version, size in bytes, durability settings: for `check` and `describe`."""
        ...
