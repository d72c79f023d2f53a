"""From what the learn models say to the rows of a training: each text once, in two honest sides, no producer too loud.

Pure, and free of the order in which records came: rows stand in the order of a hash of their text.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from worker.episodes.training_data import TrainingData
from worker.learning.shares import WHOLE, ProducerTotals, producer_weights
from worker.training.lora.inputs import EPISODES_NAMED, LoraExample


class Told(Struct, frozen=True):
    """One example as a learn model made it."""

    data: TrainingData
    learn_model: str
    episode_id: str  # of a pair the chosen one's
    actions: list[str]  # see LoraExample
    producers: frozenset[str]  # who sent its records
    held_out: bool
    #: Of a pair the rejected one's.
    rejected_episode_id: str | None = None
    rejected_producers: frozenset[str] = frozenset()


class Side(Struct, frozen=True):
    """The rows of one file, all episodes that they were made of, and how many rows of which producer were left out."""

    rows: list[LoraExample]
    episodes: list[str]
    capped: dict[str, int]


class _Row(Struct):
    example: LoraExample
    episodes: list[str]
    rejected_episodes: set[str]
    tellers: tuple[set[str], set[str]]  # the producers of the wanted answer, and of the unwanted one


class Gathered:
    """Takes examples one by one; then the two sides of them."""

    def __init__(self) -> None:
        self._sides: dict[bool, dict[bytes, _Row]] = {False: {}, True: {}}
        self.text_bytes = 0  # of the rows in UTF-8, system prompts too: each row has its own in the file
        self.repeated = 0  # examples that said what another had said

    def add(self, told: Told) -> None:
        """Take one in."""
        data, rows = told.data, self._sides[told.held_out]
        key = _digest(data.system, data.prompt, data.chosen, data.rejected)
        row = rows.get(key)
        if row is None:
            example = LoraExample(
                prompt=data.prompt,
                chosen=data.chosen,
                system=data.system,
                rejected=data.rejected,
                learn_model=told.learn_model,
                actions=told.actions,
                episodes=[],
            )
            row = rows[key] = _Row(example, [], set(), (set(), set()))
            texts = (data.system, data.prompt, data.chosen, data.rejected)
            self.text_bytes += sum(len(text.encode()) for text in texts if text is not None)
        else:
            self.repeated += 1
            if told.learn_model < row.example.learn_model:  # whoever came first must make no difference
                row.example = replace(row.example, learn_model=told.learn_model, actions=told.actions)
        row.episodes.append(told.episode_id)
        if told.rejected_episode_id is not None:
            row.rejected_episodes.add(told.rejected_episode_id)
        for tellers, producers in zip(row.tellers, (told.producers, told.rejected_producers), strict=True):
            tellers.update(producers)

    def sides(self, producer_share: float) -> tuple[Side, Side]:
        """What is trained on, and what is held out."""
        train = _side(self._sides[False], producer_share)
        # Whatever the answer: two attempts at one task begin alike, and the next action is what is judged.
        asked = {_digest(row.system, row.prompt) for row in train.rows}
        held_out = _side(self._sides[True], producer_share)
        marked = [replace(row, seen=True) if _digest(row.system, row.prompt) in asked else row for row in held_out.rows]
        return train, replace(held_out, rows=marked)


def _side(rows: Mapping[bytes, _Row], producer_share: float) -> Side:
    capped = _above_the_share(rows, producer_share)
    kept = [rows[key] for key in sorted(rows.keys() - {key for keys in capped.values() for key in keys})]
    return Side(
        rows=[
            replace(row.example, episodes=sorted(row.episodes)[:EPISODES_NAMED], times=len(row.episodes))
            for row in kept
        ],
        episodes=sorted({episode for row in kept for episode in (*row.episodes, *row.rejected_episodes)}),
        capped={producer: len(keys) for producer, keys in sorted(capped.items())},
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
