"""Commands by id, so that a second copy is harmless."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Literal

from worker.store import ledger_rules as rules
from worker.store.ledger_rows import to_json, to_row
from worker.store.port import StoredCommand
from worker.store.sqlite.ledger_query import change, select, select_one
from worker.store.sqlite.role import Role


class CommandLedger(Role):
    """`worker.store.port.CommandLedger` on SQLite."""

    async def accept_command(self, command: StoredCommand) -> StoredCommand | None:
        row = to_row(command)

        def accept(connection: sqlite3.Connection) -> StoredCommand | None:
            if change(connection, "insert_command", **row) == 1:
                before_ms = command.received_at_ms - rules.COMMANDS_KEPT_MS
                change(connection, "drop_old_commands", kept=rules.COMMANDS_KEPT, before_ms=before_ms)
                return None
            return _command(connection, command.command_id)

        return await self._database.write(accept)

    async def finish_command(
        self,
        command_id: str,
        *,
        status: Literal["done", "refused", "failed"],
        result: Mapping[str, Any],
        error: str | None,
        now_ms: int,
    ) -> StoredCommand:
        """End a command; where it has ended before, what is stored of that comes back unchanged."""
        text = to_json(dict(result), "result")

        def finish(connection: sqlite3.Connection) -> StoredCommand | None:
            change(
                connection,
                "finish_command",
                command_id=command_id,
                status=status,
                result=text,
                error=error,
                now_ms=now_ms,
            )
            return _command(connection, command_id)

        return rules.check_command(command_id, await self._database.write(finish))

    async def unfinished_commands(self) -> list[StoredCommand]:
        """Oldest first."""
        return await self._database.read(lambda connection: select(connection, StoredCommand, "unfinished_commands"))


def _command(connection: sqlite3.Connection, command_id: str) -> StoredCommand | None:
    return select_one(connection, StoredCommand, "command_by_id", command_id=command_id)
