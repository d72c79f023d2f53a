"""Strict JSON text: parsed once, within limits, and a reason code where it is refused.

One parser decides, msgspec's. The standard library's is asked only afterwards, why something was refused. Of a key that
comes twice in one object the last value counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

import msgspec

from worker.wire.limits import MAX_DEPTH, check_value_count
from worker.wire.reasons import Reason, Refusal
from worker.wire.records import INT64_MAX, INT64_MIN, MAX_STRING

_T = TypeVar("_T")
_decode = msgspec.json.Decoder().decode
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: What a body starts with when it is no UTF-8 JSON, and what to tell its sender.
_FOREIGN_STARTS = {
    b"\xef\xbb\xbf": "starts with a byte order mark; send plain UTF-8",
    b"\xff\xfe": "looks like UTF-16; send plain UTF-8",
    b"\xfe\xff": "looks like UTF-16; send plain UTF-8",
    b"\0": "looks like UTF-16 or UTF-32; send plain UTF-8",
    b"{\0": "looks like UTF-16 or UTF-32; send plain UTF-8",
    b"[\0": "looks like UTF-16 or UTF-32; send plain UTF-8",
    b"\x1f\x8b": "looks like gzip; say so in content_encoding",
}


def parse_json(text: bytes, *, enclosing: int = 0, nul_in_keys: bool = False) -> Any:
    """The value of `text`, all limits kept; raises `Refusal`.

    `enclosing` is the number of arrays and objects around `text`, where it is a part of something larger. `nul_in_keys`
    is for those who take keys apart at NUL and check what remains.
    """
    if not text:
        raise Refusal(Reason.EMPTY_BODY, "no bytes")
    check_value_count(text)
    try:
        value = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _diagnose(text, error) from None
    # A string is never longer than its body, and NUL is only ever written as this escape: the parser refuses the raw
    # byte. So ordinary bodies are spared both searches.
    _Limits(long=len(text) > MAX_STRING, nul=b"\\" in text and b"\\u0000" in text, nul_in_keys=nul_in_keys).check(
        value, MAX_DEPTH - enclosing
    )
    return value


def convert(value: object, kind: type[_T], reason: Reason) -> _T:
    """`msgspec.convert`, strict, with a `Refusal` of this reason that keeps the place at fault."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        flaw, _, place = str(error).partition(" - at ")
        raise Refusal(reason, flaw, tail=place.strip("`").removeprefix("$")) from None


class _Limits:
    """The checks of one body. `long` and `nul` say whether it can hold a long string or NUL at all."""

    def __init__(self, *, long: bool, nul: bool, nul_in_keys: bool) -> None:
        self.texts = long or nul
        self.keys = long or (nul and not nul_in_keys)
        self.nul_in_keys = nul_in_keys

    def check(self, value: Any, room: int) -> None:
        """Every value within `value`; `room` is how many levels there may be from here on."""
        kind = type(value)
        if kind is dict or kind is list:
            if room <= 0:
                raise Refusal(Reason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")
            if kind is dict and self.keys:
                for key in value:
                    _check_text(key, nul=self.nul_in_keys)
            self._check_items(value.items() if kind is dict else enumerate(value), room)
        elif kind is str:
            _check_text(value)
        elif kind is int:
            _check_int(value)

    def _check_items(self, items: Iterable[tuple[Any, Any]], room: int) -> None:
        # The leaves are looked at here rather than in check(): a call for each would double the time.
        texts = self.texts
        for step, item in items:
            kind = type(item)
            if kind is str:
                if texts:
                    _check_text(item, step)
            elif kind is int:
                if not INT64_MIN <= item <= INT64_MAX:
                    _check_int(item, step)
            elif kind is dict or kind is list:
                try:
                    self.check(item, room - 1)
                except Refusal as refusal:
                    raise refusal.inside(step)  # noqa: B904  the same exception, with one more step


def _check_int(number: int, *steps: str | int) -> None:
    if not INT64_MIN <= number <= INT64_MAX:
        raise Refusal(Reason.BAD_NUMBER, "beyond a signed 64-bit integer", *steps)


def _check_text(text: str, *steps: str | int, nul: bool = False) -> None:
    if len(text) > MAX_STRING:
        raise Refusal(Reason.STRING_TOO_LONG, f"{len(text)} characters, at most {MAX_STRING}", *steps)
    if not nul and "\0" in text:
        raise Refusal(Reason.BAD_TEXT, "holds the character NUL", *steps)


def _diagnose(text: bytes, error: Exception) -> Refusal:
    """Why the parser refused this text."""
    if isinstance(error, RecursionError):
        return Refusal(Reason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")
    for start, flaw in _FOREIGN_STARTS.items():
        if text.startswith(start):
            return Refusal(Reason.NOT_UTF8, flaw)
    try:
        decoded = text.decode()
    except UnicodeDecodeError as broken:
        return Refusal(Reason.NOT_UTF8, f"broken UTF-8 at byte {broken.start}")
    if isinstance(error, msgspec.ValidationError):  # untyped, so the only complaint left is a number's size
        return Refusal(Reason.BAD_NUMBER, "a number out of range")
    return _second_opinion(decoded) or Refusal(Reason.NOT_JSON, str(error))


class _BadNumberError(Exception):
    """The second parser met NaN or an infinity."""


def _bad_number(_: str) -> NoReturn:
    raise _BadNumberError


def _second_opinion(text: str) -> Refusal | None:
    """The standard library accepts NaN and lone surrogates, so it can tell them from broken JSON."""
    try:
        value = json.loads(text, parse_constant=_bad_number)
    except _BadNumberError:
        return Refusal(Reason.BAD_NUMBER, "NaN and Infinity are no JSON numbers")
    except RecursionError:
        return Refusal(Reason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")
    except ValueError:  # malformed for it too, or an integer of thousands of digits: the first error said enough
        return None
    if _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        return Refusal(Reason.BAD_TEXT, "a string holds half of a surrogate pair")
    return None
