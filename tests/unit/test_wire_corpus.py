"""Every bad message of the corpus ends in a rejection with its stable reason code, and the odd but good ones do not."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from worker.wire.codec import decode_batch
from worker.wire.limits import MAX_BODY, MAX_DEPTH, MAX_RECORDS, MAX_VALUES
from worker.wire.reasons import MAX_DETAIL, Reason, Rejection
from worker.wire.records import MAX_STRING, Batch

ACTION: dict[str, Any] = {"type": "action", "task_id": "t", "tick": 1, "worker_id": 2, "action": "look"}
STATS: dict[str, Any] = {
    "type": "learn_stats", "session_id": "s", "stats_json": "{}", "outcome": {"kind": "unknown"},
    "total_ticks": 1, "total_actions": 2,
}  # fmt: skip


def message(*records: Any, **fields: Any) -> dict[str, Any]:
    """A good message, with `fields` changed."""
    return {"schema_version": 1, "producer_id": "node-7", "batch_seq": 41, "records": list(records)} | fields


def body(*records: Any, **fields: Any) -> bytes:
    """The same as bytes."""
    return json.dumps(message(*records, **fields)).encode()


def action(**fields: Any) -> bytes:
    """A message with one action, with `fields` changed."""
    return body(ACTION | fields)


def raw_action(field: str, literal: str) -> bytes:
    """A message with one action, one of its fields written as this literal."""
    return action(**{field: "@"}).replace(b'"@"', literal.encode())


def stats(**fields: Any) -> bytes:
    """A message with one session, with `fields` changed."""
    return body(STATS | fields)


def without(*names: str) -> bytes:
    """A message whose action lacks these fields."""
    return body({name: value for name, value in ACTION.items() if name not in names})


def nested(depth: int) -> Any:
    """Arrays inside each other."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


GOOD = body(ACTION)
BAD: dict[str, tuple[bytes, Reason]] = {
    "no bytes": (b"", Reason.EMPTY_BODY),
    "spaces only": (b"  \n", Reason.NOT_JSON),
    "too large": (b" " * MAX_BODY + GOOD, Reason.TOO_LARGE),
    "UTF-8 with a byte order mark": (b"\xef\xbb\xbf" + GOOD, Reason.NOT_UTF8),
    "UTF-16 with a byte order mark": (GOOD.decode().encode("utf-16"), Reason.NOT_UTF8),
    "UTF-16 without": (GOOD.decode().encode("utf-16-le"), Reason.NOT_UTF8),
    "UTF-16 big endian": (GOOD.decode().encode("utf-16-be"), Reason.NOT_UTF8),
    "UTF-32": (GOOD.decode().encode("utf-32"), Reason.NOT_UTF8),
    "Latin-1": (GOOD.replace(b"look", "gehört".encode("latin-1")), Reason.NOT_UTF8),
    "overlong NUL": (GOOD.replace(b"look", b"\xc0\x80"), Reason.NOT_UTF8),
    "surrogate as UTF-8": (GOOD.replace(b"look", b"\xed\xa0\x80"), Reason.NOT_UTF8),
    "broken UTF-8 in an unknown key": (GOOD[:-1] + b', "\xff": 1}', Reason.NOT_UTF8),
    "gzip that nobody announced": (gzip.compress(GOOD), Reason.NOT_UTF8),
    "trailing bytes": (GOOD + b"x", Reason.NOT_JSON),
    "two values": (GOOD + GOOD, Reason.NOT_JSON),
    "cut short": (GOOD[:-9], Reason.NOT_JSON),
    "trailing comma": (GOOD[:-1] + b",}", Reason.NOT_JSON),
    "single quotes": (GOOD.replace(b'"', b"'"), Reason.NOT_JSON),
    "a comment": (b"/* */" + GOOD, Reason.NOT_JSON),
    "a bare line break in a string": (GOOD.replace(b"look", b"lo\nok"), Reason.NOT_JSON),
    "a bare NUL in a string": (GOOD.replace(b"look", b"lo\0ok"), Reason.NOT_JSON),
    "a number with a leading zero": (raw_action("tick", "01"), Reason.NOT_JSON),
    "100,000 nested arrays": (b"[" * 100_000, Reason.TOO_DEEP),
    "100,000 nested arrays, closed": (b"[" * 100_000 + b"]" * 100_000, Reason.TOO_DEEP),
    "100,000 nested objects": (b'{"a":' * 100_000, Reason.TOO_DEEP),
    "100,000 nested arrays in an unknown field": (GOOD[:-1] + b', "x": ' + b"[" * 100_000, Reason.TOO_DEEP),
    "one level too deep in an unknown field": (action(x=nested(MAX_DEPTH - 2)), Reason.TOO_DEEP),
    "one level too deep in a known field": (action(candidates=nested(MAX_DEPTH - 2)), Reason.TOO_DEEP),
    "one level too deep in the statistics": (stats(stats_json={"x": nested(MAX_DEPTH - 3)}), Reason.TOO_DEEP),
    "8 MB of empty arrays": (b"[" + b"[]," * 2_700_000 + b"[]]", Reason.TOO_MANY_VALUES),
    "8 MB of zeros in an unknown field": (action(x=[0] * (MAX_VALUES + 1)), Reason.TOO_MANY_VALUES),
    "8 MB of empty candidates": (action(candidates=[""] * (MAX_VALUES + 1)), Reason.TOO_MANY_VALUES),
    "lone high surrogate": (raw_action("target", r'"\ud800"'), Reason.BAD_TEXT),
    "lone low surrogate": (raw_action("target", r'"a\uDC00b"'), Reason.BAD_TEXT),
    "lone surrogate in an unknown key": (GOOD[:-1] + rb', "\ud800": 1}', Reason.BAD_TEXT),
    "NUL in a field": (action(target="a\0b"), Reason.BAD_TEXT),
    "NUL in an id": (action(task_id="\0"), Reason.BAD_TEXT),
    "NUL in an unknown field": (action(x=[{"y": "\0"}]), Reason.BAD_TEXT),
    "NUL in an unknown key": (action(**{"a\0": 1}), Reason.BAD_TEXT),
    "NUL in the envelope": (body(ACTION, batch_id="a\0"), Reason.BAD_TEXT),
    "NUL in a list": (action(candidates=["a", "\0"]), Reason.BAD_TEXT),
    "NUL in the statistics": (stats(stats_json={"x": "\0"}), Reason.BAD_TEXT),
    "a string over the limit": (action(output="x" * (MAX_STRING + 1)), Reason.STRING_TOO_LONG),
    "an unknown string over the limit": (action(x="é" * (MAX_STRING + 1)), Reason.STRING_TOO_LONG),
    "a key over the limit": (action(**{"x" * (MAX_STRING + 1): 1}), Reason.STRING_TOO_LONG),
    "NaN": (action(kpi=float("nan")), Reason.BAD_NUMBER),
    "Infinity": (action(kpi=float("inf")), Reason.BAD_NUMBER),
    "-Infinity in an unknown field": (action(x=float("-inf")), Reason.BAD_NUMBER),
    "1e999": (raw_action("kpi", "1e999"), Reason.BAD_NUMBER),
    "2**63": (action(tick=2**63), Reason.BAD_NUMBER),
    "2**70 as a score": (action(kpi=2**70), Reason.BAD_NUMBER),
    "below int64": (action(kpi=-(2**63) - 1), Reason.BAD_NUMBER),
    "2**70 in an unknown field": (action(x={"y": [2**70]}), Reason.BAD_NUMBER),
    "5,000 digits": (raw_action("tick", "1" * 5000), Reason.BAD_NUMBER),
    "a number as the root": (b"7", Reason.BAD_SCHEMA),
    "a huge number as the root": (b"9" * 30, Reason.BAD_NUMBER),
    "a string as the root": (b'"x"', Reason.BAD_SCHEMA),
    "null as the root": (b"null", Reason.BAD_SCHEMA),
    "an array as the root": (b"[" + GOOD + b"]", Reason.BAD_SCHEMA),
    "an empty object": (b"{}", Reason.BAD_SCHEMA),
    "no version": (json.dumps({"records": [ACTION]}).encode(), Reason.BAD_SCHEMA),
    "version 0": (body(ACTION, schema_version=0), Reason.UNKNOWN_VERSION),
    "version 2 with fields of its own": (b'{"schema_version": 2, "items": "?"}', Reason.UNKNOWN_VERSION),
    "a version as text": (body(ACTION, schema_version="1"), Reason.BAD_SCHEMA),
    "a version as a float": (body(ACTION, schema_version=1.0), Reason.BAD_SCHEMA),
    "a version as a bool": (body(ACTION, schema_version=True), Reason.BAD_SCHEMA),
    "no records field": (b'{"schema_version": 1}', Reason.BAD_SCHEMA),
    "records null": (body(records=None), Reason.BAD_SCHEMA),
    "records an object": (body(records={}), Reason.BAD_SCHEMA),
    "no records": (body(), Reason.NO_RECORDS),
    "10,001 records": (body(*[ACTION] * (MAX_RECORDS + 1)), Reason.TOO_MANY_RECORDS),
    "a record that is null": (body(None), Reason.BAD_SCHEMA),
    "a record that is a list": (body([ACTION]), Reason.BAD_SCHEMA),
    "a record without type": (without("type"), Reason.BAD_SCHEMA),
    "an unknown type": (action(type="dance"), Reason.BAD_SCHEMA),
    "a type that is a number": (action(type=1), Reason.BAD_SCHEMA),
    "a type that is an object": (action(type={}), Reason.BAD_SCHEMA),
    "a serde variant that is not an object": (body({"Action": []}), Reason.BAD_SCHEMA),
    "two serde variants at once": (body({"Action": ACTION, "Llm": {}}), Reason.BAD_SCHEMA),
    "an unknown serde variant": (body({"Dance": {}}), Reason.BAD_SCHEMA),
    "a missing field": (without("tick"), Reason.BAD_SCHEMA),
    "a required field that is null": (action(tick=None), Reason.BAD_SCHEMA),
    "a field of the wrong type": (action(tick="1"), Reason.BAD_SCHEMA),
    "an integer written as a float": (action(tick=1.0), Reason.BAD_SCHEMA),
    "a bool for an integer": (action(tick=True), Reason.BAD_SCHEMA),
    "an integer for a bool": (action(success=1), Reason.BAD_SCHEMA),
    "a negative tick": (action(tick=-1), Reason.BAD_SCHEMA),
    "an empty task": (action(task_id=""), Reason.BAD_SCHEMA),
    "an id over 128 characters": (action(task_id="x" * 129), Reason.BAD_SCHEMA),
    "an action's name over 256 characters": (action(action="x" * 257), Reason.BAD_SCHEMA),
    "propensity 0": (action(propensity=0), Reason.BAD_SCHEMA),
    "propensity above 1": (action(propensity=1.5), Reason.BAD_SCHEMA),
    "candidates of numbers": (action(candidates=[1]), Reason.BAD_SCHEMA),
    "a producer that is no slug": (body(ACTION, producer_id="../x"), Reason.BAD_SCHEMA),
    "a producer with a line break at the end": (body(ACTION, producer_id="node\n"), Reason.BAD_SCHEMA),
    "a producer of 65 characters": (body(ACTION, producer_id="x" * 65), Reason.BAD_SCHEMA),
    "a negative sequence": (body(ACTION, batch_seq=-1), Reason.BAD_SCHEMA),
    "a sequence beyond int64": (body(ACTION, batch_seq=2**63), Reason.BAD_NUMBER),
    "a sequence as text": (body(ACTION, batch_seq="41"), Reason.BAD_SCHEMA),
    "a negative epoch": (body(ACTION, producer_epoch=-1), Reason.BAD_SCHEMA),
    "an empty batch id": (body(ACTION, batch_id=""), Reason.BAD_SCHEMA),
    "a batch id over 128 characters": (body(ACTION, batch_id="x" * 129), Reason.BAD_SCHEMA),
    "an outcome that nobody knows": (stats(outcome={"kind": "draw"}), Reason.BAD_SCHEMA),
    "an outcome that is null": (stats(outcome=None), Reason.BAD_SCHEMA),
    "an outcome without kind": (stats(outcome={}), Reason.BAD_SCHEMA),
    "an outcome of the wrong kind of kind": (stats(outcome={"kind": []}), Reason.BAD_SCHEMA),
    "a success without score": (stats(outcome={"kind": "success"}), Reason.BAD_SCHEMA),
    "a serde success without fields": (stats(outcome="Success"), Reason.BAD_SCHEMA),
    "a serde outcome nobody knows": (stats(outcome="Draw"), Reason.BAD_SCHEMA),
    "statistics that are missing": (
        body({k: v for k, v in STATS.items() if k != "stats_json"}), Reason.BAD_SCHEMA,
    ),
    "statistics that are null": (stats(stats_json=None), Reason.BAD_STATS),
    "statistics that are a number": (stats(stats_json=1), Reason.BAD_STATS),
    "statistics that are a list": (stats(stats_json=[]), Reason.BAD_STATS),
    "statistics that are no JSON": (stats(stats_json="{"), Reason.BAD_STATS),
    "statistics of no text": (stats(stats_json=""), Reason.BAD_STATS),
    "statistics that are text of null": (stats(stats_json="null"), Reason.BAD_STATS),
    "statistics that are text in text": (stats(stats_json='"{}"'), Reason.BAD_STATS),
    "statistics that nest": (stats(stats_json="[" * 1000), Reason.BAD_STATS),
    "statistics with a wrong field": (stats(stats_json={"episode_transitions": 1}), Reason.BAD_STATS),
    "statistics with a fractional count": (
        stats(stats_json={"contextual_stats": [["a", "b", {"visits": 0.5}]]}), Reason.BAD_STATS,
    ),
    "statistics beyond int64, as an object": (stats(stats_json={"x": 2**63}), Reason.BAD_NUMBER),
    "another scenario": (stats(scenario="other"), Reason.SCENARIO_MISMATCH),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_message_is_refused_with_its_reason(case: str) -> None:
    """The reason code is stable, and the detail is short."""
    text, reason = BAD[case]
    verdict = decode_batch(text, scenario="S")
    assert isinstance(verdict, Rejection), verdict
    assert (verdict.reason, len(verdict.detail) <= MAX_DETAIL) == (reason, True)


GOOD_ONES: dict[str, bytes] = {
    "plain": GOOD,
    "with white space": json.dumps(message(ACTION), indent=4).encode() + b"\n",
    "as deep as allowed": action(x=nested(MAX_DEPTH - 3)),
    "a string of exactly the limit": action(output="€" * MAX_STRING),
    "as many records as allowed": body(*[ACTION] * MAX_RECORDS),
    "the largest integers": action(tick=2**63 - 1, kpi=-(2**63)),
    "a tiny float": raw_action("kpi", "1e-400"),
    "a surrogate pair": raw_action("target", r'"\ud83d\ude00"'),
    "control characters": action(target="a\x1b[31m\n\x7f"),
    "text that looks like an escaped NUL": action(target="a\\u0000b"),
    "text that mentions null": action(target="null"),
    "megabytes of commas in strings": body(*[ACTION | {"output": ',"[' * 20_000}] * 80),
    "a string with a hundred thousand quotes": action(output='"' * 60_000, target="\\\\" * 20_000),
    "keys of other languages' objects": action(__proto__={"x": 1}, constructor=1, hasOwnProperty=[]),
    "times from 1970 to 2100": body(ACTION | {"timestamp_ms": 0}, ACTION | {"timestamp_ms": 4_102_444_800_000}),
    "ids of 128 characters": action(task_id="é" * 128),
    "records of several sessions": body(ACTION | {"session_id": "a"}, ACTION | {"session_id": "b"}, STATS),
    "the scenario it was sent to": stats(scenario="S"),
    "a null scenario": stats(scenario=None),
    "nulls in the envelope": body(ACTION, batch_id=None, producer_epoch=None),
    "statistics keyed by NUL": stats(stats_json=json.dumps({"contextual_stats": {"a\0b": {"visits": 1}}})),
}


@pytest.mark.parametrize("case", GOOD_ONES)
def test_an_odd_message_is_taken(case: str) -> None:
    """What merely looks odd loses nobody a record."""
    verdict = decode_batch(GOOD_ONES[case], scenario="S")
    assert isinstance(verdict, Batch), verdict


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/xml",
        "application/json-patch+json",
        "json",
        " ",
        "application/json; charset=utf-16",
        7,
    ],
)
def test_another_content_type_is_refused(content_type: Any) -> None:
    """Only JSON in UTF-8, whatever type the header has."""
    verdict = decode_batch(GOOD, scenario="S", content_type=content_type)
    assert isinstance(verdict, Rejection)
    assert verdict.reason is Reason.BAD_CONTENT_TYPE


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "Application/JSON",
        "application/json; charset=UTF-8",
        'application/json;charset="utf-8"',
    ],
)
def test_json_in_any_spelling_of_its_type_is_taken(content_type: str | None) -> None:
    """Parameters and case do not matter."""
    assert isinstance(decode_batch(GOOD, scenario="S", content_type=content_type), Batch)


@pytest.mark.parametrize("content_encoding", ["deflate", "br", "zstd", "gzip, gzip", "utf-8", 7, b"gzip"])
def test_another_content_encoding_is_refused(content_encoding: Any) -> None:
    """Only identity and gzip."""
    verdict = decode_batch(GOOD, scenario="S", content_encoding=content_encoding)
    assert isinstance(verdict, Rejection)
    assert verdict.reason is Reason.BAD_CONTENT_ENCODING


BAD_GZIP: dict[str, tuple[bytes, Reason]] = {
    "no bytes": (b"", Reason.EMPTY_BODY),
    "nothing inside": (gzip.compress(b""), Reason.EMPTY_BODY),
    "plain JSON": (GOOD, Reason.BAD_COMPRESSION),
    "zlib's own format": (zlib.compress(GOOD), Reason.BAD_COMPRESSION),
    "cut short": (gzip.compress(GOOD)[:-1], Reason.BAD_COMPRESSION),
    "a wrong checksum": (gzip.compress(GOOD)[:-8] + bytes(8), Reason.BAD_COMPRESSION),
    "trailing bytes": (gzip.compress(GOOD) + b"x", Reason.BAD_COMPRESSION),
    "two members": (gzip.compress(GOOD) * 2, Reason.BAD_COMPRESSION),
    "too large inside": (gzip.compress(b" " * MAX_BODY + GOOD), Reason.TOO_LARGE),
    "too large outside": (bytes(MAX_BODY + 1), Reason.TOO_LARGE),
    "too deep inside": (gzip.compress(b"[" * 100_000), Reason.TOO_DEEP),
}


@pytest.mark.parametrize("case", BAD_GZIP)
def test_bad_gzip_is_refused_with_its_reason(case: str) -> None:
    """Damaged, cut short, followed by something, doubled, or too large once unpacked."""
    data, reason = BAD_GZIP[case]
    verdict = decode_batch(data, scenario="S", content_encoding="gzip")
    assert isinstance(verdict, Rejection)
    assert verdict.reason is reason


def test_a_gzip_bomb_costs_no_more_memory_than_the_limit() -> None:
    """A megabyte that unpacks to a gigabyte is refused after 8 MB of it."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    tracemalloc.start()
    verdict = decode_batch(bomb, scenario="S", content_encoding="GZIP")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(verdict, Rejection)
    assert verdict.reason is Reason.TOO_LARGE
    assert peak < 4 * MAX_BODY


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (body(ACTION, ACTION, ACTION, ACTION | {"tick": "x"}), "$.records[3].tick"),
        (body(ACTION, {"Action": {**ACTION, "tick": -1}}), "$.records[1].Action.tick"),
        (body(STATS | {"outcome": {"kind": "success", "score": "x"}}), "$.records[0].outcome.score"),
        (action(x=[0, {"y": 2**70}]), "$.records[0].x[1].y"),
        (body(ACTION, producer_id="?"), "$.producer_id"),
    ],
)
def test_the_detail_names_the_field_at_fault(text: bytes, place: str) -> None:
    """Somebody who reads it knows where to look."""
    verdict = decode_batch(text, scenario="S")
    assert isinstance(verdict, Rejection)
    assert verdict.detail.startswith(place + ":")


@pytest.mark.parametrize("field", ["task_id", "type", "target", "x" * 500, "line\nbreak"])
def test_the_detail_never_carries_what_was_sent(field: str) -> None:
    """Neither values nor unusual keys of a stranger end up in logs."""
    for value in ("secret", 2**70, ["secret"], {"secret\n": 2**70}, "secret\0"):
        verdict = decode_batch(action(**{field: value}), scenario="S")
        if isinstance(verdict, Rejection):
            assert "secret" not in verdict.detail
            assert "\n" not in verdict.detail


def test_every_reason_explains_itself() -> None:
    """Codes are slugs in snake_case, and each has a line for people."""
    for reason in Reason:
        assert reason.value.isidentifier()
        assert reason.value.islower()
        assert reason.explanation
        assert Reason[reason.name] is reason
