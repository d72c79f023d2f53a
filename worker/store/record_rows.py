"""Records as rows: what stands in the `body` of a stored record, and back.

A body is a JSON array: the bits of the explicit nulls, then the record's values in the order of its type's fields,
`null` for what was not sent. Of an action `task_id` is left out, since the row itself belongs to the task. JSON keeps 1
and 1.0 apart, and an operator can read it and query it (`body ->> 3` is an action's name).

Fields may be added at the end of a type and only there: an older body is shorter, and the rest takes its default.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import astuple

from worker.errors import NotFound
from worker.wire.records import (
    ActionRecord,
    DependencyGraphRecord,
    LearnStatsRecord,
    LlmCallRecord,
    Outcome,
    Record,
    StrategyAdviceRecord,
)

#: The number of each record type in the store; 0 is the frequent one.
KINDS: dict[type[Any], int] = {
    ActionRecord: 0,
    LlmCallRecord: 1,
    DependencyGraphRecord: 2,
    StrategyAdviceRecord: 3,
    LearnStatsRecord: 4,
}
ACTION, LLM, GRAPH, STRATEGY_ADVICE, LEARN_STATS = range(5)
TYPES: tuple[type[Any], ...] = tuple(KINDS)
#: The wire's name of a type to its number.
_KIND_OF_NAME = {str(type_.__struct_config__.tag): kind for type_, kind in KINDS.items()}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_parts = msgspec.json.Decoder(list[Raw]).decode
_decode_outcome = msgspec.json.Decoder(Outcome).decode
_STATS_JSON = LearnStatsRecord.__struct_fields__.index("stats_json") + 1
_OUTCOME = LearnStatsRecord.__struct_fields__.index("outcome") + 1


def kind_named(name: str) -> int:
    """The number of the type that the wire calls `name`; `NotFound` where there is no such type."""
    kind = _KIND_OF_NAME.get(name)
    if kind is None:
        raise NotFound(f"there is no record type {name!r}; the types are {', '.join(_KIND_OF_NAME)}")
    return kind


def type_of(kind: int) -> type[Any]:
    """The record type of this number."""
    return TYPES[kind]


def action_body(record: ActionRecord, nulls: int) -> bytes:
    """The body of an action: the hot path, 0.7 us."""
    return _encode((nulls,) + astuple(record)[1:])  # noqa: RUF005  unpacking goes by way of a list: 0.2 us more


def other_body(record: Record, nulls: int) -> bytes:
    """The body of any record that is no action."""
    return _encode((nulls, *astuple(record)))


def action_from(task_id: str, values: list[Any]) -> ActionRecord:
    """An action from its decoded body."""
    return ActionRecord(task_id, *values[1:])


def record_from(kind: int, task_id: str | None, body: bytes) -> tuple[Record, int]:
    """A stored record and the bits of its explicit nulls."""
    if kind == ACTION:
        values = _decode(body)
        return ActionRecord(task_id, *values[1:]), values[0]  # type: ignore[arg-type]  # an action's row has a task
    if kind == LEARN_STATS:
        # stats_json stays the very text that was sent.
        parts = _decode_parts(body)
        values = [_decode(part) if at != _STATS_JSON else Raw(bytes(part)) for at, part in enumerate(parts)]
        values[_OUTCOME] = _decode_outcome(parts[_OUTCOME])
    else:
        values = _decode(body)
    record: Record = TYPES[kind](*values[1:])
    return record, values[0]


def same_content(one: Record, other: Record) -> bool:
    """Whether two records say the same. An explicit null says what an absent field says, 1 what 1.0 says."""
    return type(one) is type(other) and one == other
