"""Events: CloudEvents 1.0, ids that never change, and readers that survive newer writers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest

from worker.wire.events import (
    EVENTS,
    MAX_EMBEDDED_MODEL,
    Applied,
    EventData,
    EventType,
    Failed,
    Gate,
    RolledBack,
    Skipped,
    Trained,
    TrainedCounts,
    Trigger,
    Window,
    decode_event,
    embeddable,
    encode_event,
    event_id,
    routing_key,
)

MODEL = b'{"parameters":{"ucb1_c":1.41},"version":1}'


def trained(**fields: Any) -> Trained:
    """A trained event's data, with `fields` changed."""
    values: dict[str, Any] = {
        "scenario": "S", "run_id": "r1", "model_id": "m1", "model_version": 3, "kind": "offline",
        "trigger": Trigger(kind="count", values={"episodes": 100}), "window": Window(lo=1, hi=90),
        "counts": TrainedCounts(records=1000, episodes=100, sessions=4, producers={"node-7": 1000}),
        "metrics": {"success_rate": 0.5}, "gate": Gate(verdict="blessed", reasons=["no regression"]),
        "uri": "file:///models/S/3", "sha256": hashlib.sha256(MODEL).hexdigest(), "model": embeddable(MODEL),
    }  # fmt: skip
    return Trained(**(values | fields))


DATA: dict[EventType, EventData] = {
    "learning.trained": trained(),
    "learning.applied": Applied(
        scenario="S", model_id="m1", model_version=3, previous_model_id=None, applicator="files", target="/models/S",
        verified=True, by="auto",
    ),
    "learning.failed": Failed(scenario="S", run_id="r1", reason="timeout", details={"seconds": 1800}),
    "learning.skipped": Skipped(scenario="S", run_id="r1", reason="nothing new"),
    "learning.rolled_back": RolledBack(scenario="S", reason="verification failed", details={"model_id": "m0"}),
}  # fmt: skip


def encode(type_: EventType, data: EventData) -> tuple[str, bytes]:
    """Id and body of an event about run r1."""
    return encode_event(
        type_, subject_id="r1", scenario="S", data=data, source="/swarm-worker/w1", time_ms=1_769_900_000_123
    )


def test_there_is_an_example_of_every_type() -> None:
    """So that the tests below mean all of them."""
    assert DATA.keys() == EVENTS.keys()


@pytest.mark.parametrize("type_", DATA)
def test_an_event_is_a_cloud_event_that_reads_back(type_: EventType) -> None:
    """The required attributes of CloudEvents 1.0, and the same data on the other side."""
    id_, body = encode(type_, DATA[type_])
    envelope = json.loads(body)
    assert {name: envelope[name] for name in envelope if name != "data"} == {
        "specversion": "1.0", "id": event_id("r1", type_), "source": "/swarm-worker/w1", "type": type_,
        "subject": "S", "time": "2026-01-31T22:53:20.123Z", "datacontenttype": "application/json",
    }  # fmt: skip
    event = decode_event(body)
    assert (event.id, event.type, event.subject, event.time_ms) == (id_, type_, "S", 1_769_900_000_123)
    assert event.data == DATA[type_]


def test_an_id_is_constant_across_sends_and_differs_between_types() -> None:
    """A subscriber drops what it saw; the literal makes sure that no release changes it."""
    assert event_id("r1", "learning.trained") == "79eced46-4e6b-5eed-bb46-5b9f7f82cfff"
    assert len({event_id(run, type_) for run in ("r1", "r2") for type_ in EVENTS}) == 2 * len(EVENTS)
    assert encode("learning.trained", trained()) == encode("learning.trained", trained())


def test_a_small_model_travels_byte_for_byte() -> None:
    """The hash in the event is of exactly the bytes inside it."""
    data = decode_event(encode("learning.trained", trained())[1]).data
    assert isinstance(data, Trained)
    assert isinstance(data.model, msgspec.Raw)
    assert hashlib.sha256(bytes(data.model)).hexdigest() == data.sha256


def test_a_large_model_stays_at_home() -> None:
    """Over 64 KB there is only the uri."""
    assert bytes(embeddable(b" " * MAX_EMBEDDED_MODEL)) == b" " * MAX_EMBEDDED_MODEL  # type: ignore[arg-type]  # it fits
    large = trained(model=embeddable(b" " * (MAX_EMBEDDED_MODEL + 1)))
    assert "model" not in json.loads(encode("learning.trained", large)[1])["data"]


def test_the_routing_key_ends_in_the_scenario() -> None:
    """So that one scenario can be bound."""
    assert routing_key("learning.trained", "S") == "learning.trained.S"


def test_the_data_must_be_of_the_type() -> None:
    """A mistake in our own code must not leave the house."""
    with pytest.raises(TypeError, match="carries Failed, not Skipped"):
        encode("learning.failed", DATA["learning.skipped"])


def test_a_newer_writer_is_understood() -> None:
    """Unknown attributes and fields are ignored, and an unknown type is a plain object."""
    envelope = json.loads(encode("learning.failed", DATA["learning.failed"])[1])
    envelope |= {"traceparent": "00-1", "data": envelope["data"] | {"hint": "x"}}
    assert decode_event(json.dumps(envelope).encode()).data == DATA["learning.failed"]
    event = decode_event(json.dumps(envelope | {"type": "learning.paused", "time": None}).encode())
    assert isinstance(event.data, dict)
    assert (event.data["hint"], event.time_ms) == ("x", 0)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"[" * 100_000, b"\xff",
        b'{"specversion": "0.3", "id": "1", "source": "/x", "type": "learning.failed", "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "learning.failed", "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "learning.failed", "data": {"scenario": "\xff"}}',
        b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "learning.failed"}',
        b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "learning.failed", "data": {}, "time": "today"}',
        b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "x", "data": {}, "time": "2026-01-31T22:53:20"}',
    ],
)  # fmt: skip
def test_what_is_no_event_is_a_value_error(body: bytes) -> None:
    """Nothing else comes out of the reader."""
    with pytest.raises(ValueError, match="no learning event"):
        decode_event(body)
