"""AMQP properties and headers as plain text: what the rest of the worker may know of them."""

from __future__ import annotations

from typing import Any

from aiormq import spec

_PROPERTIES = (
    "message_id",
    "correlation_id",
    "reply_to",
    "user_id",
    "app_id",
    "message_type",
    "content_type",
    "content_encoding",
    "expiration",
)
#: A header is for a name or a number; what is longer is cut.
_LONGEST_VALUE = 1024
_MOST_HEADERS = 64


def as_text(properties: spec.Basic.Properties) -> dict[str, str]:
    """The properties that were set, and the headers; a property wins over a header of its name."""
    headers: dict[str, Any] = properties.headers or {}
    kept = {str(name): _text(value) for name, value in list(headers.items())[:_MOST_HEADERS]}
    for name in _PROPERTIES:
        value = getattr(properties, name)
        if value is not None:
            kept["type" if name == "message_type" else name] = _text(value)
    return kept


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
    return text[:_LONGEST_VALUE]
