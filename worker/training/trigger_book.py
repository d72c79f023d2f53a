"""Trigger states under a lock each, so that a check, a run's end and a command never undo each other."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from msgspec.structs import replace

from worker.store.port import Facts, ModelKind, TriggerState, trigger_key

#: A pause is about all trainings, also of a kind that the worker does not train yet.
_KINDS: tuple[ModelKind, ...] = ("offline", "lora")


class TriggerBook:
    """The only writer of trigger states."""

    def __init__(self, store: Facts) -> None:
        self._store = store
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read(self, scenario: str, kind: ModelKind) -> TriggerState:
        """What is remembered now of trainings of this kind."""
        return await self._store.trigger_state(trigger_key(scenario, kind))

    @asynccontextmanager
    async def held(self, scenario: str, kind: ModelKind) -> AsyncIterator[TriggerState]:
        """The state while nobody else may write it; for a transaction that writes it together with other things."""
        key = trigger_key(scenario, kind)
        async with self._locks[key]:
            yield await self._store.trigger_state(key)

    async def change(self, scenario: str, kind: ModelKind, how: Callable[[TriggerState], TriggerState]) -> None:
        """Read, change, save."""
        async with self.held(scenario, kind) as state:
            changed = how(state)
            if changed != state:
                await self._store.save_trigger_state(changed)

    async def pause(self, scenario: str, *, paused: bool) -> None:
        """Stop or resume automatic runs; runs asked for by command go on."""
        for kind in _KINDS:
            await self.change(scenario, kind, lambda state: replace(state, paused=paused))
