"""Records messages: bytes to a `Batch` or a `Rejection`, and back.

Two roads lead to the same batch. The fast one is a strict typed decoder, which takes what this project's own client
writes. Whatever it does not take goes down the careful one (`worker.wire.careful`), which knows the serde spelling,
unknown fields and explicit nulls, and says what is wrong with the rest. A property test shows that they agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from worker.wire.careful import (
    NULL_PARTIAL_SCORE,
    Envelope,
    ReadMessage,
    ReadRecord,
    read_message,
    read_record,
    settle_session,
)
from worker.wire.jsontext import parse_json
from worker.wire.limits import MAX_BODY, MAX_RECORDS, check_value_count, gunzip
from worker.wire.reasons import Reason, Refusal, Rejection
from worker.wire.records import SCHEMA_VERSION, Batch, BatchIdentity, LearnStatsRecord, Record

_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


class _Message(Envelope, kw_only=True, forbid_unknown_fields=True):
    """A message as the fast road takes it: nothing in it that we do not know."""

    records: Annotated[list[Record], Meta(min_length=1, max_length=MAX_RECORDS)]


_decode_message = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.Encoder().encode


def decode_batch(
    body: bytes, *, scenario: str, content_type: str | None = None, content_encoding: str | None = None
) -> Batch | Rejection:
    """The batch in one message for `scenario`, or why it cannot be one. Never raises, whatever the input."""
    try:
        _check_content_type(content_type)
        text = _decompressed(body, content_encoding)
        message = _read_fast(text, scenario) or read_message(text, scenario)
    except Refusal as refusal:
        return refusal.as_rejection()
    content_hash = hashlib.sha256(text).digest()
    return Batch(
        identity=_identify(message.envelope, content_hash),
        content_hash=content_hash,
        records=message.records,
        nulls=message.nulls,
        unknown_fields=message.unknown_fields,
    )


def encode_batch(records: Sequence[Record], *, producer_id: str, producer_epoch: int, batch_seq: int) -> bytes:
    """The body of a records message. The same arguments give the same bytes, so a retry is a duplicate."""
    return _encode(
        {
            "schema_version": SCHEMA_VERSION,
            "producer_id": producer_id,
            "producer_epoch": producer_epoch,
            "batch_seq": batch_seq,
            "records": records,
        }
    )


def record_to_json(record: Record, nulls: int = 0) -> bytes:
    """One record as a line of an export, without the line break: what was sent, in our spelling.

    `type` first, then the fields that were sent in the order of their type, explicit nulls (`nulls`, see `Batch`)
    included, numbers and `stats_json` as sent.
    """
    if not nulls:
        return _encode(record)
    config = record.__struct_config__
    fields: dict[str, Any] = {str(config.tag_field): config.tag}
    for bit, name in enumerate(record.__struct_fields__):
        value = getattr(record, name)
        if value is not None or nulls >> bit & 1:
            fields[name] = value
    if nulls & NULL_PARTIAL_SCORE and isinstance(record, LearnStatsRecord):
        fields["outcome"] = {"kind": "timeout", "partial_score": None}
    return _encode(fields)


def record_from_json(line: bytes) -> tuple[Record, int]:
    """A record in either spelling with its explicit nulls; raises `ValueError` that names the place at fault."""
    read: ReadRecord = read_record(parse_json(line), lambda: line)
    if isinstance(read.record, LearnStatsRecord):
        settle_session(read.record, read.record.scenario or "")
    return read.record, read.nulls


def _read_fast(text: bytes, scenario: str) -> ReadMessage | None:
    """The message, if it is one that needs no care; None says nothing about what is wrong with it."""
    # A null, or NUL as the only escape that gives it. rfind and the search for a single byte first: 14 µs for 44 KB
    # where two plain searches took 62 of the message's 170 (CPython 3.11).
    if text.rfind(b"null") >= 0 or (b"\\" in text and b"\\u0000" in text):
        return None
    check_value_count(text)
    try:
        message = _decode_message(text)
        if message.schema_version != SCHEMA_VERSION:
            return None
        for record in message.records:
            if type(record) is LearnStatsRecord:
                settle_session(record, scenario)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Refusal):
        return None
    return ReadMessage(message, message.records, None, 0)


def _identify(envelope: Envelope, content_hash: bytes) -> BatchIdentity:
    """Never from the AMQP message_id: client libraries invent a new one for each publish."""
    if envelope.producer_id is not None and envelope.batch_seq is not None:
        return BatchIdentity(envelope.producer_id, envelope.producer_epoch or 0, envelope.batch_seq, None)
    return BatchIdentity(None, 0, None, envelope.batch_id or f"sha256:{content_hash.hex()}")


def _check_content_type(content_type: object) -> None:
    if content_type is None or content_type == "":
        return
    media_type, *parameters = content_type.lower().split(";") if isinstance(content_type, str) else [""]
    charsets = {p.partition("=")[2].strip().strip('"') for p in parameters if p.strip().startswith("charset")}
    if media_type.strip() != "application/json" or not charsets <= _CHARSETS:
        raise Refusal(Reason.BAD_CONTENT_TYPE, "send application/json in UTF-8")


def _decompressed(body: bytes, content_encoding: object) -> bytes:
    """The JSON text of the body, within its limit."""
    coding = "" if content_encoding is None else content_encoding
    coding = coding.strip().lower() if isinstance(coding, str) else "?"
    if coding not in {"", "identity", "gzip"}:
        raise Refusal(Reason.BAD_CONTENT_ENCODING, "send plain JSON or gzip")
    if not body:
        raise Refusal(Reason.EMPTY_BODY, "no bytes")
    text = gunzip(body) if coding == "gzip" else bytes(body)
    if not text:
        raise Refusal(Reason.EMPTY_BODY, "no bytes after decompression")
    if len(text) > MAX_BODY:
        raise Refusal(Reason.TOO_LARGE, f"{len(text)} bytes, at most {MAX_BODY}")
    return text
