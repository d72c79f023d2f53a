"""Training data out of the store: what the learn models make of their episodes, one example at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec.structs import replace

from worker.episodes.episode import Episode
from worker.episodes.model import EpisodeContext, Excluded, Graph, LearnModel
from worker.episodes.rules import Rules
from worker.episodes.training_data import TrainingData, json_line
from worker.learning.bounds import Family
from worker.learning.counts import CountKey, CountRow, Counts
from worker.learning.evidence import actions_seen
from worker.store.port import DamageFound, EpisodeFilter, Projections, RecordLog
from worker.wire.records import DependencyGraphRecord

_MOST_ACTIONS = 100


class EpisodesAndRecords(RecordLog, Projections, DamageFound, Protocol):
    """The roles of the store that an export reads."""


async def actions_taken(store: Projections, scenario: str) -> list[str]:
    """The scenario's most frequent actions, by name: what examples offer where its settings name none."""
    counts: Counts = Counter()

    def take(rows: list[CountRow]) -> None:
        for source, measure, names, number in rows:
            counts[CountKey(source, measure, names)] += number

    frequent = (Family("action", _MOST_ACTIONS, ("action.visits",)),)
    for held_out in (False, True):
        await store.learnable_counts(scenario, take, holdout=held_out, weights={}, families=frequent)
    return actions_seen(counts, _MOST_ACTIONS)


class TrainingDataExport:
    """One pass over a scenario. Afterwards `excluded` says which episodes gave nothing, and why."""

    def __init__(
        self, store: EpisodesAndRecords, scenario: str, *, models: Sequence[LearnModel], rules: Rules
    ) -> None:  # fmt: skip
        self._store = store
        self._scenario = scenario
        self._models = models
        self._rules = rules
        self._task: tuple[str, EpisodeContext] | None = None
        self.excluded: list[Excluded] = []
        self.examples = 0

    async def lines(self, where: EpisodeFilter | None = None) -> AsyncIterator[bytes]:
        r"""SFT or DPO lines, each ending in `\n`, by learn model and then in the store's order.

        `where` chooses episodes (its `learn_model` is set by this pass). Repeated examples are left in: how often
        something worked is part of what the data says.
        """
        for model in self._models:
            async for example in self._of_model(model, where or EpisodeFilter()):
                self.examples += 1
                yield json_line(example)

    async def _of_model(self, model: LearnModel, where: EpisodeFilter) -> AsyncIterator[TrainingData]:
        graphs = await self._graphs(model)
        pairs: list[tuple[Episode, EpisodeContext]] = []
        # A model with a batch of its own looks at several episodes at once, as preferences do: it needs all in hand.
        whole = type(model).convert_batch is not LearnModel.convert_batch
        async for episode in self._store.episodes(self._scenario, replace(where, learn_model=model.name)):
            context = await self._context(episode, graphs)
            if self._damaged(episode.task_id):
                self.excluded.append(Excluded(episode.episode_id, "a record of its task is damaged"))
                continue
            pairs.append((episode, context))
            if not whole:
                for example in self._convert(model, pairs):
                    yield example
                pairs.clear()
        for example in self._convert(model, pairs):
            yield example

    def _convert(self, model: LearnModel, pairs: list[tuple[Episode, EpisodeContext]]) -> list[TrainingData]:
        converted = model.convert_batch(pairs)
        self.excluded += converted.excluded
        return converted.examples

    async def _context(self, episode: Episode, graphs: dict[str, DependencyGraphRecord]) -> EpisodeContext:
        if episode.episode_id in graphs:
            return EpisodeContext([graphs[episode.episode_id]])
        if episode.task_id is None:
            return EpisodeContext()
        if self._task is None or self._task[0] != episode.task_id:  # a task's episodes follow one another
            records = self._store.records(self._scenario, type_="action", task_id=episode.task_id)
            self._task = (episode.task_id, EpisodeContext([stored.record async for stored in records]))
        return self._task[1]

    def _damaged(self, task_id: str | None) -> bool:
        damage = self._store.damage
        return task_id is not None and any((row.scenario, row.task_id) == (self._scenario, task_id) for row in damage)

    async def _graphs(self, model: LearnModel) -> dict[str, DependencyGraphRecord]:
        """The record of each graph episode, by the id that the model gives it. Graphs are few: one or so a session."""
        if type(model).build_graph_episodes is LearnModel.build_graph_episodes:
            return {}
        return {
            episode.episode_id: stored.record
            async for stored in self._store.records(self._scenario, type_="dependency_graph")
            if isinstance(stored.record, DependencyGraphRecord)
            for episode in model.build_graph_episodes(
                Graph(self._scenario, stored.record, stored.received_at_ms, self._rules)
            )
        }
