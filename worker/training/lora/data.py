"""The training data of an adapter out of the store: what the learn models make of their episodes, as files of rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

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
from worker.training.lora.split import Split, attempted
from worker.training.lora.turns import Candidate, in_turns

#: A scenario's learn models, given the actions that it has seen.
ModelsOf: TypeAlias = Callable[[str, Sequence[str]], Sequence[LearnModel]]

#: Most text of one training, in bytes: it is in hand while the rows are made.
_MOST_TEXT = 64_000_000
#: The newest, so many times `max_episodes`, take turns: to choose of 100,000 takes a second and 90 MB.
_TURNS_AMONG = 5
#: Most actions in hand at once, where a learn model looks at several episodes together as preferences do: about 100 MB.
_MOST_AT_ONCE = 100_000
#: Most of one episode among these: a task that ran on for weeks would leave no room for another. Its example would be
#: longer than models take.
_MOST_OF_ONE = 1_000
_TOO_LONG = f"of more than {_MOST_OF_ONE} actions"
#: Episodes that are converted in the order of their tasks, which is quicker to read than that of their turns.
_IN_A_ROW = 1_000


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
        self._split = Split(scenario, rules.holdout)
        self._gathered = Gathered(self._split)
        self._episodes = 0
        self._excluded: list[Excluded] = []
        self._passed_over: Counter[str] = Counter()
        self._groups: dict[str, str | None] = {}  # of sessions

    async def take(self, model: LearnModel) -> None:
        """The examples of one learn model's newest episodes."""
        # A model with a batch of its own looks at several episodes at once, as preferences do: it needs all in hand,
        # and those that failed too. All others teach what worked.
        together = type(model).convert_batch is not LearnModel.convert_batch
        wanted = EpisodeFilter(learn_model=model.name) if together else _successes(model)
        turns = await self._choose(wanted, together=together)
        newest = await self._read(wanted, turns)
        await self._count_the_others(model, wanted, taken=len(newest))
        # By turns, since there may be more text than fits.
        newest.sort(key=lambda one: (turns[one.episode_id] // _IN_A_ROW, one.task_id or "", one.episode_id))
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
                # By side, so that no pair is of both.
                held[self._split.is_held_out(attempted(episode))].append(lived)
            else:
                self._convert(model, [lived])
        for several in held.values():
            if several:  # in a thread: to pair thousands takes its time, and ingest goes on
                several.sort(key=lambda one: one.episode.episode_id)  # by turns it would be by arrival
                await asyncio.to_thread(self._convert, model, several)

    def write(self, directory: Path, learn_models: list[str]) -> tuple[LoraManifest, str]:
        """Put what was taken into files."""
        return write_data(
            directory,
            self._gathered.sides(self._config.producer_share),
            scenario=self._scenario,
            config=self._config,
            learn_models=learn_models,
            episodes=self._episodes,
            passed_over=dict(sorted(self._passed_over.items())),
            excluded=self._excluded,
        )

    async def _choose(self, wanted: EpisodeFilter, *, together: bool) -> dict[str, int]:
        """The ids of the episodes to take, and when each has its turn."""
        episodes = self._store.episodes(self._scenario, self._newest(wanted))
        candidates = [_candidate(one, len(one.actions) if together else 1) async for one in episodes]
        fitting = [one for one in candidates if one.size <= _MOST_OF_ONE]
        if too_long := len(candidates) - len(fitting):
            self._passed_over[f"{wanted.learn_model}: {_TOO_LONG}"] += too_long
        turns = await asyncio.to_thread(in_turns, fitting)  # half a second, and ingest goes on
        chosen: dict[str, int] = {}
        size = 0
        for one in turns[: self._config.max_episodes]:
            size += one.size
            if together and size > _MOST_AT_ONCE:
                break
            chosen[one.episode_id] = len(chosen)
        return chosen

    async def _read(self, wanted: EpisodeFilter, chosen: Container[str]) -> list[Episode]:
        # A second time, since five times as many whole episodes would be in hand: about 100 MB.
        episodes = self._store.episodes(self._scenario, self._newest(wanted))
        found = [one async for one in episodes if one.episode_id in chosen]
        return [await self._with_its_group(episode) for episode in found]

    def _newest(self, wanted: EpisodeFilter) -> EpisodeFilter:
        most = _TURNS_AMONG * self._config.max_episodes
        return msgspec.structs.replace(wanted, newest_first=True, limit=most)

    async def _with_its_group(self, episode: Episode) -> Episode:
        """A graph's record names no group, but its session may."""
        session_id = episode.session_id
        if episode.task_id is not None or episode.group_id is not None or session_id is None:
            return episode
        if session_id not in self._groups:
            ended = await self._store.sessions(self._scenario, session_id=session_id)
            self._groups[session_id] = ended[0].record.group_id if ended else None
        return msgspec.structs.replace(episode, group_id=self._groups[session_id])

    async def _count_the_others(self, model: LearnModel, wanted: EpisodeFilter, *, taken: int) -> None:
        all_wanted = await self._store.count_episodes(self._scenario, wanted)
        of_model = await self._store.count_episodes(self._scenario, EpisodeFilter(learn_model=model.name))
        too_long = self._passed_over[f"{model.name}: {_TOO_LONG}"]
        left = {
            f"beyond the newest {taken}, by turns of producers and tasks": all_wanted - taken - too_long,
            "no success": of_model - all_wanted,
        }
        for reason, number in left.items():
            if number > 0:
                self._passed_over[f"{model.name}: {reason}"] += number
        self._episodes += max(of_model, taken)

    def _convert(self, model: LearnModel, several: list[Lived]) -> None:
        try:
            converted = model.convert_batch([(lived.episode, lived.context) for lived in several])
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything; it loses these episodes only
            reason = f"the learn model failed: {type(error).__name__}: {error}"
            self._excluded += [Excluded(lived.episode.episode_id, reason) for lived in several]
            return
        by_id = {lived.episode.episode_id: lived for lived in several}
        silent = by_id.keys() - {one.episode_id for one in converted.excluded}
        for example in converted.examples:  # one that names no episode counts as the first one's
            lived = by_id.get(example.metadata.episode_id or "", several[0])
            rejected = by_id.get(example.metadata.rejected_episode_id or "", lived)
            told = _told(model, lived, rejected, example)
            silent -= told.episodes
            self._gathered.add(told)
        self._excluded += converted.excluded
        self._excluded += [Excluded(name, "the learn model made nothing of it") for name in silent]


def _successes(model: LearnModel) -> EpisodeFilter:
    return EpisodeFilter(learn_model=model.name, outcome="success")


def _candidate(episode: Episode, size: int) -> Candidate:
    outcome = str(episode.outcome.__struct_config__.tag)
    return Candidate(episode.episode_id, episode.producer, attempted(episode), outcome, size)


def _told(model: LearnModel, lived: Lived, rejected: Lived, example: TrainingData) -> Told:
    episode = lived.episode
    told = Told(
        data=example,
        learn_model=model.name,
        episode_id=episode.episode_id,
        actions=episode.actions if example.chosen == ARROW.join(episode.actions) else [],
        producers=lived.producers,
        task=attempted(episode),
    )
    if example.rejected is None:
        return told
    return msgspec.structs.replace(
        told,
        rejected_episode_id=rejected.episode.episode_id,
        rejected_producers=rejected.producers,
        rejected_task=attempted(rejected.episode),
    )
