"""Properties of the codec: it never raises, both of its roads agree, and what came in comes out again."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.wire.careful import ReadMessage, read_message
from worker.wire.codec import _read_fast, decode_batch, encode_batch, record_from_json, record_to_json
from worker.wire.reasons import Refusal, Rejection
from worker.wire.records import Batch

INT64 = st.integers(0, 2**63 - 1)
NUMBER = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
# Everything that a string may hold: no NUL, no half of a surrogate pair.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
KEY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
OUTCOME = st.one_of(
    st.fixed_dictionaries({"kind": st.just("success"), "score": NUMBER}),
    st.fixed_dictionaries({"kind": st.just("failure"), "reason": TEXT}),
    st.fixed_dictionaries({"kind": st.just("timeout")}, optional={"partial_score": st.none() | NUMBER}),
    st.just({"kind": "unknown"}),
)
STATS = st.sampled_from([{}, {"contextual_stats": [["a", "b", {"visits": 1}]]}, "{}", '{ "x": [1.0] }'])


def _fields(*, required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A record's fields in the order of its type; what may be left out may be null too."""
    return st.fixed_dictionaries(required, optional={name: st.none() | value for name, value in optional.items()})


IDS = {"session_id": KEY, "record_id": KEY}
CALL = {"prompt": TEXT, "response": TEXT, "model": TEXT, "endpoint": TEXT, "latency_ms": INT64}
RECORDS: dict[str, tuple[str, st.SearchStrategy[dict[str, Any]]]] = {
    "Action": ("action", _fields(
        required={"task_id": KEY, "tick": INT64, "worker_id": INT64, "action": KEY},
        optional={
            "event_id": INT64, "group_id": KEY, "target": TEXT, "success": st.booleans(), "error": TEXT,
            "duration_ms": INT64, "timestamp_ms": INT64, "kpi": NUMBER, "discoveries": INT64, "output": TEXT,
            "cost": NUMBER, "selection_logic": TEXT, "from_guidance": st.booleans(), "previous_action": TEXT,
            "lora": TEXT, "propensity": st.just(1) | st.floats(0, 1, exclude_min=True),
            "candidates": st.lists(TEXT, max_size=3), "policy_version": TEXT, **IDS,
        },
    )),
    "Llm": ("llm", _fields(
        required={"call_type": TEXT, **CALL},
        optional={"lora": TEXT, "timestamp_ms": INT64, "worker_id": INT64, "error": TEXT, "task_id": KEY, **IDS},
    )),
    "DependencyGraph": ("dependency_graph", _fields(
        required={
            **CALL, "available_actions": st.lists(TEXT, max_size=3), "discover_order": st.lists(TEXT, max_size=3),
            "not_discover_order": st.lists(TEXT, max_size=3),
        },
        optional={"timestamp_ms": INT64, "lora": TEXT, "error": TEXT, **IDS},
    )),
    "StrategyAdvice": ("strategy_advice", _fields(
        required={
            "timestamp_ms": INT64, "tick": INT64, "advisor": TEXT, "current_strategy": TEXT, "recommended": TEXT,
            "should_change": st.booleans(), "confidence": NUMBER, "reason": TEXT, "frontier_count": INT64,
            "total_visits": INT64, "failure_rate": NUMBER, "latency_ms": INT64, "success": st.booleans(),
        },
        optional={"error": TEXT, **IDS},
    )),
    "LearnStats": ("learn_stats", _fields(
        required={
            "session_id": KEY, "stats_json": STATS, "outcome": OUTCOME, "total_ticks": INT64, "total_actions": INT64,
        },
        optional={
            "timestamp_ms": INT64, "scenario": st.just("S"), "phase": TEXT, "group_id": KEY,
            "task_ids": st.lists(KEY, max_size=3), "record_id": KEY,
        },
    )),
}  # fmt: skip


def _tagged(tag: str, fields: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return fields.map(lambda given: {"type": tag, **given})


TAGGED = st.one_of(*(_tagged(tag, fields) for tag, fields in RECORDS.values()))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT | st.sampled_from(["a\0b", 2**70, "Unknown", {"Success": {"score": 1}}]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.sampled_from(["kind", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def _canonical(value: object) -> str:
    """JSON text that tells 1 from 1.0 and keeps no order."""
    return json.dumps(value, sort_keys=True)


def _serde_outcome(outcome: dict[str, Any]) -> Any:
    variant = str(outcome["kind"]).capitalize()
    return variant if variant == "Unknown" else {variant: {k: v for k, v in outcome.items() if k != "kind"}}


@given(TAGGED)
def test_what_came_in_comes_out_again(record: dict[str, Any]) -> None:
    """An export equals what was sent: explicit nulls, integers and floats, and the statistics' text."""
    body = json.dumps({"schema_version": 1, "records": [record]}).encode()
    batch = decode_batch(body, scenario="S")
    assert isinstance(batch, Batch), batch
    nulls = batch.nulls[0] if batch.nulls else 0
    line = record_to_json(batch.records[0], nulls)
    assert _canonical(json.loads(line)) == _canonical(record)
    assert next(iter(json.loads(line))) == "type"
    assert b"\n" not in line
    assert record_from_json(line) == (batch.records[0], nulls)


@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_the_serde_spelling_means_the_same(variant: str, data: st.DataObject) -> None:
    """`{"Action": {...}}` is the record that `{"type": "action", ...}` is."""
    tag, strategy = RECORDS[variant]
    fields = data.draw(strategy)
    serde = dict(fields)
    if "outcome" in fields:
        serde["outcome"] = _serde_outcome(fields["outcome"])
    ours = decode_batch(json.dumps({"schema_version": 1, "records": [{"type": tag, **fields}]}).encode(), scenario="S")
    theirs = decode_batch(json.dumps({"schema_version": 1, "records": [{variant: serde}]}).encode(), scenario="S")
    assert isinstance(ours, Batch)
    assert isinstance(theirs, Batch), theirs
    assert (theirs.records, theirs.nulls, theirs.unknown_fields) == (ours.records, ours.nulls, 0)


PIECES = [b'"tick":1,', b'"type":"llm",', b'"records":[],', b"null", rb"\ud800", rb"\u0000", b"[", b"{", b"1e999"]


@st.composite
def _mutants(draw: st.DrawFn) -> bytes:
    """Messages that are good or almost: fields dropped, changed, added or doubled, and bytes touched."""
    records = draw(st.lists(TAGGED, max_size=3))
    for record in records:
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from([*record, "x", "type", "outcome", "stats_json"]))
            if draw(st.booleans()):
                record[name] = draw(ANY_JSON)
            else:
                record.pop(name, None)
    message: dict[str, Any] = {"schema_version": 1, "records": records}
    message |= draw(st.dictionaries(
        st.sampled_from(["producer_id", "producer_epoch", "batch_seq", "batch_id", "x", "schema_version"]),
        ANY_JSON | st.sampled_from(["node-7", 0, 1]), max_size=2,
    ))  # fmt: skip
    text = json.dumps(message, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    body = text.encode("utf-8")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        piece = draw(st.binary(max_size=2) | st.sampled_from(
            PIECES
        ))  # fmt: skip
        body = body[:at] + piece + body[at + draw(st.integers(0, 2)) :]
    return body


def _careful(body: bytes) -> ReadMessage | None:
    try:
        return read_message(body, "S")
    except Refusal:
        return None


#: Keys that come twice: the parser must mean the same in both roads.
_DOUBLED = b'{"schema_version":1,"records":[{"type":"action",@"task_id":"t","tick":1,"worker_id":1,"action":"a"}]}'


@settings(max_examples=800)
@example(_DOUBLED.replace(b"@", b'"type":"llm",'))
@example(_DOUBLED.replace(b"@", b'"tick":"x",'))
@example(_DOUBLED.replace(b'"records"', b'"records":[],"records"').replace(b"@", b""))
@given(_mutants())
def test_the_fast_road_takes_nothing_that_the_careful_one_reads_otherwise(body: bytes) -> None:
    """Where the fast road gives a message, the careful one gives the same, with no null and no unknown field."""
    fast = _read_fast(body, "S")
    careful = _careful(body)
    if fast is not None:
        assert careful is not None
        names = ("producer_id", "producer_epoch", "batch_seq", "batch_id")
        assert [getattr(fast.envelope, n) for n in names] == [getattr(careful.envelope, n) for n in names]
        # Encoded as well: 1 == 1.0 and True == 1 must not hide a difference.
        assert msgspec.json.encode(fast.records) == msgspec.json.encode(careful.records)
        assert fast[1:] == careful[1:]


@settings(max_examples=800)
@given(_mutants() | st.binary(max_size=300) | ANY_JSON.map(lambda v: json.dumps(v).encode()))
def test_nothing_makes_the_decoder_raise(body: bytes) -> None:
    """Whatever comes, the verdict is a value, and a rejection's detail is one short line."""
    for encoding in (None, "gzip"):
        verdict = decode_batch(body, scenario="S", content_encoding=encoding)
        if isinstance(verdict, Rejection):
            assert verdict.detail.isprintable()
        else:
            assert verdict.records


@given(_mutants())
def test_unknown_fields_change_nothing_but_their_count(body: bytes) -> None:
    """A field that nobody knows is ignored wherever it stands, and counted."""
    before = decode_batch(body, scenario="S")
    if not isinstance(before, Batch):
        return
    message = json.loads(body)
    message["from_the_future"] = {"records": [None]}
    added = 1
    for record in message["records"]:
        record["from_the_future"] = [1]
        added += 1
        # Of other records it is a field that nobody knows itself, and what is in it is not looked at.
        if record.get("type") == "learn_stats" and isinstance(record.get("outcome"), dict):
            record["outcome"]["from_the_future"] = "x"
            added += 1
    after = decode_batch(json.dumps(message).encode(), scenario="S")
    assert isinstance(after, Batch), after
    assert (after.records, after.nulls) == (before.records, before.nulls)
    assert after.unknown_fields == before.unknown_fields + added


@given(st.lists(TAGGED, min_size=1, max_size=5))
def test_our_own_messages_need_no_care(records: list[dict[str, Any]]) -> None:
    """What `encode_batch` writes goes down the fast road, and comes back as it was."""
    first = decode_batch(json.dumps({"schema_version": 1, "records": records}).encode(), scenario="S")
    assert isinstance(first, Batch)
    body = encode_batch(first.records, producer_id="node-7", producer_epoch=2, batch_seq=41)
    second = decode_batch(body, scenario="S")
    assert isinstance(second, Batch)
    assert second.records == first.records
    assert second.nulls is None
    assert (second.identity.producer_id, second.identity.producer_epoch, second.identity.batch_seq) == ("node-7", 2, 41)
    if b"null" not in body and b"\\u0000" not in body:
        assert _read_fast(body, "S") is not None
