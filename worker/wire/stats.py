"""`LearnStats`: the statistics a swarm gathered in one session, as they travel in `stats_json` (the original's).

Every part may be absent or null and unknown fields are ignored, since the original's serde text is not known to the
letter. What is there must be right: half-read statistics would teach something nobody measured.

Maps keyed by several actions are written as rows, `[["move", "look", 3], ...]`: the keys, then the value. Read are
also rows whose keys are an array of their own (serde's `Vec<((A, B), V)>`) and objects whose keys are joined by NUL,
`->`, `→`, `|` or `,`. Of a key that comes twice the last value counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec import Raw, Struct, field

from worker.wire.jsontext import convert, parse_json
from worker.wire.reasons import Reason, Refusal
from worker.wire.records import Count, Number

Pair: TypeAlias = tuple[str, str]
Triple: TypeAlias = tuple[str, str, str]
Quad: TypeAlias = tuple[str, str, str, str]
Tally: TypeAlias = tuple[Count, Count]  # how often with success, how often with failure

#: In the order they are tried: an action's name may well hold a comma, hardly an arrow, never NUL.
_SEPARATORS = ("\0", "->", "→", "|", ",")
_Part = TypeVar("_Part", bound=Struct)


class EpisodeTransitions(Struct, kw_only=True):
    """How often one action followed another, in episodes that succeeded and in episodes that failed."""

    success_transitions: dict[Pair, int] = {}
    failure_transitions: dict[Pair, int] = {}
    success_episodes: Count = 0
    failure_episodes: Count = 0


class NgramStats(Struct, kw_only=True):
    """Sequences of three and four actions, with (successes, failures) of the episodes they were in."""

    trigrams: dict[Triple, Tally] = {}
    quadgrams: dict[Quad, Tally] = {}


class StrategyStats(Struct, kw_only=True, frozen=True):
    """What came of the actions and episodes under one selection strategy."""

    visits: Count = 0
    successes: Count = 0
    failures: Count = 0
    episodes_success: Count = 0
    episodes_failure: Count = 0


class StrategySwitch(Struct, kw_only=True, frozen=True):
    """One change of strategy (`StrategySwitchEvent` in the original): from none at the first."""

    to: str
    from_: str | None = field(default=None, name="from")
    visits: Count = 0
    success_rate: Number = 0.0


class SelectionPerformance(Struct, kw_only=True):
    """How the selection strategies did, and when they were switched."""

    strategy_stats: dict[str, StrategyStats] = {}
    switch_history: list[StrategySwitch] = []
    current_strategy: str | None = None
    strategy_start_visits: Count = 0
    strategy_start_success_rate: Number = 0.0


class ContextualActionStats(Struct, kw_only=True, frozen=True):
    """What came of an action right after another."""

    visits: Count = 0
    successes: Count = 0
    failures: Count = 0


class LearnStats(Struct, kw_only=True):
    """All statistics of one session. `contextual_stats` is keyed (previous action, action)."""

    episode_transitions: EpisodeTransitions = field(default_factory=EpisodeTransitions)
    ngram_stats: NgramStats = field(default_factory=NgramStats)
    selection_performance: SelectionPerformance = field(default_factory=SelectionPerformance)
    contextual_stats: dict[Pair, ContextualActionStats] = {}


#: The tuple-keyed maps of each part: how many actions make a key, and what a value is.
_TABLES: dict[type[Struct], dict[str, tuple[int, Any]]] = {
    EpisodeTransitions: {"success_transitions": (2, Count), "failure_transitions": (2, Count)},
    NgramStats: {"trigrams": (3, Tally), "quadgrams": (4, Tally)},
    LearnStats: {"contextual_stats": (2, ContextualActionStats)},
}
_PARTS: dict[str, type[Struct]] = {
    "episode_transitions": EpisodeTransitions,
    "ngram_stats": NgramStats,
    "selection_performance": SelectionPerformance,
}


def parse_learn_stats(stats_json: Raw | bytes | str) -> LearnStats:
    """The statistics in `stats_json`: raw JSON (an object, or a string that holds one), or already that string.

    Raises `ValueError` that names the place at fault, such as `$.ngram_stats.trigrams[4]: ...`.
    """
    text = stats_json.encode() if isinstance(stats_json, str) else bytes(stats_json)
    value = parse_json(text, nul_in_keys=True)
    if isinstance(value, str) and not isinstance(stats_json, str):
        value = parse_json(value.encode(), nul_in_keys=True)
    fields = _fields(value)
    stats = LearnStats()
    for name, kind in _PARTS.items():
        if name in fields:
            try:
                setattr(stats, name, _part(_fields(fields[name]), kind))
            except Refusal as refusal:
                raise refusal.inside(name)  # noqa: B904  the same exception, with one more step
    for name in stats.selection_performance.strategy_stats:
        _check_name(name, "selection_performance", "strategy_stats")
    stats.contextual_stats = _part({k: v for k, v in fields.items() if k not in _PARTS}, LearnStats).contextual_stats
    return stats


def encode_learn_stats(stats: LearnStats) -> bytes:
    """The JSON text of `stats`, tuple-keyed maps as rows."""
    return msgspec.json.encode(_tree(stats))


def _tree(part: Struct) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    tables = _TABLES.get(type(part), {})
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if name in tables:
            value = [[*names, count] for names, count in value.items()]
        elif name in _PARTS:
            value = _tree(value)
        tree[name] = value
    return tree


def _fields(value: object) -> dict[str, Any]:
    """The fields that say something: a Rust swarm writes null for what it does not have."""
    if not isinstance(value, dict):
        raise Refusal(Reason.BAD_STATS, "expected an object of statistics")
    return {name: item for name, item in value.items() if item is not None}


def _part(fields: dict[str, Any], kind: type[_Part]) -> _Part:
    tables = {}
    for name, (width, value_kind) in _TABLES.get(kind, {}).items():
        if name in fields:
            try:
                tables[name] = dict(_rows(fields.pop(name), width, value_kind))
            except Refusal as refusal:
                raise refusal.inside(name)  # noqa: B904  the same exception, with one more step
    part = convert(fields, kind, Reason.BAD_STATS)
    for name, table in tables.items():
        setattr(part, name, table)
    return part


def _rows(table: object, width: int, kind: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys and values of one tuple-keyed map, whichever way it is written."""
    if isinstance(table, dict):
        for key, value in table.items():
            yield _split(key, width), _value(value, kind, key)
    elif isinstance(table, list):
        for index, row in enumerate(table):
            if not isinstance(row, list) or not row:
                raise Refusal(Reason.BAD_STATS, "expected a row", index)
            if isinstance(row[0], list):  # serde's Vec<((A, B), V)>
                row = [*row[0], *row[1:]]  # noqa: PLW2901  the same row, written flat
            names, rest = row[:width], row[width:]
            if len(names) < width or not rest or not all(isinstance(name, str) for name in names):
                raise Refusal(Reason.BAD_STATS, f"expected a row of {width} actions and a value", index)
            for name in names:
                _check_name(name, index)
            yield tuple(names), _value(rest[0] if len(rest) == 1 else rest, kind, index)
    else:
        raise Refusal(Reason.BAD_STATS, "expected rows or an object")


def _value(value: object, kind: Any, step: str | int) -> Any:
    try:
        return convert(value, kind, Reason.BAD_STATS)
    except Refusal as refusal:
        raise refusal.inside(step)  # noqa: B904  the same exception, with one more step


def _split(key: str, width: int) -> tuple[str, ...]:
    for separator in _SEPARATORS:
        names = key.split(separator)
        if len(names) == width and all(names):
            for name in names:
                _check_name(name, key)
            return tuple(names)
    raise Refusal(Reason.BAD_STATS, f"this key does not name {width} actions", key)


def _check_name(name: str, *steps: str | int) -> None:
    if not name or "\0" in name:
        raise Refusal(Reason.BAD_STATS, "a name is empty or holds the character NUL", *steps)
