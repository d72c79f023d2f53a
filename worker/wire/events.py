"""Events: what the worker tells the world, as CloudEvents 1.0 in structured JSON mode.

An event's id is a pure function of what it is about and its type, so an event that is sent again is recognised.
Subscribers must ignore fields they do not know; `decode_event` does.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from worker.wire.records import Count
from worker.wire.served import Endpoint

#: What the ids are made in. Never changes, or every subscriber takes old events for new ones.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "tag:swarm-worker,2026:events")
CONTENT_TYPE = "application/cloudevents+json"
#: Bytes of an offline model that still travels inside `learning.trained`.
MAX_EMBEDDED_MODEL = 64 * 1024

Weight: TypeAlias = Annotated[float, Meta(ge=0, le=1)]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Trigger(Struct, kw_only=True):
    """Why a run began: the kind of trigger, and the figures it saw."""

    kind: str
    values: dict[str, Any] = {}
    by: str | None = None  # who asked, where somebody did


class Window(Struct, kw_only=True):
    """What a run learnt from: the batches lo..hi of the store, in the order they were stored."""

    lo: Count
    hi: Count


class TrainedCounts(Struct, kw_only=True, omit_defaults=True):
    """How much was stored. `producers` tells whose episodes the model was learnt from, so that a flood of one is seen.

    `-` are those who name no `producer_id`, `(others)` the smaller ones where there are over 50. `capped` are those who
    brought more than their share (SWARM_PRODUCER_SHARE), each with the weight (0-1) at which its records counted.
    """

    records: Count
    episodes: Count
    sessions: Count
    producers: dict[str, Count] | None = None
    capped: dict[str, Weight] | None = None


class Gate(Struct, kw_only=True):
    """What the gate said, and why."""

    verdict: Literal["blessed", "rejected", "not_evaluable"]
    reasons: list[str] = []


class Trained(Struct, kw_only=True):
    """`learning.trained`: a run gave a model."""

    scenario: str
    run_id: str
    model_id: str
    model_version: Count
    kind: Literal["offline", "lora"]
    trigger: Trigger
    window: Window
    counts: TrainedCounts
    metrics: dict[str, Any]
    gate: Gate
    uri: str  # where the model lies
    sha256: str  # of the model file; where `model` holds it, of exactly those bytes
    model: Raw | msgspec.UnsetType = msgspec.UNSET  # the offline model itself, where it is small


class Applied(Struct, kw_only=True):
    """`learning.applied`: a model is live, or an adapter, beside the offline model."""

    scenario: str
    model_id: str
    model_version: Count
    previous_model_id: str | None
    applicator: str
    target: str
    verified: bool
    by: str
    kind: Literal["offline", "lora"] = "offline"
    endpoint: Endpoint | msgspec.UnsetType = msgspec.UNSET  # of an adapter: whom to ask, where a server has it


class _Told(Struct, kw_only=True):
    scenario: str
    run_id: str | None = None  # none where no run was involved
    reason: str
    details: dict[str, Any] = {}


class Failed(_Told, kw_only=True):
    """`learning.failed`: a run or an application failed."""


class Skipped(_Told, kw_only=True):
    """`learning.skipped`: there was nothing to do, or it must not be done."""


class RolledBack(_Told, kw_only=True):
    """`learning.rolled_back`: an earlier model is live again; `details` says which."""

    endpoint: Endpoint | msgspec.UnsetType = msgspec.UNSET  # of an adapter, as in `learning.applied`


EventData: TypeAlias = Trained | Applied | Failed | Skipped | RolledBack
EventType: TypeAlias = Literal[
    "learning.trained", "learning.applied", "learning.failed", "learning.skipped", "learning.rolled_back"
]
EVENTS: dict[EventType, type[EventData]] = {
    "learning.trained": Trained,
    "learning.applied": Applied,
    "learning.failed": Failed,
    "learning.skipped": Skipped,
    "learning.rolled_back": RolledBack,
}


class Event(Struct, kw_only=True):
    """One event as a subscriber reads it. `data` is a plain object where the type is newer than this code."""

    id: str
    source: str
    type: str
    time_ms: int
    data: EventData | dict[str, Any]
    subject: str | None = None  # the scenario


class CloudEvent(Struct, kw_only=True):
    """The envelope on the wire."""

    id: str
    source: str
    type: str
    data: Raw
    specversion: Literal["1.0"] = "1.0"
    subject: str | None = None
    time: Annotated[datetime, Meta(tz=True)] | None = None
    datacontenttype: str = "application/json"


_decode_envelope = msgspec.json.Decoder(CloudEvent).decode


def event_id(subject_id: str, type_: str) -> str:
    """The id of the event of this type about this run or deployment: always the same."""
    return str(uuid.uuid5(NAMESPACE, f"{subject_id}:{type_}"))


def routing_key(type_: str, scenario: str) -> str:
    """`learning.trained.<S>`. The publisher adds the bare type as CC."""
    return f"{type_}.{scenario}"


def embeddable(model: bytes) -> Raw | msgspec.UnsetType:
    """The JSON of an offline model for `Trained.model`, or UNSET where it is too large to travel."""
    return Raw(model) if len(model) <= MAX_EMBEDDED_MODEL else msgspec.UNSET


def encode_event(
    type_: EventType, *, subject_id: str, scenario: str, data: EventData, source: str, time_ms: int
) -> tuple[str, bytes]:
    """Id and body of an event about the run or deployment `subject_id`; `source` is a URI reference of the worker."""
    if type(data) is not EVENTS[type_]:
        raise TypeError(f"{type_} carries {EVENTS[type_].__name__}, not {type(data).__name__}")
    id_ = event_id(subject_id, type_)
    envelope = {
        "specversion": "1.0",
        "id": id_,
        "source": source,
        "type": type_,
        "subject": scenario,
        "time": (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
    return id_, msgspec.json.encode(envelope)


def decode_event(body: bytes) -> Event:
    """The event in `body`; raises `ValueError` where it is none, or lacks what its type must have."""
    try:
        envelope = _decode_envelope(body)
        kind: Any = EVENTS.get(envelope.type, dict[str, Any])  # type: ignore[call-overload]  # any text may be asked for
        data = msgspec.json.decode(envelope.data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no learning event: {error}") from None
    if isinstance(data, Trained) and isinstance(data.model, Raw):
        data.model = data.model.copy()  # else it would keep the whole body alive
    time = envelope.time if envelope.time is not None else _EPOCH
    return Event(
        id=envelope.id,
        source=envelope.source,
        type=envelope.type,
        time_ms=(time - _EPOCH) // timedelta(milliseconds=1),
        data=data,
        subject=envelope.subject,
    )
