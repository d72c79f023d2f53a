"""Whatever the order of arrival, duplication, batches and rounds: episodes and counts are those of one full rebuild."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from tempfile import TemporaryDirectory
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from worker.clock import ManualClock
from worker.episodes.episode import Episode
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.learning.counts import Counts
from worker.projector.item import project_item
from worker.projector.projector import Projector
from worker.settings import LEARN_MODELS
from worker.store import open_store
from worker.store.port import EpisodeFilter, IncomingBatch, Projection, Store, Stored
from worker.wire.records import (
    ActionRecord,
    Batch,
    BatchIdentity,
    DependencyGraphRecord,
    Failure,
    LearnStatsRecord,
    Outcome,
    Record,
    Success,
    Timeout,
    Unknown,
)

RULES = Rules(holdout=0.5)
MODELS = learn_models(LEARN_MODELS, RULES)
IDLE_MS = 60_000
DAY_MS = 86_400_000
TASKS = ("t0", "t1")

Result: TypeAlias = tuple[list[Episode], list[Counts]]

NAMES = st.sampled_from(["look", "move", "LLM_decide", "done", "give_up"])
OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from([Success(0.5), Failure("lost"), Timeout(), Unknown()])
STEPS = st.lists(st.sampled_from(["deliver", "deliver", "deliver", "round", "read", "wait"]), max_size=40)


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Actions of a few tasks and workers, some of which name their session, the sessions' stats, and a graph."""
    records: list[Record] = [
        ActionRecord(
            task_id=draw(st.sampled_from(TASKS)),
            tick=draw(st.integers(0, 6)),
            worker_id=draw(st.integers(0, 1)),
            action=draw(NAMES),
            event_id=number,
            timestamp_ms=draw(st.sampled_from([0, DAY_MS])),
            success=draw(st.sampled_from([None, True, False])),
            kpi=draw(st.sampled_from([None, 0.1, 1])),
            session_id=draw(st.sampled_from([None, None, "s0", "s1"])),
            group_id=draw(st.sampled_from([None, "g"])),
        )
        for number in range(draw(st.integers(1, 14)))
    ]
    for name in draw(st.sets(st.sampled_from(["s0", "s1"]))):
        task_ids = draw(st.sampled_from([None, ["t0"], ["t1"], ["t0", "t1"]]))
        records.append(LearnStatsRecord(name, Raw(b"{}"), draw(OUTCOMES), 1, 1, timestamp_ms=0, task_ids=task_ids))
    if draw(st.booleans()):
        graph = DependencyGraphRecord("?", "a", ["a"], ["a"], [], "m", "http://x", 1, timestamp_ms=0, record_id="r")
        records.append(graph)
    return records


class World:
    """A store with a projector, and with rounds that stop halfway so that arrivals overtake them."""

    def __init__(self, store: Store, clock: ManualClock, scenario: str) -> None:
        self.store = store
        self.clock = clock
        self.scenario = scenario
        self.projector = Projector(
            store, clock, rules_of=lambda _: RULES, models_of=lambda _: MODELS, idle_ms=IDLE_MS, busy=lambda: False
        )
        self.batches = 0
        self.held: list[Projection] = []

    async def deliver(self, records: list[Record]) -> None:
        """Store one batch."""
        self.batches += 1
        ended = {one.task_id for one in records if isinstance(one, ActionRecord) and RULES.is_terminal(one.action)}
        batch = Batch(
            identity=BatchIdentity(producer_id="node", producer_epoch=0, batch_seq=self.batches, batch_id=None),
            content_hash=self.batches.to_bytes(32, "big"),
            records=records,
            nulls=None,
            unknown_fields=0,
        )
        incoming = IncomingBatch(
            scenario=self.scenario, batch=batch, body=b"", received_at_ms=self.clock.now_ms(),
            terminal_tasks=frozenset(ended),
        )  # fmt: skip
        (verdict,) = await self.store.ingest([incoming])
        assert isinstance(verdict, Stored)

    async def do(self, step: str) -> None:
        """A small round, time that passes, or a round of which only the reading is done for now."""
        if step == "wait":
            self.clock.advance(IDLE_MS / 1000 + 1)
        elif step in ("round", "read"):
            await self.write_held()
            items = await self.store.pending(now_ms=self.clock.now_ms(), idle_ms=IDLE_MS, limit=3)
            self.held = [project_item(item, RULES, MODELS)[0] for item in items]
            if step == "round":
                await self.write_held()

    async def write_held(self) -> None:
        """Store what was read and computed a while ago."""
        held, self.held = self.held, []
        await self.store.project(held)

    async def settled(self) -> Result:
        """Everything that a rebuild must give again, once nothing is pending and every task is idle."""
        await self.write_held()
        await self.projector.catch_up()
        self.clock.advance(IDLE_MS / 1000 + 1)
        await self.projector.catch_up()
        assert self.projector.stats.faults == 0
        episodes = [episode async for episode in self.store.episodes(self.scenario, EpisodeFilter())]
        counts = [
            await self.store.counts(self.scenario, holdout=holdout, since_day=day)
            for holdout in (False, True)
            for day in (0, 1)
        ]
        return sorted(episodes, key=lambda episode: episode.episode_id), counts


def claims(history: list[Record], task_id: str) -> set[str]:
    """The sessions that say or are said to hold the task."""
    ended = [record for record in history if isinstance(record, LearnStatsRecord)]
    named = {record.session_id for record in history if isinstance(record, ActionRecord) and record.task_id == task_id}
    return {stats.session_id for stats in ended if stats.session_id in named or task_id in (stats.task_ids or ())}


@asynccontextmanager
async def world(url: str) -> AsyncIterator[Callable[[], World]]:
    """Makes worlds in one fresh store, each a scenario of its own."""
    clock = ManualClock()
    store = open_store(url, clock)
    await store.open()
    numbers = count()
    try:
        yield lambda: World(store, clock, f"s{next(numbers)}")
    finally:
        await store.close()


async def any_arrival(url: str, history: list[Record], steps: list[str], shuffle: random.Random) -> None:
    """One history: grown step by step, rebuilt, and stored at once."""
    async with world(url) as new:
        grown = new()
        arriving = history + shuffle.sample(history, len(history) // 2)  # some come twice
        shuffle.shuffle(arriving)
        for step in [*steps, *["deliver"] * len(arriving)]:
            if step == "deliver" and arriving:
                size = shuffle.randint(1, 4)
                await grown.deliver(arriving[:size])
                del arriving[:size]
            await grown.do(step)
        result = await grown.settled()

        await grown.store.rebuild(grown.scenario)
        assert await grown.settled() == result

        if all(len(claims(history, task_id)) < 2 for task_id in TASKS):
            async with world("memory:") as another:
                at_once = another()
                await at_once.deliver(history)
                assert await at_once.settled() == result


@settings(deadline=None)
@given(history=histories(), steps=STEPS, shuffle=st.randoms(use_true_random=False))
def test_any_arrival_gives_what_one_rebuild_gives(
    history: list[Record], steps: list[str], shuffle: random.Random
) -> None:
    """Late records, late stats, copies, any batches, rounds in between, rounds that arrivals overtook.

    And the same as if all had come at once, but for a task that two sessions claim: there the first one known wins.
    """
    asyncio.run(any_arrival("memory:", history, steps, shuffle))


@settings(deadline=None, max_examples=20)
@given(history=histories(), steps=STEPS, shuffle=st.randoms(use_true_random=False))
def test_any_arrival_gives_it_on_sqlite_too(history: list[Record], steps: list[str], shuffle: random.Random) -> None:
    """Fewer examples: each commits to a disk."""
    with TemporaryDirectory() as folder:
        asyncio.run(any_arrival(f"sqlite://{folder}/store.db", history, steps, shuffle))


async def test_a_session_that_a_late_action_names_was_not_part_of_the_earlier_projection(store: Store) -> None:
    """The stats came first and the link to them last: what is taken back must not hold the session's outcome."""
    scenario = World(store, ManualClock(), "s")
    done = ActionRecord(task_id="t0", tick=1, worker_id=0, action="done", event_id=1, timestamp_ms=0, group_id="g")
    stats = LearnStatsRecord("s0", Raw(b"{}"), Failure("lost"), 1, 1, timestamp_ms=0)
    await scenario.deliver([stats])
    await scenario.deliver([done])
    await scenario.projector.catch_up()
    await scenario.deliver([replace(done, event_id=2, session_id="s0")])
    result = await scenario.settled()
    assert {episode.outcome for episode in result[0]} == {Failure("lost")}
    await store.rebuild("s")
    assert await scenario.settled() == result
