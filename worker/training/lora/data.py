"""The training data of an adapter out of the store: what the learn models make of their episodes, as files of rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from worker.episodes.cut import holdout, holdout_key
from worker.episodes.episode import Episode
from worker.episodes.model import Excluded, LearnModel
from worker.episodes.rules import Rules
from worker.episodes.training_data import TrainingData
from worker.episodes.worker_task import ARROW
from worker.store.port import EpisodeFilter
from worker.training.episode_records import AHEAD, EpisodeRecords, EpisodesAndRecords, Lived
from worker.training.exports import DAMAGED, actions_taken
from worker.training.lora.examples import Gathered, Told
from worker.training.lora.inputs import LoraConfig
from worker.training.lora.manifest import LoraManifest, write_data

#: A scenario's learn models, given the actions that it has seen.
ModelsOf: TypeAlias = Callable[[str, Sequence[str]], Sequence[LearnModel]]

#: Most text of one training, in bytes: it is in hand while the rows are made.
_MOST_TEXT = 64_000_000
#: Most actions in hand at once, where a learn model looks at several episodes together as preferences do: about 100 MB.
_MOST_AT_ONCE = 100_000


async def write_training_data(
    store: EpisodesAndRecords,
    scenario: str,
    directory: Path,
    *,
    config: LoraConfig,
    models_of: ModelsOf,
    rules: Rules,
) -> tuple[LoraManifest, str]:
    """Put both files of rows and their manifest into a directory that is there; the manifest and its SHA-256.

    `models_of` gives the scenario's learn models, once it is told the actions that the scenario has seen. Raises
    `StoreError` and OSError.
    """
    seen = await actions_taken(store, scenario)
    models = [model for model in models_of(scenario, seen) if model.training_format.value == config.objective]
    gathering = _Gathering(store, scenario, config, rules)
    for model in models:
        await gathering.take(model)
    # In a thread, hashes and all: for tens of thousands of rows it takes most of a second, and ingest goes on.
    return await asyncio.to_thread(gathering.write, directory, [model.name for model in models])


class _Gathering:
    """One pass over a scenario, learn model by learn model."""

    def __init__(self, store: EpisodesAndRecords, scenario: str, config: LoraConfig, rules: Rules) -> None:
        self._store = store
        self._scenario = scenario
        self._config = config
        self._rules = rules
        self._gathered = Gathered()
        self._excluded: list[Excluded] = []
        self._passed_over: Counter[str] = Counter()

    async def take(self, model: LearnModel) -> None:
        """The examples of one learn model's newest episodes."""
        # A model with a batch of its own looks at several episodes at once, as preferences do: it needs all in hand,
        # and those that failed too. All others teach what worked.
        together = type(model).convert_batch is not LearnModel.convert_batch
        wanted = EpisodeFilter(learn_model=model.name) if together else _successes(model)
        newest: list[Episode] = []
        actions = 0
        async for episode in self._store.episodes(
            self._scenario, msgspec.structs.replace(wanted, newest_first=True, limit=self._config.max_episodes)
        ):
            actions += len(episode.actions)
            if together and newest and actions > _MOST_AT_ONCE:
                break
            newest.append(episode)
        await self._count_the_others(model, wanted, taken=len(newest))
        newest.sort(key=lambda episode: (episode.task_id or "", episode.episode_id))
        records = EpisodeRecords(self._store, self._scenario, model, self._rules)
        held: dict[bool, list[Lived]] = {False: [], True: []}
        for at, episode in enumerate(newest):
            if self._gathered.text_bytes > _MOST_TEXT:
                self._passed_over[f"beyond {_MOST_TEXT // 1_000_000} MB of text"] += 1
                continue
            lived = await records.of(episode, newest[at + 1 : at + AHEAD])
            if lived.damaged:
                self._excluded.append(Excluded(episode.episode_id, DAMAGED))
            elif together:
                held[self._is_held_out(episode, together=True)].append(lived)
            else:
                self._convert(model, [lived], held_out=self._is_held_out(episode, together=False))
        for held_out, several in held.items():
            if several:  # in a thread: to pair thousands takes its time, and ingest goes on
                await asyncio.to_thread(self._convert, model, several, held_out=held_out)

    def write(self, directory: Path, learn_models: list[str]) -> tuple[LoraManifest, str]:
        """Put what was taken into files."""
        return write_data(
            directory,
            self._gathered.sides(self._config.producer_share),
            scenario=self._scenario,
            config=self._config,
            learn_models=learn_models,
            passed_over=dict(sorted(self._passed_over.items())),
            excluded=self._excluded,
        )

    async def _count_the_others(self, model: LearnModel, wanted: EpisodeFilter, *, taken: int) -> None:
        all_wanted = await self._store.count_episodes(self._scenario, wanted)
        if all_wanted > taken:
            self._passed_over[f"{model.name}: older than the newest {taken}"] += all_wanted - taken
        of_model = await self._store.count_episodes(self._scenario, EpisodeFilter(learn_model=model.name))
        if of_model > all_wanted:
            self._passed_over[f"{model.name}: no success"] += of_model - all_wanted

    def _is_held_out(self, episode: Episode, *, together: bool) -> bool:
        """By session or task, as everywhere; episodes that are compared with one another by their group.

        The attempts of a group have the same prompt. By session they would lie on both sides, and their pairs as well.
        """
        if together and episode.group_id is not None:
            return holdout(holdout_key(self._scenario, episode.group_id), self._rules.holdout)
        return episode.holdout

    def _convert(self, model: LearnModel, several: list[Lived], *, held_out: bool) -> None:
        try:
            converted = model.convert_batch([(lived.episode, lived.context) for lived in several])
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything; it loses these episodes only
            reason = f"the learn model failed: {type(error).__name__}: {error}"
            self._excluded += [Excluded(lived.episode.episode_id, reason) for lived in several]
            return
        self._excluded += converted.excluded
        by_id = {lived.episode.episode_id: lived for lived in several}
        for example in converted.examples:  # one that names no episode counts as the first one's
            lived = by_id.get(example.metadata.episode_id or "", several[0])
            rejected = by_id.get(example.metadata.rejected_episode_id or "", lived)
            self._gathered.add(_told(model, lived, rejected, example, held_out=held_out))


def _successes(model: LearnModel) -> EpisodeFilter:
    return EpisodeFilter(learn_model=model.name, outcome="success")


def _told(model: LearnModel, lived: Lived, rejected: Lived, example: TrainingData, *, held_out: bool) -> Told:
    episode = lived.episode
    told = Told(
        data=example,
        learn_model=model.name,
        episode_id=episode.episode_id,
        actions=episode.actions if example.chosen == ARROW.join(episode.actions) else [],
        producers=lived.producers,
        held_out=held_out,
    )
    if example.rejected is None:
        return told
    return msgspec.structs.replace(
        told, rejected_episode_id=rejected.episode.episode_id, rejected_producers=rejected.producers
    )
