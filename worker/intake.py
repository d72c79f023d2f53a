"""Which scenarios are consumed now, and of the others, why not: one place, so that no two reasons undo each other."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)


class Consumer(Protocol):
    """What can be paused and resumed (`broker.subscriber.Subscriber`)."""

    @property
    def paused(self) -> bool: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...


class Intake:
    """Holds back consumption while anybody has a reason to; `run` brings the consumers to what was decided."""

    def __init__(self, consumers: Mapping[str, Consumer]) -> None:
        self._consumers = consumers
        self._reasons: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._changed = asyncio.Event()

    def hold(self, who: str, reason: str, scenario: str | None = None) -> None:
        """Stop consuming `scenario` (or all) for a reason that `who` takes back with `release`."""
        for name in self._chosen(scenario):
            self._reasons[name][who] = reason
        self._changed.set()

    def release(self, who: str, scenario: str | None = None) -> None:
        """Take the reason back; consumption goes on where it was the last one."""
        for name in self._chosen(scenario):
            self._reasons[name].pop(who, None)
        self._changed.set()

    def reasons(self, scenario: str) -> list[str]:
        """Why this scenario is not consumed now; empty while it is."""
        return list(self._reasons[scenario].values())

    async def run(self, stopping: asyncio.Event) -> None:
        """Pause and resume until `stopping`. A consumer that is away does as it was told once it is back."""
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stopping.is_set():
                self._changed.clear()
                for scenario, consumer in self._consumers.items():
                    await self._bring(scenario, consumer)
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait((stop, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            stop.cancel()

    async def _bring(self, scenario: str, consumer: Consumer) -> None:
        held = bool(self._reasons[scenario])
        if consumer.paused != held:
            await (consumer.pause() if held else consumer.resume())
            log.info("intake_changed", scenario=scenario, paused=held, reasons=self.reasons(scenario))

    def _chosen(self, scenario: str | None) -> list[str]:
        return list(self._consumers) if scenario is None else [scenario]
