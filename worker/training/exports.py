"""Training data out of the store: what the learn models make of their episodes, one example at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence

from msgspec.structs import replace

from worker.episodes.episode import Episode
from worker.episodes.model import EpisodeContext, Excluded, LearnModel
from worker.episodes.rules import Rules
from worker.episodes.training_data import TrainingData, json_line
from worker.learning.bounds import Family
from worker.learning.counts import CountKey, CountRow, Counts
from worker.learning.evidence import actions_seen
from worker.store.port import EpisodeFilter, Projections
from worker.training.episode_records import AHEAD, EpisodeRecords, EpisodesAndRecords

_MOST_ACTIONS = 100
#: Why an episode of a damaged task gives no example.
DAMAGED = "a record of its task is damaged"


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
        records = EpisodeRecords(self._store, self._scenario, model, self._rules)
        pairs: list[tuple[Episode, EpisodeContext]] = []
        # A model with a batch of its own looks at several episodes at once, as preferences do: it needs all in hand.
        whole = type(model).convert_batch is not LearnModel.convert_batch
        async for several in _portions(self._store.episodes(self._scenario, replace(where, learn_model=model.name))):
            for at, episode in enumerate(several):
                lived = await records.of(episode, several[at + 1 :])
                if lived.damaged:
                    self.excluded.append(Excluded(episode.episode_id, DAMAGED))
                else:
                    pairs.append((episode, lived.context))
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


async def _portions(episodes: AsyncIterator[Episode]) -> AsyncIterator[list[Episode]]:
    several: list[Episode] = []
    async for episode in episodes:
        several.append(episode)
        if len(several) == AHEAD:
            yield several
            several = []
    yield several
