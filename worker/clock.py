"""Time comes in through here: wall time as data, monotonic time for intervals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol


class Clock(Protocol):
    """What the worker knows of time."""

    def now_ms(self) -> int:
        """Wall clock, Unix milliseconds. Data only: it may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back. For intervals and deadlines."""
        ...


def after(clock: Clock, seconds: float) -> Callable[[object], bool]:
    """Says whether `seconds` are over, counted from now: tenacity's `stop`, on this clock and not the machine's."""
    end = clock.monotonic() + seconds
    return lambda _: clock.monotonic() >= end


async def sleep_unless(event: asyncio.Event, seconds: float) -> None:
    """Sleep so long, or until the event is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to; for tests and simulation."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic = 0.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self._now_ms += round(seconds * 1000)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Step the wall clock alone, as NTP or an operator does."""
        self._now_ms += round(seconds * 1000)
