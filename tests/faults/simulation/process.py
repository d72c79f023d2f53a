"""A simulated process: everything its code schedules runs in its context, and can be frozen or lost as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from enum import Enum, auto
from typing import Any

#: Wall time at virtual second 0, Unix ms.
START_MS = 1_700_000_000_000


class Life(Enum):
    """What the system does with a process."""

    ALIVE = auto()
    FROZEN = auto()  # SIGSTOP, a paused virtual machine: goes on later as if nothing had been
    DEAD = auto()  # kill -9: not one more instruction, no `finally`


class Process:
    """One start of one worker; dead for good once it is dead."""

    def __init__(self, name: str, boot: int) -> None:
        self.name = name
        self.boot = boot
        self.life = Life.ALIVE
        #: Callbacks that came due while it did not run.
        self.parked: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        #: Callbacks that it may still run before `strike` is called, which freezes or kills it; 0: as many as it likes.
        self.countdown = 0
        self.strike: Callable[[], None] = lambda: None
        #: Set when its end is being cleared away: then it may unwind, and nothing outside hears of it.
        self.unwinding = False
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def __str__(self) -> str:
        return f"{self.name}.{self.boot}"


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


class SimulatedClock:
    """A process's clocks: the loop's virtual time, and a wall clock that somebody sets."""

    def __init__(self, time: Callable[[], float], offset_ms: Callable[[], int]) -> None:
        self._time = time
        self._offset_ms = offset_ms

    def now_ms(self) -> int:
        """Wall clock, Unix ms."""
        return START_MS + round(self._time() * 1000) + self._offset_ms()

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self._time()
