"""Projections in memory: pending items, what came of them, and the facts about it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from operator import itemgetter

from worker.episodes.episode import Episode
from worker.episodes.task import TaskView
from worker.learning.counts import Counts
from worker.store.memory.scenario_log import MemoryTask, ScenarioLog
from worker.store.memory.state import Role
from worker.store.port import (
    EpisodeFilter,
    Pending,
    PendingGraph,
    PendingSession,
    PendingTask,
    Projection,
    RollingOutcomes,
    ScenarioFacts,
    Session,
)
from worker.wire.records import INT64_MAX, Unknown, score_of
from worker.wire.times import happened_at


class Projections(Role):
    """`worker.store.port.Projections`, and `Facts` but for the trigger state, in memory."""

    async def pending(
        self, *, now_ms: int, idle_ms: int, limit: int, scenarios: Sequence[str] | None = None
    ) -> list[Pending]:
        """Items that are ready."""
        self._state.require_open()
        items: list[Pending] = []
        left = limit
        for item, size in self._ready(
            now_ms, now_ms - idle_ms, [*self._state.scenarios] if scenarios is None else scenarios
        ):
            if left <= 0 and items:
                break
            items.append(item)
            left -= size
        return items

    def _ready(self, now_ms: int, quiet_since: int, scenarios: Iterable[str]) -> Iterator[tuple[Pending, int]]:
        ready: list[tuple[tuple[int, int], Pending, int]] = []
        for scenario, log in ((name, self._log(name)) for name in scenarios):
            for task in log.tasks.values():
                if task.due(quiet_since, now_ms):
                    item = _pending_task(scenario, log, task, quiet_since)
                    ready.append(((task.changed_upto, 0), item, len(task.actions)))
            sessions = [log.sessions[name] for name in log.sessions if name not in log.counted_sessions]
            ready += [((session.batch_no, 1), session, 1) for session in sessions]
            graphs = [graph for graph in log.graphs if _place(graph) not in log.projected_graphs]
            ready += [((graph.batch_no, 1), graph, 1) for graph in graphs]
        ready.sort(key=itemgetter(0))
        for _, one, size in ready:
            yield one, size

    async def project(self, projections: Sequence[Projection]) -> None:
        """Store what came of pending items; one that was projected or dropped since it was read is left alone."""
        self._state.require_open()
        for projection in projections:
            item = projection.of
            scenario = item.task.scenario if isinstance(item, PendingTask) else item.scenario
            log, facts = self._state.log(scenario), self._state.facts(scenario)
            if not self._mark(log, facts, projection):
                continue
            for bucket, counts in projection.counts.items():
                log.counts[bucket].update(counts)
            origin = item.task.task_id if isinstance(item, PendingTask) else _origin(item)
            if origin is not None:
                log.episodes[origin], before = list(projection.episodes), log.episodes.get(origin, [])
                facts.episodes += len(projection.episodes) - len(before)
                _count_models(facts.episodes_by_model, projection.episodes, before)

    def _mark(self, log: ScenarioLog, facts: ScenarioFacts, projection: Projection) -> bool:
        match projection.of:
            case PendingTask() as item:
                task = log.tasks[item.task.task_id]
                if (task.projected_upto or None, task.projected_idle) != (item.projected_upto, item.projected_idle):
                    return False
                facts.open_tasks -= task.projected_upto == 0
                task.projected_upto, task.projected_idle = item.upto, item.task.idle
                task.open_tail = projection.open_tail
            case PendingSession(record=record):
                if record.session_id in log.counted_sessions:
                    return False
                log.counted_sessions.add(record.session_id)
                facts.counted_sessions += 1
            case PendingGraph() as graph:
                if _place(graph) in log.projected_graphs:
                    return False
                log.projected_graphs.add(_place(graph))
        return True

    async def rebuild(self, scenario: str, *, under: str | None = None) -> None:
        """Drop every projection of the scenario; all of its log is pending again."""
        self._state.require_open()
        log, facts = self._state.log(scenario), self._state.facts(scenario)
        log.counted_sessions.clear()
        log.projected_graphs.clear()
        log.episodes.clear()
        log.counts.clear()
        for task in log.tasks.values():
            task.projected_upto, task.projected_idle, task.open_tail = 0, False, False
        log.projected_under = under or log.projected_under
        facts.episodes = facts.counted_sessions = 0
        facts.episodes_by_model.clear()
        facts.open_tasks = sum(bool(task.actions) for task in log.tasks.values())

    async def projected_under(self, scenario: str) -> str | None:
        """The rules that the projections go by."""
        self._state.require_open()
        return self._state.log(scenario).projected_under

    # ------------------------------------------------------------ reading

    async def episodes(self, scenario: str, where: EpisodeFilter) -> AsyncIterator[Episode]:
        """Episodes by the time they ended, then by id."""
        found = self._episodes(scenario, where)
        found.sort(key=lambda episode: (episode.ended_at_ms, episode.episode_id), reverse=where.newest_first)
        end = None if where.limit is None else where.offset + where.limit
        for episode in found[where.offset : end]:
            yield episode

    async def count_episodes(self, scenario: str, where: EpisodeFilter) -> int:
        """How many episodes `episodes` would give, but for `limit` and `offset`."""
        return len(self._episodes(scenario, where))

    def _episodes(self, scenario: str, where: EpisodeFilter) -> list[Episode]:
        self._state.require_open()
        made = self._log(scenario).episodes.values()
        return [episode for episodes in made for episode in episodes if _fits(episode, where)]

    async def sessions(
        self,
        scenario: str,
        *,
        latest: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        group_id: str | None = None,
        phase: str | None = None,
        session_id: str | None = None,
        most_of_one: int | None = None,
    ) -> list[Session]:
        """Ended sessions, newest first by their own time."""
        self._state.require_open()
        found = [
            item
            for item in self._log(scenario).sessions.values()
            if _within(_ended_at(item), since_ms, until_ms)
            and group_id in (None, item.record.group_id)
            and phase in (None, item.record.phase)
            and session_id in (None, item.record.session_id)
        ]
        found.sort(key=lambda item: (_ended_at(item), item.record.session_id), reverse=True)
        of_producer: Counter[str] = Counter()
        chosen = []
        for item in found:
            of_producer[item.producer] += 1
            if most_of_one is None or of_producer[item.producer] <= most_of_one:
                chosen.append(item)
        return [
            Session(
                scenario=item.scenario, batch_no=item.batch_no, received_at_ms=item.received_at_ms, record=item.record
            )
            for item in chosen[:latest]
        ]

    async def graphs(self, scenario: str, *, latest: int) -> list[PendingGraph]:
        """The newest dependency-graph records."""
        self._state.require_open()
        graphs = self._log(scenario).graphs
        return sorted(graphs, key=lambda graph: (_ended_at(graph), _place(graph)), reverse=True)[:latest]

    async def counts(
        self, scenario: str | None, *, holdout: bool | None = None, since_day: int | None = None
    ) -> Counts:
        """The aggregates, summed over days."""
        self._state.require_open()
        total: Counts = Counter()
        for name in [*self._state.scenarios] if scenario is None else [scenario]:
            for bucket, counts in self._log(name).counts.items():
                if holdout in (None, bucket.holdout) and (since_day is None or bucket.day >= since_day):
                    total.update(counts)
        return Counter({key: value for key, value in total.items() if value})

    async def scenarios(self) -> list[str]:
        """Every scenario that anything was stored for, by name."""
        self._state.require_open()
        return sorted(self._state.scenarios)

    async def facts(self, scenario: str) -> ScenarioFacts:
        """A copy: what comes later does not change it."""
        self._state.require_open()
        return self._state.copy_of_facts(scenario)

    async def rolling_outcomes(self, scenario: str, *, learn_model: str, sample: int) -> RollingOutcomes | None:
        """The newest `sample` episodes whose outcome is known; None where there is none."""
        known = [
            (episode.ended_at_ms, str(episode.outcome.__struct_config__.tag), score_of(episode.outcome))
            for episode in self._episodes(scenario, EpisodeFilter(learn_model=learn_model))
            if not isinstance(episode.outcome, Unknown)
        ]
        newest = sorted(known, reverse=True)[:sample]
        if not newest:
            return None
        successes = sum(outcome == "success" for _, outcome, _ in newest)
        return RollingOutcomes(len(newest), successes / len(newest), sum(score for *_, score in newest) / len(newest))

    def _log(self, scenario: str) -> ScenarioLog:
        """For reading: a scenario nobody stored for stays unknown."""
        return self._state.log(scenario) if scenario in self._state.scenarios else ScenarioLog()


def _count_models(by_model: dict[str, int], episodes: Sequence[Episode], before: Sequence[Episode]) -> None:
    change = Counter(episode.learn_model for episode in episodes)
    change.subtract(episode.learn_model for episode in before)
    for learn_model, number in change.items():
        by_model[learn_model] = by_model.get(learn_model, 0) + number
        if not by_model[learn_model]:
            del by_model[learn_model]


def _pending_task(scenario: str, log: ScenarioLog, task: MemoryTask, quiet_since: int) -> PendingTask:
    session = None if task.session_id is None else log.sessions[task.session_id]
    view = TaskView(
        scenario=scenario,
        task_id=task.task_id,
        actions=list(task.actions),
        session=None if session is None else session.record,
        idle=task.last_received_ms <= quiet_since,
    )
    return PendingTask(
        task=view,
        upto=task.changed_upto,
        session_batch_no=None if session is None else session.batch_no,
        projected_upto=task.projected_upto or None,
        projected_idle=task.projected_idle,
    )


def _fits(episode: Episode, where: EpisodeFilter) -> bool:
    equal: list[tuple[object, object]] = [
        (where.learn_model, episode.learn_model),
        (where.outcome, episode.outcome.__struct_config__.tag),
        (where.group_id, episode.group_id),
        (where.session_id, episode.session_id),
        (where.task_id, episode.task_id),
        (where.worker_id, episode.worker_id),
        (where.holdout, episode.holdout),
    ]
    return (
        all(wanted is None or wanted == found for wanted, found in equal)
        and (where.min_score is None or score_of(episode.outcome) >= where.min_score)
        and _within(episode.ended_at_ms, where.since_ms, where.until_ms)
    )


def _within(at_ms: int, since_ms: int | None, until_ms: int | None) -> bool:
    return (-INT64_MAX if since_ms is None else since_ms) <= at_ms <= (INT64_MAX if until_ms is None else until_ms)


def _ended_at(item: PendingGraph | Session) -> int:
    return happened_at(item.record.timestamp_ms, item.received_at_ms)


def _place(graph: PendingGraph) -> tuple[int, int]:
    return graph.batch_no, graph.index


def _origin(item: PendingSession | PendingGraph) -> tuple[int, int] | None:
    """A session is projected once and has no episodes of its own."""
    return _place(item) if isinstance(item, PendingGraph) else None
