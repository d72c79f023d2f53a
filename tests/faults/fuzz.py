"""Bad messages by the thousand: mutations of good ones by bytes and by structure, in both spellings, from one seed."""

from __future__ import annotations

import copy
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

_EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
_GOOD = [json.loads((_EXAMPLES / f"records.v1.{name}.json").read_text()) for name in ("all-types", "serde", "smallest")]

#: Values that once broke a parser, a store or a program.
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**70, 0.0, -0.0, 0.5, 1e308,
    5e-324, float("nan"), float("inf"), "", " ", "0", "null", "\0", "\ud800", "\U0010ffff", "a" * 129, "é" * 70_000,
    "\x1b[2J", "'; DROP", "%s%n", "../..", "__proto__", [], {}, [[]], [{}], [None] * 3, {"": ""}, {"type": "action"},
    {"kind": "success"}, {"Success": {}}, "Unknown", "Success", {"a\0b": 1}, [0] * 2_000,
    {str(n): n for n in range(300)},
]  # fmt: skip
#: Pieces of JSON, and of what is no JSON.
_TOKENS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\u0000", b"\\ud800", b"\\ud83d\\ude00", b"null", b"NaN",
    b"Infinity", b"-", b"1e999", b"1E400", b"1e-400", b"00", b"0x1", b"9" * 400, b"\0", b"\xff", b"\xc0\x80",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\x1f\x8b", b"/*", b"'", b"[" * 40, b'{"a":' * 40,
    b"[" * 5_000, b'"type":"action",', b'"records":[],',
]  # fmt: skip
_PROPERTIES = [("text/plain", None), (None, "br"), (None, "gzip"), ("application/json", "GZIP ")]
_NAMES = [
    "type", "records", "schema_version", "task_id", "event_id", "stats_json", "outcome", "Action", "LearnStats", "x",
    "", "\0",
]  # fmt: skip


class Fuzzed(NamedTuple):
    """A message and the properties it is sent with."""

    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None


def messages(seed: int, number: int) -> Iterator[Fuzzed]:
    """So many; the same seed gives the same."""
    chance = Random(seed)
    for _ in range(number):
        yield _message(chance)


def _message(chance: Random) -> Fuzzed:
    kind = chance.random()
    if kind < 0.1:
        body = _as_bytes(_fresh(chance), chance)
    elif kind < 0.5:
        body = _as_bytes(_mutated(chance), chance)
    elif kind < 0.9:
        body = _torn(_as_bytes(_fresh(chance), chance), chance)
    elif kind < 0.95:
        body = chance.randbytes(chance.randrange(2_000))
    else:
        body = b"".join(chance.choices(_TOKENS, k=chance.randrange(1, 60)))
    packed = chance.random()
    if packed < 0.15:
        return Fuzzed(_packed(body, chance), "application/json", "gzip")
    if packed < 0.2:
        return Fuzzed(body, *chance.choice(_PROPERTIES))
    return Fuzzed(body, chance.choice([None, "application/json"]), None)


def _fresh(chance: Random) -> Any:
    """A good message of an identity of its own."""
    example = chance.choice(_GOOD)
    records = copy.deepcopy(chance.sample(example["records"], chance.randint(1, len(example["records"]))))
    for record in records:
        fields = next(iter(record.values())) if "type" not in record else record
        fields.pop("scenario", None)  # the examples name one that is not the tests'
        for name in ("task_id", "session_id"):
            if name in fields:
                fields[name] = f"{name}-{chance.randrange(2**40)}"
    who = {"producer_id": f"fuzz-{chance.randrange(50)}", "batch_seq": chance.randrange(2**40)}
    return example | who | {"records": records}


def _mutated(chance: Random) -> Any:
    message = _fresh(chance)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        places = list(_places(message))
        if not places:
            break
        holder, key = chance.choice(places)
        match chance.randrange(7):
            case 0 | 1:
                holder[key] = copy.deepcopy(chance.choice(_VALUES))
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[chance.choice(_NAMES)] = holder.pop(key)
            case 4 if isinstance(holder, dict):
                holder[chance.choice(_NAMES)] = copy.deepcopy(chance.choice(_VALUES))
            case 5:
                other, other_key = chance.choice(places)
                holder[key] = copy.deepcopy(other[other_key])
            case _:
                for _ in range(chance.choice([1, 5, 31, 40])):
                    holder[key] = [holder[key]] if chance.random() < 0.5 else {"x": holder[key]}
    return message


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _as_bytes(value: Any, chance: Random) -> bytes:
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, None, 1]))
    return text.encode("utf-8", "surrogatepass")


def _torn(body: bytes, chance: Random) -> bytes:
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        at = chance.randrange(len(body) + 1)
        upto = min(len(body), at + chance.choice([1, 1, 2, 10, 500]))
        match chance.randrange(6):
            case 0:
                piece = bytes([chance.randrange(256)])
            case 1:
                piece = b""
            case 2:
                piece, upto = chance.choice(_TOKENS), at
            case 3:
                piece = body[at:upto] * chance.choice([2, 3, 100])
            case 4:
                piece = chance.choice(_TOKENS)
            case _:
                piece, upto = b"", len(body)
        body = body[:at] + piece + body[upto:]
    return body


def _packed(body: bytes, chance: Random) -> bytes:
    match chance.randrange(7):
        case 0:
            return gzip.compress(body)[: chance.randrange(1, 40)]
        case 1:
            return _torn(gzip.compress(body), chance)
        case 2:
            return gzip.compress(body) * 2
        case 3:
            return gzip.compress(gzip.compress(body))
        case 4:
            return zlib.compress(body)
        case 5 if chance.random() < 0.2:
            return bomb(chance.choice([8, 9, 64]))
        case _:
            return gzip.compress(body)


def bomb(megabytes: int) -> bytes:
    """A thousandth of what it unpacks to."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(megabytes)) + packer.flush()
