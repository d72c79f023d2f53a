"""The records that episodes were cut from, read from the store some tasks at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from worker.episodes.episode import Episode
from worker.episodes.model import EpisodeContext, Graph, LearnModel
from worker.episodes.rules import Rules
from worker.episodes.task import PlacedAction
from worker.store.port import DamageFound, Projections, RecordLog, StoredRecord
from worker.wire.records import ActionRecord, DependencyGraphRecord

#: Episodes whose tasks are read at once. Until the next read the event loop is held, while examples are made of them:
#: for 5 ms or so.
AHEAD = 100
#: Actions at which such a read ends.
_ACTIONS_AT_ONCE = 1_000


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
        self._tasks: dict[str, list[PlacedAction]] = {}  # of the last read
        self._graphs: dict[str, StoredRecord] | None = None

    async def of(self, episode: Episode, ahead: Sequence[Episode] = ()) -> Lived:
        """The episode's own records: its actions, or its graph.

        `ahead` are those that are asked for next, or some of them: their tasks are read with this one's. A read by
        itself for each of 20,000 took 7.5 s of processor time, most of it on the way from thread to thread.
        """
        graph = (await self._all_graphs()).get(episode.episode_id)
        if graph is not None:
            return Lived(episode, EpisodeContext([graph.record]), frozenset({graph.producer}), damaged=False)
        if episode.task_id is None:
            return Lived(episode, EpisodeContext(), frozenset(), damaged=False)
        if episode.task_id not in self._tasks:
            wanted = dict.fromkeys(one.task_id for one in (episode, *ahead) if one.task_id is not None)
            self._tasks = await self._store.actions_of_tasks(self._scenario, [*wanted], most=_ACTIONS_AT_ONCE)
        # Only its own: of a long task each episode would hold all records, and preferences are made of many in hand.
        own = [placed for placed in self._tasks[episode.task_id] if _is_of(episode, placed.record)]
        return Lived(
            episode,
            EpisodeContext(placed.record for placed in own),
            frozenset(placed.producer for placed in own),
            damaged=self._damaged(episode.task_id),
        )

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


def _is_of(episode: Episode, record: ActionRecord) -> bool:
    if episode.worker_id not in (None, record.worker_id):
        return False
    first, last = episode.start_tick, episode.end_tick
    return (first is None or first <= record.tick) and (last is None or record.tick <= last)
