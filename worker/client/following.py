"""Following learning events: each once, decoded, and the model that is live as far as the events tell.

For services, and for nodes that do not share a file system with the worker: `learning.trained` carries the offline
model itself where it is small, `learning.applied` and `learning.rolled_back` say which one is live.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import structlog
from msgspec import Raw, UnsetType

from worker.client.models import CurrentModel, load_model
from worker.learning.offline_model import ModelUnreadable
from worker.wire.events import Applied, Event, EventData, RolledBack, Trained, decode_event
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)

_REMEMBERED_EVENTS = 10_000
#: Models kept for the event that will say that they are live: the worker's own history is five deep.
_REMEMBERED_MODELS = 20


class Message(Protocol):
    """A message whose body is an event."""

    @property
    def body(self) -> bytes:
        """CloudEvents JSON."""
        ...


class EventFeed(Protocol):
    """Where events come from (`broker.events.EventSubscriber`). Each message is settled when the next is asked for."""

    def follow(self) -> AsyncIterator[Message]:
        """Messages as they come."""
        ...


class EventFollower:
    """Events of a feed, each once however often it was sent, in the order of arrival: `async for event in follower`.

    An event is settled when the next one is asked for. A process that dies in between gets it again after its restart,
    if its subscription is durable, so acting on events must be safe to repeat; `event.id` is constant.
    """

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.duplicates = 0
        self.unreadable = 0

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Go on until cancelled. What is no event is logged, counted and passed over."""
        async for message in self._feed.follow():
            try:
                event = decode_event(message.body)
            except ValueError as error:
                self.unreadable += 1
                log.warning("event_unreadable", error=str(error))
                continue
            if event.id in self._seen:
                self.duplicates += 1
                continue
            yield event
            # Only now: an event that its consumer failed on is new when it comes again.
            self._seen[event.id] = None
            if len(self._seen) > _REMEMBERED_EVENTS:
                self._seen.popitem(last=False)


class LiveModel:
    """Which offline model of one scenario is live, told by events: feed it every event, read `current`.

    An adapter beside it is followed by `LiveAdapter`.
    """

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        #: The live model, None until one is applied; an older one while `missing` says which one it should be.
        self.current: CurrentModel | None = None
        #: Id of the live model where no event brought it (over 64 KB, or trained before we listened): fetch it at its
        #: `uri`, or read it with `ModelFile`.
        self.missing: str | None = None
        self._known: OrderedDict[str, CurrentModel] = OrderedDict()

    def take(self, event: Event) -> bool:
        """Note what the event says; True where the live model changed."""
        data = event.data
        if isinstance(data, Trained):
            if data.scenario == self.scenario:
                self._remember(data)
            return False
        told = _live(data, self.scenario, "offline")
        return told is not None and self._is_live(told[0])

    def _remember(self, trained: Trained) -> None:
        if trained.kind != "offline" or not isinstance(trained.model, Raw):
            return
        try:
            model = load_model(
                bytes(trained.model),
                scenario=trained.scenario,
                model_id=trained.model_id,
                version=trained.model_version,
                sha256=trained.sha256,
            )
        except ModelUnreadable as error:
            log.warning("event_model_refused", model_id=trained.model_id, error=str(error))
            return
        self._known[trained.model_id] = model
        if len(self._known) > _REMEMBERED_MODELS:
            self._known.popitem(last=False)
        if self.missing == trained.model_id:  # the two events came in the other order
            self._is_live(trained.model_id)

    def _is_live(self, model_id: str) -> bool:
        model = self._known.get(model_id)
        self.missing = model_id if model is None else None
        if model is None or model is self.current:
            return False
        self._known.move_to_end(model_id)
        self.current = model
        return True


class LiveAdapter:
    """Whom to ask for the adapter of one scenario, told by events: feed it every event, read `endpoint`.

    A node that sees the worker's data directory reads `adapters.AdapterPointer` instead: it is right from the first
    look on, and a little earlier at each swap. An event comes once the adapter counts as live; the server of the one
    before may be gone by then where `blue_green` or `llama_server` serve.
    """

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        #: Id of the live adapter; None until an event names one.
        self.model_id: str | None = None
        #: Whom to ask; None where no server is known: ask the base model. Where it does not answer, do the same.
        self.endpoint: Endpoint | None = None

    def take(self, event: Event) -> bool:
        """Note what the event says; True where the live adapter changed, or its server."""
        told = _live(event.data, self.scenario, "lora")
        if told is None or told == (self.model_id, self.endpoint):
            return False
        self.model_id, self.endpoint = told
        return True


def _live(
    data: EventData | dict[str, Any], scenario: str, kind: Literal["offline", "lora"]
) -> tuple[str, Endpoint | None] | None:
    """Which model of this kind is live now in the scenario, and where; None where the event does not say."""
    match data:
        case Applied() if (data.scenario, data.kind, data.verified) == (scenario, kind, True):
            live: Any = data.model_id
        case RolledBack() if (data.scenario, data.details.get("kind", "offline")) == (scenario, kind):
            live = data.details.get("live_model_id")
        case _:
            return None
    if not isinstance(live, str):
        return None
    return live, None if isinstance(data.endpoint, UnsetType) else data.endpoint
