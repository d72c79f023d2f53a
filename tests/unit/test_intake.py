"""The intake: reasons to hold back consumption add up, and none undoes another."""

from __future__ import annotations

import asyncio

from worker.intake import Intake


class _Consumer:
    def __init__(self) -> None:
        self.paused = False
        self.changed = asyncio.Event()

    async def pause(self) -> None:
        self.paused = True
        self.changed.set()

    async def resume(self) -> None:
        self.paused = False
        self.changed.set()

    async def until(self, paused: bool) -> None:
        async with asyncio.timeout(5):
            while self.paused != paused:
                self.changed.clear()
                await self.changed.wait()


async def test_consumption_goes_on_only_when_the_last_reason_is_gone() -> None:
    """An operator's pause outlives a store that comes back, and touches no other scenario."""
    ours, other = _Consumer(), _Consumer()
    intake = Intake({"ours": ours, "other": other})
    stopping = asyncio.Event()
    running = asyncio.create_task(intake.run(stopping))
    intake.hold("operator", "paused by command", "ours")
    await ours.until(paused=True)
    intake.hold("store", "store: locked")
    await other.until(paused=True)
    assert intake.reasons("ours") == ["paused by command", "store: locked"]
    intake.release("store")
    await other.until(paused=False)
    assert (ours.paused, intake.reasons("ours"), intake.reasons("other")) == (True, ["paused by command"], [])
    intake.release("operator", "ours")
    await ours.until(paused=False)
    stopping.set()
    await running


async def test_a_hold_that_is_taken_back_at_once_changes_nothing() -> None:
    consumer = _Consumer()
    intake = Intake({"s": consumer})
    intake.hold("store", "store: locked")
    intake.release("store")
    stopping = asyncio.Event()
    stopping.set()
    await intake.run(stopping)
    assert not consumer.changed.is_set()
