"""Which episodes a training takes where there are more than it may: the newest in turns, so that no flood is all.

Producers take turns, each with its own newest; who brings more at a time has fewer. Within a producer its tasks and
their outcomes take turns as well: a thousand failures at one task come after the newest success and the newest failure
at each other one. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct


class Candidate(Struct, frozen=True):
    """What of an episode its turn depends on."""

    episode_id: str
    producer: str
    task: str  # see `worker.training.lora.split.attempted`
    outcome: str
    size: int  # of what there is a limit of


def in_turns(newest_first: Iterable[Candidate]) -> list[Candidate]:
    """All of them in the order of their turns, of one turn the newer first."""
    own_turns: Counter[tuple[str, str, str]] = Counter()
    newest_of: dict[tuple[str, str, int], int] = {}
    within: list[tuple[int, int, int, Candidate]] = []
    for age, one in enumerate(newest_first):
        lane = (one.producer, one.task, one.outcome)
        turn = own_turns[lane]
        own_turns[lane] += 1
        # A success and a failure at one task are a pair: the older comes when the newer does.
        within.append((turn, newest_of.setdefault((one.producer, one.task, turn), age), age, one))
    within.sort(key=lambda item: item[:3])
    producers: Counter[str] = Counter()
    turns: list[tuple[int, int, Candidate]] = []
    for *_, age, one in within:
        producers[one.producer] += one.size
        turns.append((producers[one.producer], age, one))
    turns.sort(key=lambda item: item[:2])
    return [one for *_, one in turns]
