"""Counts: integer statistics that add and subtract, so that any order and any revision gives the same figures.

A count is keyed by what it measures and by the actions it is about. Sums of real numbers are kept in millionths, since
integers form a group and floats do not: what a late record takes back is exactly what was added.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple, TypeAlias

from worker.episodes.task import UNNAMED

#: Who counted: the worker from the action log, or the swarm itself in its learn stats.
Source: TypeAlias = Literal["log", "stats"]

#: Sums of real numbers (KPI, cost) are stored times this, rounded.
MICRO = 1_000_000


class CountKey(NamedTuple):
    """What one number counts."""

    source: Source
    measure: str  # "action.visits", "transition.success", "ngram.failure", ...
    names: tuple[str, ...]  # the actions, strategies or nothing it is about


Counts: TypeAlias = Counter[CountKey]

#: One count as it travels into the training process: source, measure, names, number.
CountRow: TypeAlias = tuple[Source, str, tuple[str, ...], int]


class CountBucket(NamedTuple):
    """Where a count belongs: retention drops days, the gate reads what was held out, producers are weighed."""

    day: int  # days since 1970-01-01 UTC
    holdout: bool
    producer: str = UNNAMED


#: What one projection adds (or, negated, takes back).
BucketedCounts: TypeAlias = dict[CountBucket, Counts]
