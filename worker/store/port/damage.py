"""Damage: rows that are no longer what was stored, found by their check sums when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class DamagedRow(Struct, frozen=True, kw_only=True):
    """One row that must not be learnt from."""

    scenario: str
    table: str
    row: int  # its rowid
    task_id: str | None
    detail: str

    def __str__(self) -> str:
        task = "" if self.task_id is None else f", task {self.task_id!r}"
        return (
            f"row {self.row} of table {self.table} is damaged (scenario {self.scenario}{task}: {self.detail}); "
            "restore a backup (`swarm-worker backup` makes them)"
        )


class DamageFound(Protocol):
    """What the store knows of its own damage."""

    @property
    def damage(self) -> Sequence[DamagedRow]:
        """Every row found damaged so far, each once, in the order found.

        Whatever reads records leaves a damaged one out and notes it here. What it belongs to, a task, a session or a
        graph, is set aside: it is not pending and in no training, until `rebuild` looks again. A store opened
        read-only knows only what it met itself.
        """
        ...
