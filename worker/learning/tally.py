"""Counting closed sequences of actions, and the bounds of what may be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import TypeGuard, TypeVar

from msgspec import Struct

from worker.episodes.cut import Cut
from worker.learning.counts import MICRO, CountKey, Counts
from worker.wire.records import Failure, Outcome, Success, Timeout

#: Lengths of the n-grams that are counted; a rebuild applies a change to what is stored.
NGRAM_SIZES = (3, 4)
#: Longest name that is counted (the wire's limit of an action's name); previous actions and strategies may be longer.
LONGEST_NAME = 256
#: No single value adds more than this in any measure's unit: it takes nine million absurd records to overflow int64.
LARGEST_ADDEND = 10**12


def kind_of(outcome: Outcome) -> str:
    """`success`, `failure`, `timeout` or `unknown`."""
    match outcome:
        case Success():
            return "success"
        case Failure():
            return "failure"
        case Timeout():
            return "timeout"
        case _:
            return "unknown"


def countable(name: str | None) -> TypeGuard[str]:
    """Whether this may name a count."""
    return name is not None and 0 < len(name) <= LONGEST_NAME


def bounded(number: int) -> int:
    """The number, or the nearest that may be added at once."""
    return max(-LARGEST_ADDEND, min(LARGEST_ADDEND, number))


def micro(number: float) -> int:
    """A real number in millionths, kept to what may be added."""
    limit = LARGEST_ADDEND / MICRO
    return round(max(-limit, min(limit, number)) * MICRO)


class _Action(Struct, gc=False):
    """How often an action was taken and went well by itself, with what it reported. Fields are the measures' names."""

    visits: int = 0
    successes: int = 0
    failures: int = 0
    discoveries: int = 0
    duration_ms: int = 0
    kpi_micro: int = 0
    kpi_count: int = 0


class _Strategy(Struct, gc=False):
    visits: int = 0
    successes: int = 0
    failures: int = 0
    episodes_success: int = 0
    episodes_failure: int = 0


class _Contextual(Struct, gc=False):
    visits: int = 0
    successes: int = 0
    failures: int = 0


class _Step(Struct, gc=False):
    """How often something was seen at all, in episodes that succeeded, and in those that failed."""

    visits: int = 0
    success: int = 0
    failure: int = 0


class _Ngram(Struct, gc=False):
    success: int = 0
    failure: int = 0


class _Episodes(Struct, gc=False):
    success: int = 0
    failure: int = 0
    timeout: int = 0
    unknown: int = 0


_Names = TypeVar("_Names", bound=tuple[str, ...])
_Numbers = TypeVar("_Numbers", bound=Struct)


class Tally:
    """The counts of sequences, kept by family while they grow: a key is made once a name, not once an action.

    With `cut` 12 us of CPU an action in sequences of 11, of which half is making the keys (measured, Python 3.11).
    """

    def __init__(self) -> None:
        self._actions: dict[tuple[str], _Action] = {}
        self._contextual: dict[tuple[str, str], _Contextual] = {}
        self._strategies: dict[tuple[str], _Strategy] = {}
        self._starts: dict[tuple[str], _Step] = {}
        self._transitions: dict[tuple[str, str], _Step] = {}
        self._ngrams: dict[tuple[str, ...], _Ngram] = {}
        self._episodes = _Episodes()

    def add(self, sequence: Cut) -> None:
        """Count one closed sequence."""
        self._add_actions(sequence)
        kind = kind_of(sequence.outcome)
        setattr(self._episodes, kind, getattr(self._episodes, kind) + 1)
        names = tuple(step.action for step in sequence.steps)
        steps = [_at(self._transitions, pair, _Step) for pair in pairwise(names)]
        steps.append(_at(self._starts, (names[0],), _Step))
        for step in steps:
            step.visits += 1
        if kind == "unknown":
            return
        ok = kind == "success"
        for step in steps:
            step.success += ok
            step.failure += not ok
        for size in NGRAM_SIZES:
            for start in range(len(names) - size + 1):
                ngram = _at(self._ngrams, names[start : start + size], _Ngram)
                ngram.success += ok
                ngram.failure += not ok
        # The strategy in use at the end takes the credit, as the original's `record_episode_end` gives it.
        strategies = (step.selection_logic for step in reversed(sequence.steps))
        last = next((name for name in strategies if countable(name)), None)
        if last is not None:
            strategy = _at(self._strategies, (last,), _Strategy)
            strategy.episodes_success += ok
            strategy.episodes_failure += not ok

    def counts(self) -> Counts:
        """What was added, under the source `log`."""
        counts: Counts = Counter()
        _write(counts, "action.", self._actions, _Action)
        _write(counts, "contextual.", self._contextual, _Contextual)
        _write(counts, "strategy.", self._strategies, _Strategy)
        _write(counts, "start.", self._starts, _Step)
        _write(counts, "transition.", self._transitions, _Step)
        _write(counts, "ngram.", self._ngrams, _Ngram)
        _write(counts, "episodes.", {(): self._episodes}, _Episodes)
        return counts

    def _add_actions(self, sequence: Cut) -> None:
        """How each action went by itself, whatever became of the episode."""
        previous: str | None = None
        for placed, step in zip(sequence.actions, sequence.steps, strict=True):
            ok = step.ok
            action = _at(self._actions, (step.action,), _Action)
            action.visits += 1
            action.successes += ok
            action.failures += not ok
            action.discoveries += bounded(step.discoveries)
            action.duration_ms += bounded(step.duration_ms)
            if step.kpi is not None:
                action.kpi_micro += micro(step.kpi)
                action.kpi_count += 1
            sent = placed.record.previous_action
            context = sent if countable(sent) else previous
            if context is not None:
                contextual = _at(self._contextual, (context, step.action), _Contextual)
                contextual.visits += 1
                contextual.successes += ok
                contextual.failures += not ok
            if countable(step.selection_logic):
                strategy = _at(self._strategies, (step.selection_logic,), _Strategy)
                strategy.visits += 1
                strategy.successes += ok
                strategy.failures += not ok
            previous = step.action


def _at(table: dict[_Names, _Numbers], names: _Names, kind: type[_Numbers]) -> _Numbers:
    found = table.get(names)
    if found is None:
        found = table[names] = kind()
    return found


def _write(counts: Counts, family: str, table: Mapping[_Names, _Numbers], kind: type[_Numbers]) -> None:
    for field in kind.__struct_fields__:
        measure = family + field
        for names, numbers in table.items():
            number = getattr(numbers, field)
            if number:
                counts[CountKey("log", measure, names)] = number
