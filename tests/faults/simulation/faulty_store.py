"""One process's connection to the store that all share: down or slow at times, and a place to die at, around a commit.

A call that was sent is carried out even where the caller was cancelled meanwhile, as a writer's thread does; a process
that dies or freezes before leaves it undone, or does it when it thaws: the zombie's commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, cast

from tests.faults.simulation.faults import Faults
from tests.faults.simulation.loop import SimulatedLoop
from tests.faults.simulation.process import Process
from worker.errors import StoreUnavailable
from worker.store.memory import MemoryStore
from worker.store.port import DamagedRow, Store

#: Calls that change something: a process may die around these.
WRITES = frozenset(
    {
        "ingest", "quarantine_mark_replayed", "project", "rebuild", "save_trigger_state", "acquire_lease",
        "renew_lease", "release_lease", "end_leases_of_the_dead", "create_run", "start_run", "progress_run",
        "finish_run", "requeue_run", "deploy", "add_events", "mark_sent", "mark_attempt", "accept_command",
        "finish_command",
    }
)  # fmt: skip
#: They give records as they are asked for, not a value.
_STREAMS = frozenset({"records", "episodes"})
#: Longest a call takes while the store is slow, in s: longer than a lease lives.
_SLOW = 8.0


class Witness(Protocol):
    """Told of every write, once it is done."""

    def __call__(self, process: Process, call: str, args: tuple[Any, ...], outcome: object) -> None: ...


class FaultyStore:
    """`worker.store.port.Store` as one process sees it."""

    def __init__(
        self,
        store: MemoryStore,
        process: Process,
        loop: SimulatedLoop,
        faults: Faults,
        witness: Witness,
        *,
        alone: bool,
    ) -> None:
        self._store = store
        self._process = process
        self._loop = loop
        self._faults = faults
        self._witness = witness
        self._alone = alone

    def as_store(self) -> Store:
        """The port: what is not written here is found by name."""
        return cast("Store", self)

    async def open(self) -> None:
        """It is open for all of them."""
        await self._send("probe", self._store.probe, (), {})

    async def close(self) -> None:
        """The others go on."""

    async def end_leases_of_the_dead(self, owner: str) -> int:
        """Where many have the store open at once, nothing proves that anybody is dead."""
        if not self._alone:
            return 0
        method = self._store.end_leases_of_the_dead
        return cast("int", await self._send("end_leases_of_the_dead", method, (owner,), {}))

    @property
    def damage(self) -> Sequence[DamagedRow]:
        """Known without a call."""
        return self._store.damage

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in _STREAMS:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._send(name, method, args, kwargs)

        self.__dict__[name] = call
        return call

    async def _send(
        self, name: str, method: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._process.unwinding:
            raise asyncio.CancelledError
        answer = self._loop.create_future()

        def carry_out() -> None:
            self._carry_out(name, method, args, kwargs, answer)

        if self._loop.now < self._faults.store_slow_until:
            self._faults.note("store slow")
            self._loop.call_later(self._faults.random.uniform(0.0, _SLOW), carry_out)
        else:
            self._loop.call_soon(carry_out)
        return await answer

    def _carry_out(
        self,
        name: str,
        method: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        answer: asyncio.Future[Any],
    ) -> None:
        if self._loop.now < self._faults.store_down_until:
            self._faults.note("store down")
            self._loop.call_soon(_answer, answer, None, StoreUnavailable("the store is down"))
            return
        writes = name in WRITES
        if writes and self._faults.dies(self._process, "before_commit"):
            return
        result: Any = None
        error: Exception | None = None
        try:
            result = at_once(method(*args, **kwargs))
        except Exception as refused:  # noqa: BLE001 - a bug is the caller's to meet, as it would be in a thread
            error = refused
        if writes:
            self._witness(self._process, name, args, error or result)
            if self._faults.dies(self._process, "after_commit"):
                return
            # The run has ended, and what it brought is still to be handed over.
            if name == "finish_run" and self._faults.dies(self._process, "after_run"):
                return
            self._loop.call_soon(_answer, answer, result, error)
        else:
            _answer(answer, result, error)


def at_once(work: Awaitable[Any]) -> Any:
    """The result of a coroutine that never waits, as those of the store in memory are: one call is one transaction."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    raise AssertionError("the store in memory waited for something")


def _answer(answer: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if answer.done():  # the caller was cancelled
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
