"""Checking a record before it is sent, by the worker's own decoder: one bad record would take its whole batch along."""

from __future__ import annotations

import math

from msgspec import Struct

from worker.errors import InvalidRecord
from worker.wire.codec import decode_batch, record_to_json
from worker.wire.reasons import Rejection
from worker.wire.records import Record


def checked_json(record: Record, scenario: str) -> bytes:
    """The record as it travels; `InvalidRecord` names the field that the worker would refuse."""
    _check_finite(record)
    try:
        text = record_to_json(record)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(f"this record has no JSON form: {error}") from error
    found = decode_batch(b'{"schema_version":1,"batch_id":"check","records":[' + text + b"]}", scenario=scenario)
    if isinstance(found, Rejection):
        raise InvalidRecord(f"the worker would refuse this record ({found.reason}): {found.detail}")
    return text


def _check_finite(value: Struct) -> None:
    """JSON has no NaN: it would be written as null and pass for a field that was not known."""
    for name in value.__struct_fields__:
        item = getattr(value, name)
        if isinstance(item, float) and not math.isfinite(item):
            raise InvalidRecord(f"{name} is {item}, which JSON cannot say; leave the field out")
        if isinstance(item, Struct):
            _check_finite(item)
