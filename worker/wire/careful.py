"""The careful road: what a records message means, whoever wrote it, and what is wrong with it.

This is the reference for the fast road in `worker.wire.codec`. It reads untyped, keeps the limits, brings the serde
spelling of a Rust swarm into ours, takes out and counts unknown fields, notes explicit nulls, and only then converts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from worker.wire.jsontext import convert, parse_json
from worker.wire.limits import MAX_RECORDS
from worker.wire.reasons import Reason, Refusal
from worker.wire.records import (
    SCHEMA_VERSION,
    ActionRecord,
    Count,
    DependencyGraphRecord,
    Failure,
    Key,
    LearnStatsRecord,
    LlmCallRecord,
    Record,
    Slug64,
    StrategyAdviceRecord,
    Success,
    Timeout,
    Unknown,
)
from worker.wire.stats import parse_learn_stats


class Envelope(Struct, kw_only=True):
    """Everything of a records message but its records."""

    schema_version: int
    producer_id: Slug64 | None = None
    producer_epoch: Count | None = None
    batch_seq: Count | None = None
    batch_id: Key | None = None


class ReadRecord(NamedTuple):
    """One record as it was found."""

    record: Record
    nulls: int  # see Batch.nulls
    unknown_fields: int


class ReadMessage(NamedTuple):
    """One message as it was found."""

    envelope: Envelope
    records: list[Record]
    nulls: list[int] | None  # see Batch.nulls
    unknown_fields: int


class _Plan(NamedTuple):
    """What to do with objects that have their keys in one certain order; computed once for a producer's habit."""

    keep: tuple[str, ...] | None  # the known fields; None: all are known
    null_bits: tuple[int, ...]  # for each key in order, its bit in Batch.nulls or 0
    unknown_fields: int


class _Kind:
    """A type and its tag, as objects of it are read in one of the two spellings."""

    #: Plans remembered, and how long the keys of one may be: foreign keys must not fill the memory.
    _MAX_PLANS, _MAX_KEYS = 256, 2_000

    def __init__(self, type_: type[Struct], *, tagged: bool) -> None:
        config = type_.__struct_config__
        self.type: Any = type_
        self.tag = str(config.tag)
        self._bits = {name: 1 << bit for bit, name in enumerate(type_.__struct_fields__)}
        if tagged:
            self._bits[str(config.tag_field)] = 0
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def plan(self, given: dict[str, Any]) -> _Plan:
        """How to read this object."""
        shape = tuple(given)
        plan = self._plans.get(shape)
        if plan is None:
            keep = tuple(name for name in shape if name in self._bits)
            bits = tuple(self._bits.get(name, 0) for name in shape)
            plan = _Plan(None if len(keep) == len(shape) else keep, bits, len(shape) - len(keep))
            if len(self._plans) < self._MAX_PLANS and sum(map(len, shape)) < self._MAX_KEYS:
                self._plans[shape] = plan
        return plan


#: By the names a Rust swarm's serde writes for the variants of its `Record` and `LearnStatsOutcome`.
SERDE_RECORDS: dict[str, type[Struct]] = {
    "Action": ActionRecord,
    "Llm": LlmCallRecord,
    "DependencyGraph": DependencyGraphRecord,
    "StrategyAdvice": StrategyAdviceRecord,
    "LearnStats": LearnStatsRecord,
}
SERDE_OUTCOMES: dict[str, type[Struct]] = {
    "Success": Success,
    "Failure": Failure,
    "Timeout": Timeout,
    "Unknown": Unknown,
}


def _tagged(types: dict[str, type[Struct]]) -> dict[str, _Kind]:
    return {kind.tag: kind for kind in (_Kind(type_, tagged=True) for type_ in types.values())}


def _bare(types: dict[str, type[Struct]]) -> dict[str, _Kind]:
    return {name: _Kind(type_, tagged=False) for name, type_ in types.items()}


_RECORDS, _BARE_RECORDS = _tagged(SERDE_RECORDS), _bare(SERDE_RECORDS)
_OUTCOMES, _BARE_OUTCOMES = _tagged(SERDE_OUTCOMES), _bare(SERDE_OUTCOMES)
_ENVELOPE = frozenset(Envelope.__struct_fields__)

#: The bit after those of the fields: a timeout's `partial_score` was sent as an explicit null.
NULL_PARTIAL_SCORE = 1 << len(LearnStatsRecord.__struct_fields__)
#: Arrays and objects around `stats_json` in our spelling: message, records, record.
_AROUND_STATS = 3


class _Texts(Struct):
    records: list[Raw]


_decode_texts = msgspec.json.Decoder(_Texts).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class _RecordTexts:
    """The JSON of each record of a message, cut out at the first demand: only `stats_json` is kept verbatim."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._records: list[Raw] = []

    def of(self, index: int) -> Raw:
        """The JSON of one record."""
        if not self._records:
            self._records = _decode_texts(self._message).records
        return self._records[index]


def read_message(text: bytes, scenario: str) -> ReadMessage:
    """The message in `text`, sent to `scenario`; raises `Refusal`."""
    message = parse_json(text)
    if not isinstance(message, dict):
        raise Refusal(Reason.BAD_SCHEMA, "expected an object")
    version = message.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        raise Refusal(
            Reason.UNKNOWN_VERSION, f"version {version}, this worker reads {SCHEMA_VERSION}", "schema_version"
        )
    fields = {name: value for name, value in message.items() if name in _ENVELOPE}
    envelope = convert(fields, Envelope, Reason.BAD_SCHEMA)

    records, nulls = [], []
    unknown_fields = len(message) - len(fields) - 1  # one of them is `records`
    texts = _RecordTexts(text)
    for index, item in enumerate(_items(message)):
        try:
            record, bits, unknown = read_record(item, partial(texts.of, index))
            if type(record) is LearnStatsRecord:
                settle_session(record, scenario)
        except Refusal as refusal:
            raise refusal.inside("records", index)  # noqa: B904  the same exception, with more steps
        records.append(record)
        nulls.append(bits)
        unknown_fields += unknown
    return ReadMessage(envelope, records, nulls if any(nulls) else None, unknown_fields)


def _items(message: dict[str, Any]) -> list[Any]:
    items = message.get("records")
    if not isinstance(items, list):
        raise Refusal(Reason.BAD_SCHEMA, "expected an array of records", "records")
    if not items:
        raise Refusal(Reason.NO_RECORDS, "there are none", "records")
    if len(items) > MAX_RECORDS:
        raise Refusal(Reason.TOO_MANY_RECORDS, f"{len(items)} records, at most {MAX_RECORDS}", "records")
    return items


def read_record(item: object, text: Callable[[], bytes | Raw]) -> ReadRecord:
    """One record in either spelling; `text` gives its JSON where that is needed. Raises `Refusal`."""
    if not isinstance(item, dict):
        raise Refusal(Reason.BAD_SCHEMA, "expected an object")
    if "type" in item:
        name = item["type"]
        kind = _RECORDS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise Refusal(Reason.BAD_SCHEMA, f"no record type; there are {', '.join(_RECORDS)}", "type")
        return _read(item, kind, text)

    variant, fields = _serde_variant(item, _BARE_RECORDS)
    if variant is None:
        raise Refusal(Reason.BAD_SCHEMA, 'a record needs its type: {"type": "action", ...} or {"Action": {...}}')
    try:
        read = _read(fields, _BARE_RECORDS[variant], lambda: _decode_fields(text())[variant])
    except Refusal as refusal:
        raise refusal.inside(variant)  # noqa: B904  the same exception, with one more step
    return read if len(item) == 1 else read._replace(unknown_fields=read.unknown_fields + len(item) - 1)


def _serde_variant(item: dict[str, Any], variants: dict[str, _Kind]) -> tuple[str | None, dict[str, Any]]:
    """Name and fields of the one variant in `item`: serde's external tag."""
    names = [name for name in item if name in variants]
    if len(names) == 1 and isinstance(item[names[0]], dict):
        return names[0], item[names[0]]
    return None, item


def settle_session(record: LearnStatsRecord, scenario: str) -> None:
    """Check what the type cannot say of learn stats, and make their `stats_json` compact and their own memory.

    Raises `Refusal`.
    """
    if record.scenario is not None and record.scenario != scenario:
        raise Refusal(Reason.SCENARIO_MISMATCH, "names another scenario than it was sent to", "scenario")
    text = bytes(record.stats_json)
    try:
        parse_json(text, enclosing=_AROUND_STATS)
    except Refusal as refusal:
        raise refusal.inside("stats_json")  # noqa: B904  the same exception, with one more step
    try:
        parse_learn_stats(text)
    except Refusal as refusal:
        raise Refusal(Reason.BAD_STATS, f"in it, at {refusal}", "stats_json") from None
    # An export is one line a record, so a pretty-printed object must lose its line breaks.
    record.stats_json = Raw(msgspec.json.format(text, indent=-1))


def _read(given: dict[str, Any], kind: _Kind, text: Callable[[], bytes | Raw]) -> ReadRecord:
    keep, null_bits, unknown_fields = kind.plan(given)
    nulls = sum([bit for bit, value in zip(null_bits, given.values(), strict=True) if value is None])
    fields = given if keep is None else {name: given[name] for name in keep}
    if kind.type is LearnStatsRecord:
        fields = dict(fields)
        if "stats_json" in fields:
            fields["stats_json"] = _decode_fields(text())["stats_json"]
        if "outcome" in fields:
            fields["outcome"], extra, bit = _read_outcome(fields["outcome"])
            unknown_fields += extra
            nulls |= bit
    return ReadRecord(convert(fields, kind.type, Reason.BAD_SCHEMA), nulls, unknown_fields)


def _read_outcome(given: object) -> tuple[object, int, int]:
    """The outcome in our spelling without its unknown fields, how many there were, and `NULL_PARTIAL_SCORE` or 0.

    What is no outcome comes back as it is, for the conversion to say what is wrong with it.
    """
    if isinstance(given, str) and given in _BARE_OUTCOMES:  # "Unknown", the one without fields
        return {"kind": _BARE_OUTCOMES[given].tag}, 0, 0
    if not isinstance(given, dict):
        return given, 0, 0
    fields, extra = given, 0
    if "kind" in given:
        kind = _OUTCOMES.get(given["kind"]) if isinstance(given["kind"], str) else None
    else:
        variant, fields = _serde_variant(given, _BARE_OUTCOMES)
        kind = _BARE_OUTCOMES[variant] if variant is not None else None
        extra = len(given) - 1
    if kind is None:
        return given, 0, 0
    keep, _, unknown_fields = kind.plan(fields)
    outcome = {name: fields[name] for name in fields if keep is None or name in keep} | {"kind": kind.tag}
    explicit_null = kind.type is Timeout and outcome.get("partial_score", 0) is None
    return outcome, extra + unknown_fields, NULL_PARTIAL_SCORE if explicit_null else 0
