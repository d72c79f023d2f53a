"""Trigger states under a lock per scenario, so that a check, a run's end and a command never undo each other."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from msgspec.structs import replace

from worker.store.port import Facts, TriggerState


class TriggerBook:
    """The only writer of trigger states."""

    def __init__(self, store: Facts) -> None:
        self._store = store
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read(self, scenario: str) -> TriggerState:
        """What is remembered now."""
        return await self._store.trigger_state(scenario)

    @asynccontextmanager
    async def held(self, scenario: str) -> AsyncIterator[TriggerState]:
        """The state while nobody else may write it; for a transaction that writes it together with other things."""
        async with self._locks[scenario]:
            yield await self._store.trigger_state(scenario)

    async def change(self, scenario: str, how: Callable[[TriggerState], TriggerState]) -> TriggerState:
        """Read, change, save."""
        async with self.held(scenario) as state:
            changed = how(state)
            if changed != state:
                await self._store.save_trigger_state(changed)
            return changed

    async def pause(self, scenario: str, *, paused: bool) -> TriggerState:
        """Stop or resume automatic runs; runs asked for by command go on."""
        return await self.change(scenario, lambda state: replace(state, paused=paused))
