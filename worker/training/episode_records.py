"""The records that episodes were cut from, read from the store a task at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from worker.episodes.episode import Episode
from worker.episodes.model import EpisodeContext, Graph, LearnModel
from worker.episodes.rules import Rules
from worker.store.port import DamageFound, Projections, RecordLog, StoredRecord
from worker.wire.records import ActionRecord, DependencyGraphRecord


class EpisodesAndRecords(RecordLog, Projections, DamageFound, Protocol):
    """The roles of the store that training data is read from."""


class Lived(Struct, frozen=True):
    """An episode with its records."""

    episode: Episode
    context: EpisodeContext
    producers: frozenset[str]  # who sent these records
    damaged: bool  # a record of its task is damaged, so the context may be poorer than it was


class EpisodeRecords:
    """Finds the records of a learn model's episodes; a task is read once where its episodes are asked for in a row."""

    def __init__(self, store: EpisodesAndRecords, scenario: str, model: LearnModel, rules: Rules) -> None:
        self._store = store
        self._scenario = scenario
        self._model = model
        self._rules = rules
        self._task: tuple[str, list[StoredRecord]] | None = None
        self._graphs: dict[str, StoredRecord] | None = None

    async def of(self, episode: Episode) -> Lived:
        """The episode's own records: its actions, or its graph."""
        graph = (await self._all_graphs()).get(episode.episode_id)
        if graph is not None:
            return _lived(episode, [graph], damaged=False)
        if episode.task_id is None:
            return _lived(episode, [], damaged=False)
        if self._task is None or self._task[0] != episode.task_id:
            records = self._store.records(self._scenario, type_="action", task_id=episode.task_id)
            self._task = (episode.task_id, [stored async for stored in records])
        # Only its own: of a long task each episode would hold all records, and preferences are made of many in hand.
        own = [stored for stored in self._task[1] if _is_of(episode, stored)]
        return _lived(episode, own, damaged=self._damaged(episode.task_id))

    def _damaged(self, task_id: str) -> bool:
        return any((row.scenario, row.task_id) == (self._scenario, task_id) for row in self._store.damage)

    async def _all_graphs(self) -> dict[str, StoredRecord]:
        """The record of each graph episode, by the id that the model gives it. Graphs are few: one or so a session."""
        if self._graphs is None:
            self._graphs = {}
            if type(self._model).build_graph_episodes is not LearnModel.build_graph_episodes:
                async for stored in self._store.records(self._scenario, type_="dependency_graph"):
                    if isinstance(stored.record, DependencyGraphRecord):
                        graph = Graph(self._scenario, stored.record, stored.received_at_ms, self._rules)
                        for episode in self._model.build_graph_episodes(graph):
                            self._graphs[episode.episode_id] = stored
        return self._graphs


def _lived(episode: Episode, records: Sequence[StoredRecord], *, damaged: bool) -> Lived:
    producers = frozenset(stored.producer for stored in records)
    return Lived(episode, EpisodeContext(stored.record for stored in records), producers, damaged)


def _is_of(episode: Episode, stored: StoredRecord) -> bool:
    record = stored.record
    if not isinstance(record, ActionRecord) or episode.worker_id not in (None, record.worker_id):
        return False
    first, last = episode.start_tick, episode.end_tick
    return (first is None or first <= record.tick) and (last is None or record.tick <= last)
