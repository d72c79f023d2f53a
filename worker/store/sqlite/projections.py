"""Projections: what the projector made of pending items, stored as one change; and dropped whole for a rebuild."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from worker.episodes.episode import Episode
from worker.store.port import Pending, PendingGraph, PendingSession, PendingTask, Projection
from worker.store.sqlite.bulk import Bulk
from worker.store.sqlite.damage import SQL as DAMAGE_SQL
from worker.store.sqlite.damage import Found
from worker.store.sqlite.ingest import PLACE_BITS
from worker.store.sqlite.pending import SQL, read_pending
from worker.store.sqlite.role import Role, scenario_number
from worker.wire.records import score_of

_INSERT_EPISODE = Bulk(SQL["insert_episode"])
_ADD_COUNT = Bulk(SQL["add_count"])

#: Place of the learn model's name in an episode's row.
_LEARN_MODEL = 3


class Projections(Role):
    """The writing half of `worker.store.port.Projections` on SQLite."""

    async def pending(
        self, *, now_ms: int, idle_ms: int, limit: int, scenarios: Sequence[str] | None = None
    ) -> list[Pending]:
        """Items that are ready."""
        while True:
            found: list[Found] = []
            items = await self._database.read(
                lambda db: read_pending(
                    db,
                    now_ms=now_ms,
                    idle_ms=idle_ms,
                    limit=limit,
                    scenarios=scenarios,
                    damaged=found,  # noqa: B023
                )
            )
            # Again, since what is damaged took the place of others. Each time round notes a row that was not known.
            if not await self._note_damage(found):
                return items

    async def project(self, projections: Sequence[Projection]) -> None:
        """Store what came of pending items.

        An item that was projected or dropped by a rebuild since it was read is left alone: its counts are a difference
        to what is no longer there. It is pending still, or done.
        """
        by_scenario: dict[str, list[Projection]] = defaultdict(list)
        for projection in projections:
            by_scenario[_scenario_of(projection.of)].append(projection)

        def write(connection: sqlite3.Connection) -> None:
            for scenario, mine in by_scenario.items():
                _Projecting(connection, scenario_number(connection, scenario)).run(mine)

        await self._database.write(write, bulk=True)

    async def rebuild(self, scenario: str, *, under: str | None = None) -> None:
        """Drop every projection of the scenario; all of its log is pending again."""

        def write(connection: sqlite3.Connection) -> None:
            number = (scenario_number(connection, scenario),)
            for statement in (
                "forget_episodes",
                "forget_episode_counts",
                "forget_counts",
                "forget_tasks",
                "forget_sessions",
                "forget_graphs",
            ):
                connection.execute(SQL[statement], number)
            connection.execute(SQL["recount_scenario"], (*number, under))
            connection.execute(DAMAGE_SQL["forget_damage"], number)

        await self._database.write(write)
        self._database.damage.forget(scenario)

    async def projected_under(self, scenario: str) -> str | None:
        """The rules that the projections go by."""
        row = await self._database.read(lambda db: db.execute(SQL["projected_under"], (scenario,)).fetchone())
        return None if row is None else row[0]


class _Projecting:
    """The projections of one scenario on their way into the store."""

    def __init__(self, connection: sqlite3.Connection, scenario_no: int) -> None:
        self._connection = connection
        self._scenario_no = scenario_no
        self._origins: list[int] = []
        self._episodes: list[tuple[Any, ...]] = []
        self._counts: Counter[tuple[Any, ...]] = Counter()
        self._first_times = 0
        self._counted_sessions = 0

    def run(self, projections: Iterable[Projection]) -> None:
        tasks: dict[str, tuple[PendingTask, Projection]] = {}
        sessions: dict[str, Projection] = {}
        graphs: dict[int, Projection] = {}
        for projection in projections:
            match projection.of:
                case PendingTask() as item:
                    tasks.setdefault(item.task.task_id, (item, projection))
                case PendingSession(record=record):
                    sessions.setdefault(record.session_id, projection)
                case PendingGraph(batch_no=batch_no, index=index):
                    graphs.setdefault(batch_no << PLACE_BITS | index, projection)
        self._project_tasks(tasks)
        self._project_sessions(sessions)
        self._project_graphs(graphs)
        deleted = self._connection.execute(SQL["delete_episodes"], (_json(self._origins),)).fetchall()
        _INSERT_EPISODE.run(self._connection, self._episodes)
        _ADD_COUNT.run(self._connection, [(*key, value) for key, value in self._counts.items() if value])
        self._connection.execute(SQL["delete_zero_counts"], (self._scenario_no,))
        self._count_episodes([learn_model for (learn_model,) in deleted])
        change = {
            "episodes": len(self._episodes) - len(deleted),
            "first_times": self._first_times,
            "counted_sessions": self._counted_sessions,
            "scenario_no": self._scenario_no,
        }
        self._connection.execute(SQL["count_projection"], change)

    def _count_episodes(self, deleted: Sequence[str]) -> None:
        """What triggers count: the episodes of each learn model."""
        change = Counter(str(row[_LEARN_MODEL]) for row in self._episodes)
        change.subtract(deleted)
        for learn_model, number in change.items():
            if number:
                self._connection.execute(SQL["count_episodes_of"], (self._scenario_no, learn_model, number))

    def _project_tasks(self, tasks: dict[str, tuple[PendingTask, Projection]]) -> None:
        done = []
        for task_id, number, projected_upto, projected_idle in self._find("projected_tasks", tasks):
            item, projection = tasks[task_id]
            if (projected_upto or None, bool(projected_idle)) != (item.projected_upto, item.projected_idle):
                continue
            self._take(number, projection)
            self._first_times += not projected_upto
            done.append((number, item.upto, int(item.task.idle), int(projection.open_tail)))
        self._connection.execute(SQL["mark_tasks"], (_json(done),))

    def _project_sessions(self, sessions: dict[str, Projection]) -> None:
        if not sessions:
            return
        open_ones = self._find("uncounted_sessions", sessions)
        for session_id in open_ones:
            # Episodes of a session have no row of theirs to be replaced by: a session is projected once.
            self._count(sessions[session_id])
        self._connection.execute(SQL["mark_sessions"], (self._scenario_no, _json(open_ones)))
        self._counted_sessions = len(open_ones)

    def _project_graphs(self, graphs: dict[int, Projection]) -> None:
        if not graphs:
            return
        found = self._connection.execute(SQL["unprojected_graphs"], (_json(list(graphs)),)).fetchone()[0]
        positions = msgspec.json.decode(found)
        for position in positions:
            self._take(-position, graphs[position])
        self._connection.execute(SQL["mark_graphs"], (_json(positions),))

    def _take(self, origin: int, projection: Projection) -> None:
        self._origins.append(origin)
        self._episodes += (_episode_row(self._scenario_no, origin, episode) for episode in projection.episodes)
        self._count(projection)

    def _count(self, projection: Projection) -> None:
        for bucket, counts in projection.counts.items():
            for key, value in counts.items():
                names = _json(key.names)
                place = (bucket.day, int(bucket.holdout), key.source, key.measure, names, bucket.producer)
                self._counts[self._scenario_no, *place] += value

    def _find(self, statement: str, wanted: Iterable[str]) -> list[Any]:
        parameters = (self._scenario_no, _json(list(wanted)))
        found: list[Any] = msgspec.json.decode(self._connection.execute(SQL[statement], parameters).fetchone()[0])
        return found


def _episode_row(scenario_no: int, origin: int, episode: Episode) -> tuple[Any, ...]:
    return (
        episode.episode_id,
        scenario_no,
        origin,
        episode.learn_model,
        str(episode.outcome.__struct_config__.tag),
        score_of(episode.outcome),
        episode.ended_at_ms,
        int(episode.holdout),
        episode.task_id,
        episode.session_id,
        episode.group_id,
        episode.worker_id,
        _json(episode),
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _scenario_of(item: Pending) -> str:
    return item.task.scenario if isinstance(item, PendingTask) else item.scenario
