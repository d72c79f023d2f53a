"""Contract of the trigger state in `Facts`, on every store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from worker.store.port import Store, TriggerState

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000


async def test_a_scenario_that_never_trained_has_an_empty_state(store: Store) -> None:
    assert await store.trigger_state("S") == TriggerState(scenario="S")


async def test_trigger_state_survives_reopening(store: Store, reopen: Reopen) -> None:
    state = TriggerState(
        scenario="S",
        trained_upto=7,
        trained_episodes=3,
        trained_sessions=2,
        last_success_at_ms=NOW,
        last_attempt_at_ms=NOW + 1,
        failures=2,
        not_before_ms=NOW + 60_000,
        trigger_errors=1,
        last_trigger_error="quality: no such model",
        paused=True,
    )
    await store.save_trigger_state(TriggerState(scenario="S", failures=1))
    await store.save_trigger_state(state)
    await store.save_trigger_state(TriggerState(scenario="T", failures=5))
    async with reopen(store) as again:
        assert await again.trigger_state("S") == state
        assert (await again.trigger_state("T")).failures == 5
