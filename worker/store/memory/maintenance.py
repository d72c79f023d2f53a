"""The in-memory store as a thing that is opened and closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.errors import ConfigurationError
from worker.store.memory.state import Role


class Maintenance(Role):
    """`worker.store.port.Maintenance` without a disk."""

    async def open(self) -> None:
        """From now on it answers."""
        self._state.is_open = True

    async def close(self) -> None:
        """It keeps what it has, and answers nothing until it is opened again."""
        self._state.is_open = False

    async def probe(self) -> None:
        """Nothing can fail but that it is closed."""
        self._state.require_open()

    async def backup(self, target: Path) -> None:
        """There is nothing on a disk to copy."""
        raise ConfigurationError(
            f"the store in memory cannot be copied to {target}; use sqlite:///... for one that can"
        )

    async def describe(self) -> dict[str, Any]:
        """The same keys as those of a store on disk."""
        return {"kind": "memory", "path": None, "schema": 0, "bytes": 0, "synchronous": "none"}
