"""How many names of each family of counts one training takes, so that its memory depends on this and not on history.

The best supported are taken each by itself; the rest of a family is summed under no names, so that totals and rates
over all stay true. How many were summed stands beside it as `<family>.left_out`. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import TypeAlias

from msgspec import Struct, json

from worker.learning.counts import CountBucket, CountKey, CountRow, Counts, Source
from worker.learning.shares import WHOLE

#: Takes rows, a chunk at a time.
Take: TypeAlias = Callable[[list[CountRow]], None]

#: The measure under which it is said how many names were summed.
LEFT_OUT = "left_out"
#: Rows that are handed over at once.
CHUNK = 1_000


class Family(Struct, frozen=True):
    """Measures `<name>.*` of which at most `most` names are taken, those with the largest sum of `ranked_by`."""

    name: str
    most: int | None  # None: it has no names
    ranked_by: tuple[str, ...] = ()


#: A model holds 500 actions and 2,000 transitions; this is about 60,000 rows at most, and as many held out. With a
#: store of 100,000 action names (799,000 rows) the worker had 476 MB in use, and has 140 now; the training process 62.
FAMILIES: tuple[Family, ...] = (
    Family("action", 1_000, ("action.visits",)),
    Family("contextual", 5_000, ("contextual.visits",)),
    Family("start", 1_000, ("start.visits",)),
    Family("transition", 5_000, ("transition.visits",)),
    Family("ngram", 10_000, ("ngram.failure", "ngram.success")),
    Family("strategy", 100, ("strategy.episodes_failure", "strategy.episodes_success", "strategy.visits")),
    Family("episodes", None),
    Family("sessions", None),
)
SOURCES: tuple[Source, ...] = ("log", "stats")


def weighted(number: int) -> int:
    """A sum of numbers times weights as a number again, rounded half up."""
    return (number + WHOLE // 2) // WHOLE


def bounded_rows(
    buckets: Iterable[tuple[CountBucket, Counts]],
    take: Take,
    *,
    weights: Mapping[str, int],
    families: Sequence[Family] = FAMILIES,
) -> None:
    """What a store must hand over of these counts: see `worker.store.port.Projections.learnable_counts`."""
    sums: dict[CountKey, int] = {}
    for bucket, counts in buckets:
        weight = weights.get(bucket.producer, WHOLE)
        for key, number in counts.items():
            sums[key] = sums.get(key, 0) + number * weight
    rows: list[CountRow] = []
    for source in SOURCES:
        for family in families:
            rows += _rows_of({key: n for key, n in sums.items() if key.source == source}, source, family)
    for start in range(0, len(rows), CHUNK):
        take(rows[start : start + CHUNK])


def _rows_of(sums: dict[CountKey, int], source: Source, family: Family) -> list[CountRow]:
    mine = {key: n for key, n in sums.items() if key.measure.startswith(f"{family.name}.")}
    support: dict[tuple[str, ...], int] = {}
    for key, number in mine.items():
        if key.measure in family.ranked_by and number:
            support[key.names] = support.get(key.names, 0) + number
    kept = set(nsmallest(family.most or 0, support, key=lambda names: (-support[names], json.encode(names))))
    merged: dict[tuple[str, tuple[str, ...]], int] = {}
    for key, number in mine.items():
        place = (key.measure, key.names if key.names in kept else ())
        merged[place] = merged.get(place, 0) + number
    rows: list[CountRow] = [
        (source, measure, names, weighted(number)) for (measure, names), number in sorted(merged.items())
    ]
    if len(support) > len(kept):
        rows.append((source, f"{family.name}.{LEFT_OUT}", (), len(support) - len(kept)))
    return [row for row in rows if row[-1]]
