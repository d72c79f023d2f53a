"""Reading what was projected: episodes, sessions, graphs, counts, and the facts of a scenario."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from worker.episodes.episode import Episode
from worker.learning.counts import CountKey, Counts, Source
from worker.store.port import EpisodeFilter, PendingGraph, RollingOutcomes, ScenarioFacts, Session
from worker.store.record_rows import LEARN_STATS
from worker.store.sql import load_statements
from worker.store.sqlite.check_sums import Row
from worker.store.sqlite.damage import Found
from worker.store.sqlite.ingest import PLACE_BITS
from worker.store.sqlite.log import SQL as LOG_SQL
from worker.store.sqlite.pending import checked, pending_graph
from worker.store.sqlite.role import Role
from worker.wire.records import INT64_MAX

SQL = load_statements(Path(__file__).parent / "sql" / "learnt.sql")

#: Episodes read at a time.
PAGE = 1_000
#: Greater than any id: ids are text without it.
_LAST_ID = "\U0010ffff"

_decode_episode = msgspec.json.Decoder(Episode).decode
#: Typed, so that the names come as tuples: 52 ms for 27,000 counts where untyped took 88.
_decode_counts = msgspec.json.Decoder(list[tuple[Source, str, tuple[str, ...], int]]).decode


class Learnt(Role):
    """The reading half of `worker.store.port.Projections`, and `Facts` but for the trigger state."""

    async def episodes(self, scenario: str, where: EpisodeFilter) -> AsyncIterator[Episode]:
        """Episodes by the time they ended, then by id."""
        statement = "page_of_episodes_backwards" if where.newest_first else "page_of_episodes"
        parameters = _parameters(where)
        parameters |= (
            {"after_ms": INT64_MAX, "after_id": _LAST_ID}
            if where.newest_first
            else {"after_ms": -INT64_MAX, "after_id": ""}
        )
        left, offset = where.limit, where.offset
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = parameters | {"limit": size, "offset": offset}
            rows = await self._database.read(_of_scenario(scenario, SQL[statement], page))
            for *_, body in rows:
                yield _decode_episode(body)
            if len(rows) < size:
                return
            parameters |= {"after_ms": rows[-1][0], "after_id": rows[-1][1]}
            offset = 0
            left = None if left is None else left - size

    async def count_episodes(self, scenario: str, where: EpisodeFilter) -> int:
        """How many episodes `episodes` would give, but for `limit` and `offset`."""
        rows = await self._database.read(_of_scenario(scenario, SQL["count_episodes"], _parameters(where)))
        return int(rows[0][0]) if rows else 0

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
        """Ended sessions, newest first by their own time, so that the order they came in does not matter."""
        parameters = {
            "limit": -1 if latest is None else latest,
            "since_ms": -INT64_MAX if since_ms is None else since_ms,
            "until_ms": INT64_MAX if until_ms is None else until_ms,
            "group_id": group_id,
            "phase": phase,
            "session_id": session_id,
            "most_of_one": most_of_one,
        }
        statement = "ended_sessions" if most_of_one is None else "ended_sessions_of_many"
        if session_id is not None:
            statement = "ended_session"
        rows = await self._database.read(_of_scenario(scenario, SQL[statement], parameters))
        sessions = []
        damaged: list[Found] = []
        for position, received_at_ms, *columns in rows:
            record: Any = checked(scenario, Row(position, LEARN_STATS, None, None, *columns), damaged)
            if record is None:
                continue
            sessions.append(
                Session(
                    scenario=scenario,
                    batch_no=position >> PLACE_BITS,
                    received_at_ms=received_at_ms,
                    record=record,
                )
            )
        await self._note_damage(damaged)
        return sessions

    async def graphs(self, scenario: str, *, latest: int) -> list[PendingGraph]:
        """The newest dependency-graph records."""

        def read(connection: sqlite3.Connection) -> list[Any]:
            found = connection.execute(LOG_SQL["scenario_no"], (scenario,)).fetchone()
            return [] if found is None else connection.execute(SQL["newest_graphs"], (found[0], latest)).fetchall()

        damaged: list[Found] = []
        graphs = [pending_graph((scenario, *row), damaged) for row in await self._database.read(read)]
        await self._note_damage(damaged)
        return [graph for graph in graphs if graph is not None]

    async def counts(
        self, scenario: str | None, *, holdout: bool | None = None, since_day: int | None = None
    ) -> Counts:
        """The aggregates, summed over days."""
        parameters = {"scenario": scenario, "holdout": holdout, "since_day": since_day}
        # Made in the reader's thread: of a scenario with a thousand action names it takes 50 ms, and ingest is waiting.
        return await self._database.read(lambda db: _counts(db.execute(SQL["counts"], parameters).fetchone()[0]))

    async def scenarios(self) -> list[str]:
        """Every scenario that anything was stored for, by name."""
        rows = await self._database.read(lambda db: db.execute(SQL["scenario_names"]).fetchall())
        return [name for (name,) in rows]

    async def facts(self, scenario: str) -> ScenarioFacts:
        """One row."""
        row = await self._database.read(lambda db: db.execute(SQL["facts"], (scenario,)).fetchone())
        return ScenarioFacts(scenario=scenario) if row is None else _facts(row)

    async def rolling_outcomes(self, scenario: str, *, learn_model: str, sample: int) -> RollingOutcomes | None:
        """The newest `sample` episodes whose outcome is known; None where there is none."""

        def read(connection: sqlite3.Connection) -> Any:
            found = connection.execute(LOG_SQL["scenario_no"], (scenario,)).fetchone()
            if found is None:
                return (0, None, None)
            return connection.execute(SQL["rolling_outcomes"], (found[0], learn_model, sample)).fetchone()

        count, success_rate, avg_score = await self._database.read(read)
        return RollingOutcomes(count, success_rate, avg_score) if count else None


def _counts(found: str) -> Counts:
    return Counter({CountKey(source, measure, names): value for source, measure, names, value in _decode_counts(found)})


def _facts(row: tuple[Any, ...]) -> ScenarioFacts:
    # The statement names the columns in the order of the struct's fields.
    named: dict[str, Any] = dict(zip(ScenarioFacts.__struct_fields__, row, strict=True))
    named["episodes_by_model"] = msgspec.json.decode(named["episodes_by_model"])
    return ScenarioFacts(**named)


def _parameters(where: EpisodeFilter) -> dict[str, Any]:
    return {
        "learn_model": where.learn_model,
        "outcome": where.outcome,
        "min_score": where.min_score,
        "group_id": where.group_id,
        "session_id": where.session_id,
        "task_id": where.task_id,
        "worker_id": where.worker_id,
        "holdout": where.holdout,
        "since_ms": -INT64_MAX if where.since_ms is None else where.since_ms,
        "until_ms": INT64_MAX if where.until_ms is None else where.until_ms,
    }


def _of_scenario(
    scenario: str, statement: str, parameters: dict[str, Any]
) -> Callable[[sqlite3.Connection], list[Any]]:
    """A read of named parameters and the scenario's number; nothing where the scenario is unknown."""

    def read(connection: sqlite3.Connection) -> list[Any]:
        found = connection.execute(LOG_SQL["scenario_no"], (scenario,)).fetchone()
        return [] if found is None else connection.execute(statement, parameters | {"scenario_no": found[0]}).fetchall()

    return read
