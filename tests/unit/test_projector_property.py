"""Whatever the order of arrival, duplication, batches and rounds: episodes and counts are those of one full rebuild."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct
from msgspec.structs import replace

from worker.clock import ManualClock
from worker.episodes.episode import Episode
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.episodes.task import PlacedAction, TaskView
from worker.learning.counts import CountBucket, CountKey
from worker.projector import Projector, project_item
from worker.store.port import Pending, PendingSession, PendingTask, Projection
from worker.wire.records import ActionRecord, Failure, LearnStatsRecord, Outcome, Success, Timeout, Unknown

RULES = Rules(holdout=0.5)
MODELS = learn_models(("worker_decision_sequence", "worker_task", "dependency_graph", "dpo"), RULES)
IDLE_MS = 60_000


class Mark(Struct):
    """How far a task was projected."""

    upto: int
    idle: bool
    open_tail: bool


class Log:
    """The log and its projections as the port describes them, in the plainest form."""

    def __init__(self) -> None:
        self.batch_no = 0
        self.actions: dict[tuple[str, int | None], PlacedAction] = {}
        self.stats: dict[str, PendingSession] = {}
        self.episodes: dict[str, list[Episode]] = {}
        self.counts: dict[CountBucket, Counter[CountKey]] = {}
        self.marks: dict[str, Mark] = {}
        self.counted: set[str] = set()

    def ingest(self, records: Sequence[ActionRecord | LearnStatsRecord], now_ms: int) -> None:
        """Store one batch; a record whose identity is known is a copy."""
        self.batch_no += 1
        for index, record in enumerate(records):
            if isinstance(record, ActionRecord):
                placed = PlacedAction(record, self.batch_no, now_ms, ("node", 0, self.batch_no, index))
                self.actions.setdefault((record.task_id, record.event_id), placed)
            else:
                item = PendingSession(scenario="s", batch_no=self.batch_no, received_at_ms=now_ms, record=record)
                self.stats.setdefault(record.session_id, item)

    def rebuild(self) -> None:
        """Drop what was projected."""
        self.episodes, self.counts, self.marks, self.counted = {}, {}, {}, set()

    async def pending(self, *, now_ms: int, idle_ms: int, limit: int) -> list[Pending]:
        """As the port says, but for a small part of it at a time."""
        found: list[Pending] = [item for name, item in self.stats.items() if name not in self.counted]
        for task_id in {task_id for task_id, _ in self.actions}:
            item = self._pending_task(task_id, idle=now_ms - self._last(task_id) >= idle_ms)
            if item is not None:
                found.append(item)
        return found[: limit // 1000]

    async def project(self, projections: Sequence[Projection]) -> None:
        """As the port says."""
        for projection in projections:
            item = projection.of
            for bucket, counts in projection.counts.items():
                self.counts.setdefault(bucket, Counter()).update(counts)
            if isinstance(item, PendingTask):
                self.episodes[item.task.task_id] = projection.episodes
                self.marks[item.task.task_id] = Mark(item.upto, item.task.idle, projection.open_tail)
            elif isinstance(item, PendingSession):
                self.counted.add(item.record.session_id)

    def result(self) -> tuple[dict[str, Episode], dict[CountBucket, dict[CountKey, int]]]:
        """Everything that a rebuild must give again."""
        episodes = {one.episode_id: one for several in self.episodes.values() for one in several}
        counts = {bucket: {key: n for key, n in each.items() if n} for bucket, each in self.counts.items()}
        return episodes, {bucket: each for bucket, each in counts.items() if each}

    def claims(self, task_id: str) -> dict[str, int]:
        """The ended sessions of a task, each with the batch as of which it is known to be one of them."""
        found = {}
        for name, item in self.stats.items():
            links = [placed.batch_no for placed in self._actions(task_id) if placed.record.session_id == name]
            if task_id in (item.record.task_ids or ()):
                links.append(0)
            if links:
                found[name] = max(item.batch_no, min(links))
        return found

    def _pending_task(self, task_id: str, *, idle: bool) -> PendingTask | None:
        claims = self.claims(task_id)
        session = self.stats[min(claims, key=lambda name: (claims[name], name))] if claims else None
        actions = self._actions(task_id)
        numbers = [placed.batch_no for placed in actions] + ([session.batch_no] if session else [])
        mark = self.marks.get(task_id)
        view = TaskView(scenario="s", task_id=task_id, actions=actions, idle=idle)
        view.session = session.record if session else None
        closed = idle or session is not None or any(RULES.is_terminal(placed.record.action) for placed in actions)
        ready = closed if mark is None else max(numbers) > mark.upto or (mark.open_tail and idle)
        if not ready:
            return None
        return PendingTask(
            task=view,
            upto=max(numbers),
            session_batch_no=session.batch_no if session else None,
            projected_upto=mark.upto if mark else None,
            projected_idle=mark.idle if mark else False,
        )

    def _actions(self, task_id: str) -> list[PlacedAction]:
        return [placed for (owner, _), placed in self.actions.items() if owner == task_id]

    def _last(self, task_id: str) -> int:
        return max(placed.received_at_ms for placed in self._actions(task_id))


NAMES = st.sampled_from(["look", "move", "LLM_decide", "done", "give_up"])
OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from([Success(0.5), Failure("lost"), Timeout(), Unknown()])


@st.composite
def histories(draw: st.DrawFn) -> list[ActionRecord | LearnStatsRecord]:
    """Actions of a few tasks and workers, some of which name their session, and the sessions' stats."""
    records: list[ActionRecord | LearnStatsRecord] = [
        ActionRecord(
            task_id=draw(st.sampled_from(["t0", "t1"])),
            tick=draw(st.integers(0, 6)),
            worker_id=draw(st.integers(0, 1)),
            action=draw(NAMES),
            event_id=number,
            timestamp_ms=draw(st.sampled_from([0, 86_400_000])),
            success=draw(st.sampled_from([None, True, False])),
            kpi=draw(st.sampled_from([None, 0.1, 1])),
            session_id=draw(st.sampled_from([None, None, "s0", "s1"])),
            group_id=draw(st.sampled_from([None, "g"])),
        )
        for number in range(draw(st.integers(1, 14)))
    ]
    for name in draw(st.sets(st.sampled_from(["s0", "s1"]))):
        task_ids = draw(st.sampled_from([None, ["t0"], ["t1"], ["t0", "t1"]]))
        stats = LearnStatsRecord(name, Raw(b"{}"), draw(OUTCOMES), 1, 1, timestamp_ms=0, task_ids=task_ids)
        records.append(stats)
    return records


class World:
    """A log under a clock, with a projector and one more that was overtaken by arrivals."""

    def __init__(self) -> None:
        self.log = Log()
        self.clock = ManualClock()
        self.projector = Projector(
            self.log,  # type: ignore[arg-type]  # a part of the role: what a projector needs of it
            self.clock,
            rules_of=lambda _: RULES,
            models_of=lambda _: MODELS,
            idle_ms=IDLE_MS,
            busy=lambda: False,
        )
        self.held: list[Projection] = []

    async def do(self, step: str) -> None:
        """A round, time that passes, or a round of which only the reading is done for now."""
        if step == "round":
            await self._write_held()
            await self.projector.project_pending()
        elif step == "wait":
            self.clock.advance(IDLE_MS / 1000 + 1)
        elif step == "read":
            await self._write_held()
            items = await self.log.pending(now_ms=self.clock.now_ms(), idle_ms=IDLE_MS, limit=2000)
            self.held = [project_item(item, RULES, MODELS)[0] for item in items]

    async def settle(self) -> None:
        """Until nothing is pending and every task is idle."""
        await self._write_held()
        await self.projector.catch_up()
        self.clock.advance(IDLE_MS / 1000 + 1)
        await self.projector.catch_up()

    async def _write_held(self) -> None:
        held, self.held = self.held, []
        await self.log.project(held)


STEPS = st.lists(st.sampled_from(["deliver", "deliver", "deliver", "round", "read", "wait"]), max_size=40)


@settings(deadline=None)
@given(history=histories(), steps=STEPS, shuffle=st.randoms(use_true_random=False))
def test_any_arrival_gives_what_one_rebuild_gives(
    history: list[ActionRecord | LearnStatsRecord], steps: list[str], shuffle: random.Random
) -> None:
    """Late records, late stats, copies, any batches, rounds in between, rounds that arrivals overtook."""
    asyncio.run(_any_arrival(history, steps, shuffle))


async def _any_arrival(
    history: list[ActionRecord | LearnStatsRecord], steps: list[str], shuffle: random.Random
) -> None:
    world = World()
    arriving = history + shuffle.sample(history, len(history) // 2)  # some come twice
    shuffle.shuffle(arriving)
    for step in [*steps, *["deliver"] * len(arriving)]:
        if step == "deliver" and arriving:
            size = shuffle.randint(1, 4)
            world.log.ingest(arriving[:size], world.clock.now_ms())
            del arriving[:size]
        await world.do(step)
    await world.settle()
    grown = world.log.result()

    world.log.rebuild()
    await world.settle()
    assert world.log.result() == grown

    if all(len(world.log.claims(task_id)) < 2 for task_id in ("t0", "t1")):
        at_once = World()
        at_once.log.ingest(history, at_once.clock.now_ms())
        await at_once.settle()
        assert at_once.log.result() == grown


async def test_a_session_that_a_late_action_names_was_not_part_of_the_earlier_projection() -> None:
    """Stats stored first, the link to them last: what is taken back must not hold the session's outcome."""
    look = ActionRecord(task_id="t0", tick=1, worker_id=0, action="done", event_id=1, timestamp_ms=0)
    world = World()
    world.log.ingest([LearnStatsRecord("s0", Raw(b"{}"), Failure("lost"), 1, 1, timestamp_ms=0)], 0)
    world.log.ingest([look], 0)
    await world.projector.catch_up()
    world.log.ingest([replace(look, event_id=2, session_id="s0")], 0)
    await world.settle()
    grown = world.log.result()
    world.log.rebuild()
    await world.settle()
    assert world.log.result() == grown
