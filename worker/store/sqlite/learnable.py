"""The aggregates as a training takes them: bounded, weighted by producer, handed over a chunk at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from worker.learning.bounds import CHUNK, FAMILIES, LEFT_OUT, SOURCES, Family, Take, weighted
from worker.learning.counts import CountRow, Source
from worker.learning.shares import WHOLE, ProducerTotals
from worker.learning.totals import MEASURES, totals_of
from worker.store.sql import load_statements
from worker.store.sqlite.log import SQL as LOG_SQL
from worker.store.sqlite.role import Role

SQL = load_statements(Path(__file__).parent / "sql" / "learnable.sql")


class Learnable(Role):
    """The part of `worker.store.port.Projections` that a training reads."""

    async def producers(self, scenario: str) -> dict[str, ProducerTotals]:
        """By sums over the aggregates, never over the log."""

        def read(connection: sqlite3.Connection) -> list[Any]:
            place = _place(connection, scenario)
            given = place | {"sources": _json(SOURCES), "measures": _json(MEASURES)}
            return connection.execute(SQL["totals_of_producers"], given).fetchall() if place else []

        return totals_of(await self._database.read(read))

    async def learnable_counts(
        self,
        scenario: str,
        take: Take,
        *,
        holdout: bool,
        weights: Mapping[str, int],
        families: Sequence[Family] = FAMILIES,
    ) -> None:
        """One read transaction, in a reader's thread: all of it is as of its beginning."""

        def read(connection: sqlite3.Connection) -> None:
            place = _place(connection, scenario)
            if place:
                given = place | {"holdout": int(holdout), "weights": _json(weights), "whole": WHOLE}
                for source in SOURCES:
                    for family in families:
                        _hand_over(_rows(connection, family, given | {"source": source}), source, take)

        await self._database.read(read)


def _place(connection: sqlite3.Connection, scenario: str) -> dict[str, Any]:
    """Which part of the aggregates is the scenario's; nothing where it is unknown."""
    found = connection.execute(LOG_SQL["scenario_no"], (scenario,)).fetchone()
    if found is None:
        return {}
    return {"scenario_no": found[0], "days": connection.execute(SQL["days_of_counts"], found).fetchone()[0]}


def _rows(connection: sqlite3.Connection, family: Family, given: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Measure, names, number."""
    kept: list[str] = []
    left_out = 0
    if family.most is not None:
        ranked = given | {"ranked_by": _json(family.ranked_by), "most": family.most}
        kept = [names for (names,) in connection.execute(SQL["best_supported"], ranked)]
        if len(kept) == family.most:
            left_out = connection.execute(SQL["number_of_names"], ranked).fetchone()[0] - len(kept)
    found = connection.execute(SQL["counts_of_family"], given | {"family": family.name, "kept": _json(kept)})
    for (measure, names), parts in groupby(found, key=itemgetter(0, 1)):
        yield measure, names, weighted(sum(weight * number for *_, weight, number in parts))
    yield f"{family.name}.{LEFT_OUT}", "[]", left_out


def _hand_over(rows: Iterable[tuple[Any, ...]], source: Source, take: Take) -> None:
    chunk: list[CountRow] = []
    for measure, names, number in rows:
        if number:
            chunk.append((source, measure, tuple(msgspec.json.decode(names)), number))
        if len(chunk) == CHUNK:
            take(chunk)
            chunk = []
    if chunk:
        take(chunk)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
