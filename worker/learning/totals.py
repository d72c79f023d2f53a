"""From sums over the aggregates to what each producer brought. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from worker.learning.counts import Source
from worker.learning.shares import ProducerTotals

_OUTCOMES = ("success", "failure", "timeout", "unknown")
_EPISODES = tuple(f"episodes.{kind}" for kind in _OUTCOMES)
_SESSIONS = tuple(f"sessions.{kind}" for kind in _OUTCOMES)
#: Of a log each action is counted; learn stats tell actions after another one only.
_ACTIONS: dict[Source, str] = {"log": "action.visits", "stats": "contextual.visits"}
#: What must be summed.
MEASURES = (*_EPISODES, *_SESSIONS, *_ACTIONS.values())


def totals_of(rows: Iterable[tuple[Any, ...]]) -> dict[str, ProducerTotals]:
    """From `rows` of source, producer, measure, sum. All but sessions is of the log, where it saw any action."""
    sums: dict[tuple[str, str, str], int] = {}
    producers: set[str] = set()
    for source, producer, measure, number in rows:
        place = (source, producer, measure)
        sums[place] = sums.get(place, 0) + number
        producers.add(producer)
    seen = any(place[0] == "log" and place[2] == _ACTIONS["log"] for place in sums)
    best: Source = "log" if seen else "stats"
    totals = {}
    for producer in sorted(producers):
        totals[producer] = ProducerTotals(
            episodes=max(0, sum(sums.get((best, producer, measure), 0) for measure in _EPISODES)),
            actions=max(0, sums.get((best, producer, _ACTIONS[best]), 0)),
            sessions=sum(sums.get(("stats", producer, measure), 0) for measure in _SESSIONS),
        )
    return totals
