"""Names, headers and times of messages that are no text or no time: decoded as far as they can be, never an error.

AMQP says that short strings are UTF-8, and RabbitMQ forwards whatever bytes a publisher wrote (measured, 3.10.8). pamqp
4.0.1 raises on them, which ends the reader of the client library and with it the connection. One message with a byte
too many in its `message_id`, routing key or headers, or with a timestamp of the year 292277026596, came back with every
reconnection, and raised the delivery count of every good message that was in hand beside it, until the limit of 50 took
them all to the dead letters.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from pamqp import decode
from pamqp.common import FieldTable

T = TypeVar("T")
U = TypeVar("U")


def tolerate_bad_properties() -> None:
    """Replace the decoders in question, for the whole process; once is enough, twice does no harm."""
    decode.METHODS.update(shortstr=_short_string, table=_table, timestamp=_timestamp)


def _short_string(value: bytes) -> tuple[int, str]:
    length = value[0]
    return length + 1, value[1 : length + 1].decode("utf-8", "replace")


def _table(value: bytes) -> tuple[int, FieldTable]:
    """No headers at all where one of them cannot be read: they are hints, or a signature that then does not fit."""
    return _or_else(decode.field_table, value, (4 + int.from_bytes(value[:4], "big"), {}))


def _timestamp(value: bytes) -> tuple[int, datetime | None]:
    return _or_else(decode.timestamp, value, (8, None))


def _or_else(decoder: Callable[[bytes], tuple[int, T]], value: bytes, otherwise: tuple[int, U]) -> tuple[int, T | U]:
    try:
        return decoder(value)
    except (ValueError, ArithmeticError, OSError, RecursionError):
        return otherwise
