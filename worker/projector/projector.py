"""The projector: beside ingest, never in its way, it turns pending tasks, sessions and graphs into episodes and counts.

It works in small rounds: read what is pending, compute in a thread, store. While ingest is busy it takes at most
`BUSY_SHARE` of the wall time, so it falls behind under load but never stands still. All it stores can be dropped and
made again from the log, so an interrupted round costs nothing but its time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from worker.clock import Clock, sleep_unless
from worker.episodes.model import LearnModel
from worker.episodes.projection import Fault
from worker.episodes.rules import Rules
from worker.errors import DataRefused, StoreUnavailable
from worker.projector.item import project_item, rules_digest
from worker.store.port import Pending, PendingGraph, PendingSession, PendingTask, Projection, Projections

log = structlog.get_logger(__name__)

#: Actions read in one round, alone and beside busy ingest. A round holds the interpreter for about 10 us an action.
ROUND_ACTIONS = 4_000
BUSY_ROUND_ACTIONS = 1_000
#: Most of the wall time that rounds may take while ingest is busy.
BUSY_SHARE = 0.05
#: While resting, how often to look whether ingest is still busy, in s.
LOOK_SECONDS = 0.1
#: After something was stored, how long to wait for more before the next round, in s.
GATHER_SECONDS = 0.05
#: Wait after the first failed round; doubles up to the second figure, in s.
BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.1, 30.0


@dataclass(slots=True)
class ProjectorStats:
    """What the projector did since the start of the process."""

    rounds: int = 0
    tasks_projected: int = 0  # first time and again
    tasks_revised: int = 0  # of these, again
    sessions_counted: int = 0
    graphs_projected: int = 0
    episodes_created: int = 0  # of items never projected before
    episodes_rewritten: int = 0  # of revised ones
    #: Learn models and counts that raised, projections the store refused: see `last_fault`.
    faults: int = 0
    last_fault: str | None = None
    store_errors: int = 0
    busy_seconds: float = 0.0
    #: Age of the newest record in the last round: how far behind the log the projector is; 0 when nothing is pending.
    lag_ms: int = 0


class Projector:
    """Projects what is pending. One per worker; see `run`."""

    def __init__(
        self,
        store: Projections,
        clock: Clock,
        *,
        rules_of: Callable[[str], Rules],
        models_of: Callable[[str], Sequence[LearnModel]],
        idle_ms: int,
        busy: Callable[[], bool],
        scenarios: Sequence[str] | None = None,
    ) -> None:
        """`scenarios` are those that have rules; None: all. What others left in the store waits for theirs."""
        self.stats = ProjectorStats()
        self._store = store
        self._clock = clock
        self._rules_of = rules_of
        self._models_of = models_of
        self._idle_ms = idle_ms
        self._busy = busy
        self._scenarios = scenarios
        self._stored = asyncio.Event()
        #: Two rounds at once would read the same pending items and count them twice.
        self._turn = asyncio.Lock()

    async def follow_rules(self, scenarios: Iterable[str]) -> None:
        """Drop what was projected under other rules or learn models than today's; `run` makes it again from the log.

        Otherwise a late record would take back from the counts what was never added to them.
        """
        for scenario in scenarios:
            digest = rules_digest(self._rules_of(scenario), self._models_of(scenario))
            before = await self._store.projected_under(scenario)
            if before != digest:
                if before is not None:  # else a new scenario: there is nothing to drop
                    log.info("projections_dropped", scenario=scenario, rules=digest, before=before)
                await self._store.rebuild(scenario, under=digest)

    def wake(self) -> None:
        """Say that a batch was stored."""
        self._stored.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Project until `stopping`. Outlives a store that is away; any other error of the store ends it."""
        # Nothing is stored when a task becomes idle, so the clock must ask.
        idle_check = min(max(self._idle_ms / 10_000, LOOK_SECONDS), 30.0)
        failures = 0
        while not stopping.is_set():
            self._stored.clear()
            began = self._clock.monotonic()
            try:
                done = await self.project_pending()
            except StoreUnavailable as error:
                self.stats.store_errors += 1
                pause = min(BACKOFF_SECONDS * 2**failures, LONGEST_BACKOFF_SECONDS)
                failures = min(failures + 1, 16)
                log.warning("projection_waits", reason=str(error), pause_s=pause)
                await sleep_unless(stopping, pause)
                continue
            failures = 0
            took = self._clock.monotonic() - began
            self.stats.busy_seconds += took
            await self._make_way(stopping, took)
            if not done:
                await self._until_stored(stopping, idle_check)
                await sleep_unless(stopping, GATHER_SECONDS)

    async def catch_up(self, *, within: float = math.inf) -> int:
        """Project at full speed what is pending, for at most `within` seconds; the number of items.

        It has caught up once a round finds less than it could take: beside ingest there is always something new.
        """
        end = self._clock.monotonic() + within
        total = 0
        while True:
            async with self._turn:
                limit = self._limit()
                items = await self._round(limit)
            total += len(items)
            if sum(map(_size, items)) < limit or self._clock.monotonic() >= end:
                return total

    async def project_pending(self) -> int:
        """One round; the number of items projected. Raises `StoreUnavailable` where the store is away."""
        async with self._turn:
            return len(await self._round(self._limit()))

    def _limit(self) -> int:
        return BUSY_ROUND_ACTIONS if self._busy() else ROUND_ACTIONS

    async def _round(self, limit: int) -> list[Pending]:
        items = await self._store.pending(
            now_ms=self._clock.now_ms(), idle_ms=self._idle_ms, limit=limit, scenarios=self._scenarios
        )
        self.stats.rounds += 1
        self.stats.lag_ms = self._lag(items)
        if not items:
            return []
        scenarios = {_scenario_of(item) for item in items}
        setup = {name: (self._rules_of(name), self._models_of(name)) for name in scenarios}
        outcomes = await asyncio.to_thread(
            lambda: [project_item(item, *setup[_scenario_of(item)]) for item in items],
        )
        for projection, faults in outcomes:
            for fault in faults:
                self._note_fault(projection.of, fault)
        projections = [projection for projection, _ in outcomes]
        try:
            await self._store.project(projections)
        except DataRefused:
            projections = [await self._project_alone(projection) for projection in projections]
        for projection in projections:
            self._count(projection)
        return items

    async def _project_alone(self, projection: Projection) -> Projection:
        """Store one projection; where the store refuses it, without its episodes, then without its counts too.

        So one bad item neither holds up the others nor comes back for ever. It is shown in `stats`; once the cause is
        repaired, a rebuild of the scenario makes it whole.
        """
        bare = Projection(of=projection.of, episodes=[], counts=projection.counts, open_tail=projection.open_tail)
        empty = Projection(of=projection.of, episodes=[], counts={}, open_tail=projection.open_tail)
        for attempt in (projection, bare):
            try:
                await self._store.project([attempt])
            except DataRefused as error:
                self._note_fault(projection.of, Fault("store", str(error)))
            else:
                return attempt
        await self._store.project([empty])
        return empty

    async def _make_way(self, stopping: asyncio.Event, took: float) -> None:
        """Rest after a round as long as ingest is busy, until the round was `BUSY_SHARE` of the time."""
        until = self._clock.monotonic() + took * (1 / BUSY_SHARE - 1)
        while self._busy() and not stopping.is_set() and (left := until - self._clock.monotonic()) > 0:
            await sleep_unless(stopping, min(left, LOOK_SECONDS))

    async def _until_stored(self, stopping: asyncio.Event, seconds: float) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (stopping, self._stored)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _lag(self, items: Sequence[Pending]) -> int:
        newest = max((at for item in items if (at := _received_at(item)) is not None), default=None)
        return 0 if newest is None else max(0, self._clock.now_ms() - newest)

    def _note_fault(self, item: Pending, fault: Fault) -> None:
        name = item.task.task_id if isinstance(item, PendingTask) else item.record.session_id
        self.stats.faults += 1
        self.stats.last_fault = f"{_scenario_of(item)}, {name}: {fault.culprit}: {fault.error}"
        log.error(
            "projection_fault", scenario=_scenario_of(item), item=name, culprit=fault.culprit, error=fault.error,
            cure="repair the culprit, then rebuild the scenario",
        )  # fmt: skip

    def _count(self, projection: Projection) -> None:
        item, stats = projection.of, self.stats
        revised = isinstance(item, PendingTask) and item.projected_upto is not None
        stats.tasks_projected += isinstance(item, PendingTask)
        stats.tasks_revised += revised
        stats.sessions_counted += isinstance(item, PendingSession)
        stats.graphs_projected += isinstance(item, PendingGraph)
        stats.episodes_rewritten += len(projection.episodes) if revised else 0
        stats.episodes_created += 0 if revised else len(projection.episodes)


def _scenario_of(item: Pending) -> str:
    return item.task.scenario if isinstance(item, PendingTask) else item.scenario


def _size(item: Pending) -> int:
    """What it counts towards the limit of a round."""
    return len(item.task.actions) if isinstance(item, PendingTask) else 1


def _received_at(item: Pending) -> int | None:
    """When its newest record came; None for an idle task, which waited on purpose."""
    if not isinstance(item, PendingTask):
        return item.received_at_ms
    return None if item.task.idle else max((placed.received_at_ms for placed in item.task.actions), default=None)
