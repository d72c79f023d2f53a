"""Bad messages through the real broker: each ends in quarantine with its code, and costs no neighbour anything."""

from __future__ import annotations

import gzip
import zlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pamqp import encode

from tests.integration.foreign_node import body, depth, episode, line, node_at
from tests.integration.worker_process import NewWorker, until
from tests.unit.test_wire_corpus import BAD

pytestmark = pytest.mark.rabbitmq

_GOOD = body(episode(9999, success=True), batch_id="never stored")
_honest_table = encode.field_table
_BOMB_MEMBER = bytes(1 << 20)


def _bomb() -> bytes:
    """A quarter of a megabyte that unpacks to 256 MB."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(_BOMB_MEMBER) for _ in range(256)) + packer.flush()


#: Of the corpus, one or two of each kind of fault, among them all that once broke a parser or a store.
_FROM_CORPUS = (
    "spaces only",
    "too large",
    "UTF-8 with a byte order mark",
    "UTF-16 with a byte order mark",
    "surrogate as UTF-8",
    "gzip that nobody announced",
    "trailing bytes",
    "cut short",
    "100,000 nested arrays",
    "8 MB of empty arrays",
    "lone high surrogate",
    "NUL in an id",
    "a string over the limit",
    "NaN",
    "1e999",
    "2**70 in an unknown field",
    "5,000 digits",
    "a number as the root",
    "version 2 with fields of its own",
    "no records",
    "10,001 records",
    "an unknown type",
    "a missing field",
    "a negative sequence",
    "a sequence beyond int64",
    "a producer with a line break at the end",
    "statistics that are no JSON",
    "statistics with a wrong field",
    "another scenario",
)
#: Body, properties, reason; by the message id under which the quarantine must show them.
_BAD: dict[str, tuple[bytes, dict[str, Any], str]] = {
    **{case: (BAD[case][0], {}, str(BAD[case][1])) for case in _FROM_CORPUS},
    "no bytes": (b"", {}, "empty_body"),
    "a picture": (_GOOD, {"content_type": "image/png"}, "bad_content_type"),
    "another charset": (_GOOD + b" ", {"content_type": "application/json; charset=utf-16"}, "bad_content_type"),
    "another encoding": (_GOOD, {"content_encoding": "br"}, "bad_content_encoding"),
    "damaged gzip": (gzip.compress(_GOOD)[:-4], {"content_encoding": "gzip"}, "bad_compression"),
    "a gzip bomb": (_bomb(), {"content_encoding": "gzip"}, "too_large"),
}
#: Good messages with the oddest properties that AMQP allows.
_ODD_PROPERTIES: list[dict[str, Any]] = [
    {
        "headers": {
            "a": None,
            "b": [1, {"c": bytearray(b"\xff")}],
            "d": 2**62,
            "e": 1.5,
            "f": datetime.now(UTC),
            "g": Decimal("1.5"),
        }
    },
    {"headers": {"x-delivery-count": "many", "x-death": "never", "CC": ["nowhere"]}},
    {"message_id": "é" * 120, "type": "", "app_id": "\n", "correlation_id": "\0", "reply_to": "swarm.records"},
    {"priority": 255, "expiration": 3_600_000, "timestamp": datetime.fromtimestamp(0, tz=UTC)},
    {"content_type": "", "message_id": "the same"},
    {"content_type": "APPLICATION/JSON ; charset=UTF-8", "message_id": "the same"},
]


async def test_every_bad_message_ends_in_quarantine_and_every_neighbour_is_stored(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """They are waiting in the queue when the worker starts, so that they share transactions."""
    worker = new_worker(scenario)
    await worker.start()
    await worker.tell("pause", "--scenario", scenario, "--what", "ingest")
    sent: list[bytes] = []
    async with node_at(amqp_url) as node:

        async def publish_good(number: int, **properties: Any) -> None:
            records = episode(number, success=True)
            sent.extend(map(line, records))
            await node.publish(scenario, body(records, producer_id="good", batch_seq=number), **properties)

        for number, (case, (data, properties, _)) in enumerate(_BAD.items()):
            await node.publish(scenario, data, message_id=case, **properties)
            await publish_good(number)
        for number, properties in enumerate(_ODD_PROPERTIES, len(_BAD)):
            await publish_good(number, **properties)
        total = len(_BAD) + len(_ODD_PROPERTIES)
        # One identity, two contents; one record's identity, two contents, and a good neighbour in the same batch.
        conflict = body(episode(8000, success=True), producer_id="good", batch_seq=0)
        await node.publish(scenario, conflict)
        fresh = episode(8001, success=True)
        sent += map(line, fresh)
        await node.publish(scenario, body([episode(0, success=False)[0], *fresh]))
        # Going back in one's sequence is nothing bad: whoever retries does so.
        await node.publish(scenario, body(episode(0, success=True), producer_id="good", batch_seq=0))

        await worker.tell("resume", "--scenario", scenario)
        seen = await until(
            worker.scenario_status, lambda s: s["duplicate_batches"] == 1 and s["quarantined"] == len(_BAD) + 2
        )
        assert (seen["batches"], seen["records_received"]) == (total + 1, len(sent))
        await worker.wait_ready()
        assert await depth(node, f"swarm.records.{scenario}") == 0
        assert await depth(node, f"swarm.dead.{scenario}") == 0

    assert sorted(await worker.exported()) == sorted(sent)
    listed = (await worker.cli("quarantine", "list", "--limit", "1000", "--json")).json
    reasons = {entry["headers"].get("message_id"): entry["reason"] for entry in listed}
    assert {case: reasons[case] for case in _BAD} == {case: reason for case, (_, _, reason) in _BAD.items()}
    conflicts = [entry for entry in listed if entry["headers"].get("message_id") not in _BAD]
    assert [entry["reason"] for entry in conflicts] == ["key_conflict", "record_conflict"]
    shown = await worker.cli("quarantine", "show", str(conflicts[0]["entry_id"]), "--body")
    assert shown.out == conflict
    assert not [entry for entry in worker.log() if entry["level"] == "error" or "exception" in entry]
    assert await worker.stop() == 0


def _short_string(value: str) -> bytes:
    """As the protocol has it, but `EVIL` becomes bytes that are no text."""
    data = value.encode().replace(b"EVIL", b"\xff\xfe")
    return bytes([len(data)]) + data


def _table(value: Any) -> bytes:
    """Likewise; of the header `EVIL` the value is the depth to which tables are nested in it."""
    if not value or "EVIL" not in value:
        data = b"\x04EVIL".replace(b"EVIL", b"\xc0\x80no") + b"V" if value else b""
        return len(data).to_bytes(4, "big") + data
    data = b""
    for _ in range(value["EVIL"]):
        data = b"\x01aF" + len(data).to_bytes(4, "big") + data
    return len(data).to_bytes(4, "big") + data


@pytest.fixture
def evil_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process publish what no honest client library writes."""
    monkeypatch.setitem(encode.METHODS, "shortstr", _short_string)
    monkeypatch.setitem(
        encode.METHODS, "timestamp", lambda value: value.year.to_bytes(8, "big").replace(b"\0", b"\x7f")
    )
    monkeypatch.setitem(
        encode.METHODS, "table", lambda value: _table(value) if set(value) & {"EVIL", "bad"} else _honest_table(value)
    )


async def test_properties_that_are_no_text_or_time_cost_neither_the_connection_nor_the_record(
    new_worker: NewWorker, amqp_url: str, scenario: str, evil_encoding: None
) -> None:
    """RabbitMQ forwards any bytes; a client library that chokes on them would come back to them for ever."""
    worker = new_worker(scenario)
    await worker.start()
    sent: list[bytes] = []
    async with node_at(amqp_url) as node:
        odd: list[tuple[str, dict[str, Any]]] = [
            ("", {"message_id": "EVIL"}),
            ("", {"content_type": "application/json; x=EVIL", "app_id": "EVIL", "correlation_id": "EVIL"}),
            (".EVIL", {}),
            ("", {"timestamp": datetime(1999, 1, 1, tzinfo=UTC)}),
            ("", {"headers": {"bad": 1}}),
            ("", {"headers": {"EVIL": 2000}}),
            ("", {}),
        ]
        for number, (key, properties) in enumerate(odd):
            records = episode(number, success=True)
            sent += map(line, records)
            await node.publish(scenario + key, body(records, producer_id="n", batch_seq=number), **properties)
        seen = await until(worker.scenario_status, lambda s: s["records_received"] == len(sent))
    assert (seen["quarantined"], seen["duplicate_batches"]) == (0, 0)
    assert (await worker.status())["counters"]["reconnects"] == 0
    assert sorted(await worker.exported()) == sorted(sent)


async def test_a_bad_message_that_comes_a_thousand_times_is_kept_once(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """A node that is broken must not fill the disk; how often it came is counted."""
    worker = new_worker(scenario)
    await worker.start()
    async with node_at(amqp_url) as node:
        await node.publish(scenario, b"broken", times=1000)
        await node.publish(scenario, body(episode(1, success=True)))
        await until(worker.scenario_status, lambda s: s["records_received"] == 5)
        await until(lambda: depth(node, f"swarm.records.{scenario}"), lambda n: n == 0)
    (entry,) = (await worker.cli("quarantine", "list", "--json")).json
    assert (entry["reason"], entry["seen"]) == ("not_json", 1000)
    shown = await worker.cli("quarantine", "list")
    assert b"not_json" in shown.out
    assert b"\x1b" not in shown.out
