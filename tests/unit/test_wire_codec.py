"""Records messages: identity, hash, both spellings, unknown fields, explicit nulls, verbatim statistics."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from typing import Any

import msgspec
import pytest

from worker.wire.careful import _RECORDS, NULL_PARTIAL_SCORE
from worker.wire.codec import decode_batch, encode_batch, record_from_json, record_to_json
from worker.wire.records import (
    ActionRecord,
    Batch,
    BatchIdentity,
    Failure,
    LearnStatsRecord,
    Success,
    Timeout,
    Unknown,
    score_of,
)

ACTION: dict[str, Any] = {"type": "action", "task_id": "t", "tick": 1, "worker_id": 2, "action": "look"}
STATS: dict[str, Any] = {
    "type": "learn_stats", "session_id": "s", "stats_json": {}, "outcome": {"kind": "unknown"},
    "total_ticks": 1, "total_actions": 2,
}  # fmt: skip


def decode(*records: Any, **envelope: Any) -> Batch:
    """The batch of a message with these records."""
    return decode_text(json.dumps({"schema_version": 1, "records": records, **envelope}).encode())


def decode_text(text: bytes) -> Batch:
    """The batch of this message, which is good."""
    batch = decode_batch(text, scenario="S")
    assert isinstance(batch, Batch), batch
    return batch


def test_a_counter_is_the_identity_of_a_batch() -> None:
    """Producer, epoch (0 where not sent) and sequence; a batch id beside them does not matter."""
    batch = decode(ACTION, producer_id="node-7", batch_seq=41, batch_id="b")
    assert batch.identity == BatchIdentity("node-7", 0, 41, None)
    assert decode(ACTION, producer_id="node-7", batch_seq=0, producer_epoch=3).identity == BatchIdentity(
        "node-7", 3, 0, None
    )


@pytest.mark.parametrize("rest", [{}, {"producer_id": "node-7"}, {"batch_seq": 1}])
def test_without_a_whole_counter_the_batch_id_is_the_identity(rest: dict[str, Any]) -> None:
    """A producer without a counter names its batches itself."""
    assert decode(ACTION, batch_id="b-1", **rest).identity == BatchIdentity(None, 0, None, "b-1")


def test_without_any_name_the_content_is_the_identity() -> None:
    """The SHA-256 of the body, so that a redelivery is still a duplicate."""
    text = json.dumps({"schema_version": 1, "records": [ACTION]}).encode()
    assert decode_text(text).identity == BatchIdentity(None, 0, None, f"sha256:{hashlib.sha256(text).hexdigest()}")


def test_the_content_hash_is_of_the_body_after_decompression() -> None:
    """So a retry that compresses is the same batch."""
    text = encode_batch([ActionRecord("t", 1, 2, "look")], producer_id="n", producer_epoch=0, batch_seq=1)
    packed = decode_batch(gzip.compress(text), scenario="S", content_encoding="GZip ")
    assert isinstance(packed, Batch)
    assert packed.content_hash == decode_text(text).content_hash == hashlib.sha256(text).digest()


def test_the_same_records_are_the_same_bytes() -> None:
    """A retry of the client must not become a key conflict."""
    records = [ActionRecord("t", 1, 2, "look", kpi=1.0)]
    bodies = {encode_batch(records, producer_id="n", producer_epoch=0, batch_seq=1) for _ in range(3)}
    record = b'{"type":"action","task_id":"t","tick":1,"worker_id":2,"action":"look","kpi":1.0}'
    head = b'{"schema_version":1,"producer_id":"n","producer_epoch":0,"batch_seq":1,"records":['
    assert bodies == {head + record + b"]}"}


@pytest.mark.parametrize(
    ("spelling", "outcome"),
    [
        ({"kind": "success", "score": 1}, Success(1)),
        ({"Success": {"score": 0.5}}, Success(0.5)),
        ({"kind": "failure", "reason": "lost"}, Failure("lost")),
        ({"Failure": {"reason": "lost"}}, Failure("lost")),
        ({"kind": "timeout", "partial_score": 0.25}, Timeout(0.25)),
        ({"kind": "timeout"}, Timeout(None)),
        ({"Timeout": {"partial_score": None}}, Timeout(None)),
        ({"kind": "unknown"}, Unknown()),
        ("Unknown", Unknown()),
    ],
)
def test_an_outcome_is_read_in_both_spellings(spelling: Any, outcome: Any) -> None:
    """Ours, and the external tag of a Rust swarm's serde."""
    record = decode(STATS | {"outcome": spelling}).records[0]
    assert isinstance(record, LearnStatsRecord)
    assert record.outcome == outcome


def test_an_outcome_as_a_number() -> None:
    """A timeout counts what was reached, failure and unknown count nothing."""
    outcomes = (Success(1), Timeout(0.5), Timeout(None), Failure("x"), Unknown())
    assert [score_of(outcome) for outcome in outcomes] == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_unknown_fields_are_counted_in_envelope_records_and_outcome() -> None:
    """Once each, not what is inside them."""
    batch = decode(
        ACTION | {"x": {"y": 1}},
        {"Action": {k: v for k, v in ACTION.items() if k != "type"} | {"type": "?"}, "trace": 1},
        STATS | {"outcome": {"kind": "unknown", "x": 1}, "stats_json": {"not": "counted"}},
        STATS | {"outcome": {"Success": {"score": 1, "x": 1, "y": 2}, "z": 3}},
        x=1,
    )
    assert batch.unknown_fields == 1 + 1 + 2 + 1 + 3


def test_explicit_nulls_are_noted_per_record() -> None:
    """A bit for each field in the order of its type; None where there were none at all."""
    fields = ActionRecord.__struct_fields__
    batch = decode(ACTION, ACTION | {"kpi": None, "event_id": None, "x": None})
    assert batch.nulls == [0, 1 << fields.index("kpi") | 1 << fields.index("event_id")]
    assert decode(ACTION | {"target": "null"}).nulls is None
    assert record_to_json(batch.records[1], batch.nulls[1]) == (
        b'{"type":"action","task_id":"t","tick":1,"worker_id":2,"action":"look","event_id":null,"kpi":null}'
    )


def test_a_null_partial_score_is_noted_too() -> None:
    """It is a field of the outcome, so it has the bit after those of the record."""
    outcome = {"kind": "timeout", "partial_score": None}
    batch = decode(STATS | {"outcome": outcome})
    assert batch.nulls == [NULL_PARTIAL_SCORE]
    assert json.loads(record_to_json(batch.records[0], NULL_PARTIAL_SCORE))["outcome"] == outcome
    assert json.loads(record_to_json(batch.records[0]))["outcome"] == {"kind": "timeout"}


@pytest.mark.parametrize("spelling", ["{head}}}", '{head}, "x": 1}}', '{head}, "phase": null}}'])
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('"{ \\"x\\":  1.0 }"', '"{ \\"x\\":  1.0 }"'),
        ('{\n  "x": 1e2, "y": [1, 1.0],\n "x": "a b" }', '{"x":1e2,"y":[1,1.0],"x":"a b"}'),
    ],
)
def test_statistics_are_kept_as_sent_but_for_white_space(spelling: str, sent: str, kept: str) -> None:
    """Numbers keep their spelling; an export is one line a record, so an object loses its line breaks."""
    fields = '"session_id": "s", "outcome": {"kind": "unknown"}, "total_ticks": 1, "total_actions": 2'
    record = spelling.format(head=f'{{"type": "learn_stats", "stats_json": {sent}, {fields}')
    batch = decode_text(f'{{"schema_version": 1, "records": [{record}]}}'.encode())
    assert kept.encode() in record_to_json(batch.records[0])


def test_serde_statistics_are_kept_as_sent() -> None:
    """Also inside the external tag."""
    fields = '"session_id": "s", "stats_json": {"x": 1e2}, "outcome": "Unknown", "total_ticks": 1, "total_actions": 2'
    batch = decode_text(f'{{"schema_version": 1, "records": [{{"LearnStats": {{{fields}}}}}]}}'.encode())
    assert b'"stats_json":{"x":1e2}' in record_to_json(batch.records[0])


@pytest.mark.parametrize("extra", [{}, {"x": 1}])
def test_a_session_does_not_hold_on_to_its_message(extra: dict[str, Any]) -> None:
    """Statistics are copied: a thousand small sessions must not keep a thousand large bodies alive."""
    tracemalloc.start()
    large = [ACTION | {"output": "x" * 60_000}] * 30
    stats_json = decode(STATS | extra, *large).records[0].stats_json  # type: ignore[union-attr]  # it is a session
    del large
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert bytes(stats_json) == b"{}"
    assert held < 200_000


def test_of_a_key_that_comes_twice_the_last_value_counts() -> None:
    """As every parser in use does, and the same on both roads."""
    doubled = (
        '{"type": "llm", "task_id": "a", "task_id": "b", "tick": 1, "worker_id": 2, "action": "look", "type": "action"}'
    )
    record = decode_text(f'{{"schema_version": 1, "records": [], "records": [{doubled}]}}'.encode()).records[0]
    assert record == ActionRecord("b", 1, 2, "look")


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"type": "action"}', b'{"Dance": {}}', b'{"type": "action", "tick": "\\u0000"}']
)
def test_a_line_that_is_no_record_is_a_value_error(line: bytes) -> None:
    """It names the place at fault."""
    with pytest.raises(ValueError, match=r"^\$"):
        record_from_json(line)


def test_a_foreign_swarm_cannot_fill_the_memory_with_new_field_names() -> None:
    """Plans for the order of fields are remembered for a few hundred orders only."""
    for number in range(1000):
        decode(ACTION | {f"field_{number}": 1})
        decode(ACTION | {f"field_{number}" + "x" * 3000: 1})
    assert len(_RECORDS["action"]._plans) <= 256


def test_records_take_no_unknown_field_themselves() -> None:
    """That is how the fast road notices one."""
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(json.dumps(ACTION | {"x": 1}), type=ActionRecord)
