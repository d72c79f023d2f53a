"""From what learn models say to the rows of a training: a text once a side, no task on both, no producer too loud.

Pure, and free of the order in which records came: rows stand in the order of a hash of their text.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from worker.episodes.training_data import TrainingData
from worker.learning.shares import WHOLE, ProducerTotals, producer_weights
from worker.training.lora.inputs import EPISODES_NAMED, LoraExample
from worker.training.lora.split import Split


class Told(Struct, frozen=True):
    """One example as a learn model made it."""

    data: TrainingData
    learn_model: str
    episode_id: str  # of a pair the chosen one's
    actions: list[str]  # see LoraExample
    producers: frozenset[str]  # who sent its records
    task: str  # what it is an attempt at: see `worker.training.lora.split`
    #: Of a pair the rejected one's.
    rejected_episode_id: str | None = None
    rejected_producers: frozenset[str] = frozenset()
    rejected_task: str | None = None

    @property
    def tasks(self) -> set[str]:
        """Of a pair both; they are one but to a learn model of somebody's own."""
        return {self.task} if self.rejected_task is None else {self.task, self.rejected_task}

    @property
    def episodes(self) -> set[str]:
        """Of a pair both."""
        return {self.episode_id} if self.rejected_episode_id is None else {self.episode_id, self.rejected_episode_id}


class Side(Struct, frozen=True):
    """The rows of one file, what they were made of, and what was left out."""

    rows: list[LoraExample]
    episodes: list[str]  # all
    tasks: int
    capped: dict[str, int]  # rows left out, by producer
    capped_episodes: list[str]  # that no other row is made of


class _Row(Struct):
    example: LoraExample
    told: list[Told]
    tellers: tuple[set[str], set[str]]  # the producers of the wanted answer, and of the unwanted one


class Gathered:
    """Takes examples one by one; then the two sides of them."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._told: dict[bytes, list[Told]] = {}  # by text
        self.text_bytes = 0  # of each text once, in UTF-8, system prompts too: each row has its own in the file

    def add(self, told: Told) -> None:
        """Take one in."""
        data = told.data
        texts = (data.system, data.prompt, data.chosen, data.rejected)
        same = self._told.setdefault(_digest(*texts), [])
        if same:
            told = replace(told, data=same[0].data)  # in memory once
        else:
            self.text_bytes += sum(len(text.encode()) for text in texts if text is not None)
        same.append(told)

    def sides(self, producer_share: float) -> tuple[Side, Side]:
        """What is trained on, and what is held out."""
        out = self._held_out()
        train = _side(self._rows(out, held_out=False), producer_share)
        # Whatever the answer: two attempts at one task begin alike, and the next action is what is judged.
        asked = {_digest(row.system, row.prompt) for row in train.rows}
        held_out = _side(self._rows(out, held_out=True), producer_share)
        marked = [replace(row, seen=True) if _digest(row.system, row.prompt) in asked else row for row in held_out.rows]
        return train, replace(held_out, rows=marked)

    def _held_out(self) -> set[str]:
        """The tasks that are held out. A pair is of tasks of one side."""
        told = [each for same in self._told.values() for each in same]
        tasks = {each.task for each in told}
        out = {task for task in tasks if self._split.is_held_out(task)}
        if not out and len(tasks) > 1:
            # Not one that a pair ties to another task: that would be trained on.
            tied = {task for each in told if len(each.tasks) > 1 for task in each.tasks}
            out = self._split.one_of_few(tasks - tied)
        return out

    def _rows(self, out: AbstractSet[str], *, held_out: bool) -> dict[bytes, _Row]:
        sides = {key: [each for each in same if (each.task in out) is held_out] for key, same in self._told.items()}
        return {key: _row(told) for key, told in sides.items() if told}


def _row(told: list[Told]) -> _Row:
    data = told[0].data
    # Whoever came first must make no difference.
    first = min(told, key=lambda each: (each.learn_model, each.actions))
    return _Row(
        LoraExample(
            prompt=data.prompt,
            chosen=data.chosen,
            system=data.system,
            rejected=data.rejected,
            learn_model=first.learn_model,
            actions=first.actions,
            episodes=sorted(each.episode_id for each in told)[:EPISODES_NAMED],
            times=len(told),
        ),
        told,
        (
            {producer for each in told for producer in each.producers},
            {producer for each in told for producer in each.rejected_producers},
        ),
    )


def _side(rows: Mapping[bytes, _Row], producer_share: float) -> Side:
    capped = _above_the_share(rows, producer_share)
    left_out = {key for keys in capped.values() for key in keys}
    kept = [told for key in rows.keys() - left_out for told in rows[key].told]
    episodes = {episode for told in kept for episode in told.episodes}
    above = {episode for key in left_out for told in rows[key].told for episode in told.episodes}
    return Side(
        rows=[rows[key].example for key in sorted(rows.keys() - left_out)],
        episodes=sorted(episodes),
        tasks=len({told.task for told in kept}),
        capped={producer: len(keys) for producer, keys in sorted(capped.items())},
        capped_episodes=sorted(above - episodes),
    )


def _above_the_share(rows: Mapping[bytes, _Row], share: float) -> dict[str, list[bytes]]:
    """Rows to leave out, by producer: only such as it alone told, for what others say too is not its doing.

    Of a pair either answer alone: whoever tells all unwanted answers decides what is unlearnt.
    """
    left = dict(rows)
    among = len({producer for row in rows.values() for tellers in row.tellers for producer in tellers})
    above: dict[str, list[bytes]] = defaultdict(list)
    before = -1
    while len(left) != before:  # with fewer rows a producer may be above its share of the other answers
        before = len(left)
        for side in (0, 1):
            told = Counter(producer for row in left.values() for producer in row.tellers[side])
            totals = {name: ProducerTotals(episodes=number) for name, number in told.items()}
            for producer, weight in producer_weights(totals, share, among=among).items():
                most = told[producer] * weight // WHOLE
                alone = sorted(key for key, row in left.items() if row.tellers[side] == {producer})
                for key in alone[: told[producer] - most]:
                    above[producer].append(key)
                    del left[key]
    return above


def _digest(*texts: str | None) -> bytes:
    return hashlib.sha256(msgspec.json.encode(texts)).digest()
