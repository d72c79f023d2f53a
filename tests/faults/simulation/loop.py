"""An event loop whose time is virtual and whose next callback is drawn by a seeded Random: one seed is one run.

asyncio promises no order between tasks, only that of one loop's `call_soon`; any order is drawn here, so that what a
slow disk or a busy machine may do to the order happens within a few hundred runs. What would run in a thread runs as a
callback of its own. Time passes only while nothing is ready, and then at once.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import Any, cast

from tests.faults.simulation.process import PROCESS, Life


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks are iterated in the same order in every run."""

    def __init__(self, work: Any, *, number: int, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        self.number = number  # before the task registers itself in a set
        super().__init__(work, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number


class NumberedFuture(asyncio.Future[Any]):
    """See `NumberedTask`."""

    def __init__(self, *, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimulatedLoop(asyncio.BaseEventLoop):
    """`advance` runs it; it never waits and never blocks."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.now = 0.0
        #: Callbacks run so far; with the state of `random` it tells two runs apart.
        self.turns = 0
        #: What asyncio reported: exceptions nobody looked at.
        self.reported: list[str] = []
        self._random = random
        self._numbers = itertools.count(1)
        # The base class appends to these two; what it does with them is replaced by `advance`.
        self._ready: list[asyncio.Handle] = []
        self._scheduled: list[asyncio.TimerHandle] = []
        self.set_task_factory(self._new_task)
        self.set_exception_handler(lambda _, context: self.reported.append(f"{context}"))

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self.now

    def create_future(self) -> NumberedFuture:
        """A future with a number."""
        return NumberedFuture(number=next(self._numbers), loop=self)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]  # typeshed types it by *Ts
        """Run it later, at a stretch, on this thread; not at all where the process is killed meanwhile."""
        done = self.create_future()
        process = PROCESS.get()
        if process is not None and process.unwinding:
            done.cancel()
            return done

        def run() -> None:
            if done.cancelled():  # like a thread pool, which starts nothing that was cancelled in its queue
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - a thread hands over whatever was raised
                done.set_exception(error)
            else:
                done.set_result(result)

        self.call_soon(run)
        return done

    def draw(self) -> float:
        """A number of the order's own chance: equal in two runs that drew equally often."""
        return self._random.random()

    def unpark(self, handles: list[asyncio.Handle]) -> None:
        """Callbacks of a process that was frozen may run again."""
        self._ready.extend(handles)

    def advance(self, *, turns: int, seconds: float) -> int:
        """Run up to `turns` callbacks while at most `seconds` pass; how many of the turns were not needed.

        Where turns are left over, `seconds` have passed.
        """
        end = self.now + seconds
        ready, scheduled, random = self._ready, self._scheduled, self._random.random
        asyncio.events._set_running_loop(self)
        try:
            while turns > 0:
                while scheduled and (scheduled[0].when() <= self.now or scheduled[0].cancelled()):
                    timer = heapq.heappop(scheduled)
                    timer._scheduled = False  # type: ignore[attr-defined]  # as the base class marks it
                    ready.append(timer)
                if not ready:
                    if not scheduled or scheduled[0].when() > end:
                        self.now = end
                        break
                    self.now = scheduled[0].when()
                    continue
                place = int(random() * len(ready))
                handle = ready[place]
                ready[place] = ready[-1]
                ready.pop()
                if self._may_run(handle):
                    turns -= 1
                    self.turns += 1
                    handle._run()
        finally:
            asyncio.events._set_running_loop(None)
        return turns

    def _may_run(self, handle: asyncio.Handle) -> bool:
        if handle.cancelled():
            return False
        context = cast("Context", handle._context)  # type: ignore[attr-defined]  # what `call_soon` was given
        process = context.get(PROCESS)
        if process is None:
            return True
        if process.life is Life.ALIVE and process.countdown:
            process.countdown -= 1
            if not process.countdown:
                process.strike()
        if process.life is Life.ALIVE:
            return True
        # Also for the dead: what it left is cleared away at the end of the world.
        process.parked.append(handle)
        return False

    def _new_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> NumberedTask:
        task = NumberedTask(work, number=next(self._numbers), loop=loop, **options)
        process = PROCESS.get()
        if process is not None:
            process.tasks.append(task)
        return task

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their time comes."""

    def _write_to_self(self) -> None:
        """There is nobody to wake."""
