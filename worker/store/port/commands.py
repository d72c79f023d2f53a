"""Commands by id, so that a second copy is harmless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from msgspec import Struct


class StoredCommand(Struct, kw_only=True):
    """A command and what came of it; its id makes a second copy harmless."""

    command_id: str
    command: str
    scenario: str | None
    body: bytes
    received_at_ms: int
    reply_to: str | None = None
    correlation_id: str | None = None
    status: Literal["accepted", "done", "refused", "failed"] = "accepted"
    result: dict[str, Any] = {}
    error: str | None = None
    ended_at_ms: int | None = None


class CommandLedger(Protocol):
    """Commands by id."""

    async def accept_command(self, command: StoredCommand) -> StoredCommand | None:
        """Store a new command and return None; return what is stored where its id was seen before.

        Of those that have ended, old ones make way: the newest 10,000 and all of half an hour stay.
        """
        ...

    async def finish_command(
        self,
        command_id: str,
        *,
        status: Literal["done", "refused", "failed"],
        result: Mapping[str, Any],
        error: str | None,
        now_ms: int,
    ) -> StoredCommand:
        """Say how a command ended; the first word stands."""
        ...

    async def unfinished_commands(self) -> list[StoredCommand]:
        """Accepted and not ended, oldest first."""
        ...
