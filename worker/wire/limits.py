"""What a message may weigh, checked before its content is looked at."""

from __future__ import annotations

import re
import zlib

from worker.wire.reasons import Reason, Refusal

#: Bytes of a body after decompression.
MAX_BODY = 8 * 1024 * 1024
#: Arrays and objects inside each other; the outermost is the first.
MAX_DEPTH = 32
#: Records in one batch.
MAX_RECORDS = 10_000
#: JSON values in one body. Ten thousand full records have 240,000; 8 MB of `[],[],...` would have 2.7 million and
#: take 200 MB once parsed.
MAX_VALUES = 500_000

#: Bodies below this cannot hold `MAX_VALUES` values, so nobody counts.
_COUNT_FROM = MAX_VALUES * 2
#: A JSON string. Unterminated ones match to the end too, else the search would start again at each of their quotes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


def gunzip(data: bytes, limit: int = MAX_BODY) -> bytes:
    """The content of one gzip member, never more than `limit` bytes in memory; raises `Refusal`.

    A second member is refused: nobody sends one, and each may cost a megabyte of work for twenty bytes.
    """
    if len(data) > limit:
        raise Refusal(Reason.TOO_LARGE, f"{len(data)} compressed bytes, at most {limit}")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        # One byte more than allowed tells "too large" from "just fits" without unpacking the rest of a bomb.
        body = inflate.decompress(data, limit + 1)
    except zlib.error as error:
        raise Refusal(Reason.BAD_COMPRESSION, f"no gzip data: {error}") from None
    if len(body) > limit:
        raise Refusal(Reason.TOO_LARGE, f"more than {limit} bytes after decompression")
    if not inflate.eof:
        raise Refusal(Reason.BAD_COMPRESSION, "the gzip data is cut short")
    if inflate.unused_data:
        raise Refusal(Reason.BAD_COMPRESSION, f"{len(inflate.unused_data)} bytes after the gzip data")
    return body


def check_value_count(body: bytes) -> None:
    """Refuse a body that would take far more memory once parsed; raises `Refusal`. Free for ordinary sizes."""
    if len(body) >= _COUNT_FROM and _values(body, 0, len(body)) > MAX_VALUES and _too_many_values(body):
        raise Refusal(Reason.TOO_MANY_VALUES, f"more than {MAX_VALUES} JSON values")


def _too_many_values(body: bytes) -> bool:
    """Count again outside the strings, where commas and brackets are no text."""
    count = end = 0
    for strings, string in enumerate(_STRING.finditer(body)):
        count += _values(body, end, string.start())
        end = string.end()
        # A value brings at most two strings, itself and its key.
        if count > MAX_VALUES or strings > 2 * MAX_VALUES:
            return True
    return count + _values(body, end, len(body)) > MAX_VALUES


def _values(text: bytes, start: int, end: int) -> int:
    """At least as many as there are values: one after each comma and opening bracket."""
    return text.count(b",", start, end) + text.count(b"[", start, end) + text.count(b"{", start, end)
