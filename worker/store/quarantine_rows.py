"""What is kept of a message that was not stored: bounded, and enough to find, judge and replay it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import msgspec
from msgspec import Struct

from worker.wire.records import SCHEMA_VERSION, Record

#: Bodies up to this size are kept whole, of greater ones the beginning.
KEPT_WHOLE = 1_000_000
KEPT_START = 65_536
#: What a row and its place in the index cost besides what it keeps.
_ROW_BYTES = 256


class KeptBody(Struct, frozen=True):
    """A body as quarantine keeps it."""

    body: bytes
    size: int
    sha256: str
    truncated: bool


def keep(body: bytes) -> KeptBody:
    """The body, or its beginning, with size and hash of the whole."""
    truncated = len(body) > KEPT_WHOLE
    kept = bytes(body[:KEPT_START]) if truncated else bytes(body)
    return KeptBody(kept, len(body), sha256(body).hexdigest(), truncated)


def room_of(body: bytes, detail: str, headers: Mapping[str, str]) -> int:
    """Bytes that an entry counts for, as the triggers of the SQLite store reckon them."""
    return len(body) + len(msgspec.json.encode(dict(headers))) + len(detail.encode()) + _ROW_BYTES


def message_of(record: Record) -> bytes:
    """One record as a message of its own, so that it can be shown and replayed like any other."""
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, "records": [record]})


def conflict_detail(record: Record, batch_no: int, index: int) -> str:
    """Which record is in the way of this one."""
    own = getattr(record, "event_id", None)
    if own is not None:
        name = f"action {own} of task {getattr(record, 'task_id', '')!r}"
    elif record.record_id is not None:
        name = f"record {record.record_id!r}"
    else:
        name = f"session {getattr(record, 'session_id', '')!r}"
    return f"{name} is stored with another content, in batch {batch_no} at place {index}"
