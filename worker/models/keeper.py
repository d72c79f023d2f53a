"""Sees to it that inference servers serve the live adapters: after a start, and when a server has lost one.

Beside everything else, not before it: a server may be away for long, and records must be taken in meanwhile. A server
that was started again may know nothing of adapters that were loaded while it ran (vLLM's are in its memory alone).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from worker.clock import Clock, sleep_unless
from worker.errors import StoreError
from worker.models.applier import Applier

log = structlog.get_logger(__name__)

#: Seconds between two looks at what is served; a look may cost the server a few tokens.
_LOOK_SECONDS = 60.0
#: Longest wait for a server that fails again and again; it doubles up to there.
_LONGEST_WAIT = 960.0


class AdapterKeeper:
    """One for all scenarios."""

    def __init__(
        self,
        applier: Applier,
        clock: Clock,
        *,
        scenarios: Sequence[str],
        recover: Callable[[], Awaitable[None]],
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """`recover` hands over adapters that were registered and not handed over when the last life ended."""
        self._applier = applier
        self._clock = clock
        self._recover = recover
        self._look_seconds = look_seconds
        self._waits = dict.fromkeys(scenarios, look_seconds)
        self._due = dict.fromkeys(scenarios, 0.0)  # monotonic

    async def run(self, stopping: asyncio.Event) -> None:
        """Look until `stopping`. No error of a server or of the store ends this."""
        if "lora" not in self._applier.kinds:
            return
        recovered = False
        while not stopping.is_set():
            try:
                await self._look_at_all(stopping)
                if not recovered and not stopping.is_set():
                    await self._recover()
                    recovered = True
            except StoreError as error:
                log.warning("adapters_not_looked_at", error=str(error))
            await sleep_unless(stopping, self._look_seconds)

    async def _look_at_all(self, stopping: asyncio.Event) -> None:
        for scenario, due in self._due.items():
            if stopping.is_set() or due > self._clock.monotonic():
                continue
            served = await self._applier.reconcile(scenario, "lora")
            wait = self._look_seconds if served else min(_LONGEST_WAIT, self._waits[scenario] * 2)
            self._waits[scenario] = wait
            self._due[scenario] = self._clock.monotonic() + (0.0 if served else wait)
