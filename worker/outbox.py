"""Events leave only through here: stored with the change they tell of, sent in order, each until the broker confirms.

A crash between the confirm and `mark_sent` sends the event again under the same message id; subscribers drop the copy.
One relay per store: with two, order would be lost.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from worker import crash
from worker.broker.port import OutgoingMessage, Publisher
from worker.clock import Clock
from worker.errors import PublishFailed, StoreError
from worker.store.port import Outbox, OutboxEvent
from worker.wire.events import CONTENT_TYPE
from worker.wire.names import LEARNING_EXCHANGE

log = structlog.get_logger(__name__)

#: Events read at a time.
_PAGE = 100
#: The relay also looks by itself this often (seconds): the command line may have stored an event.
_LOOK_AGAIN = 5.0
_BACKOFF_FIRST = 1.0
#: Short, since nobody tells the relay that the broker is back or takes messages again, and its events are waited for.
_BACKOFF_MOST = 5.0


@dataclass(slots=True)
class OutboxStats:
    """What the relay did and has before it."""

    sent: int = 0
    failures: int = 0
    #: Unsent events at the last look, counted up to a page of 100.
    waiting: int = 0
    #: When the oldest of them was made (Unix ms): an alarm is due where it is 5 minutes ago.
    oldest_created_at_ms: int | None = None
    last_error: str | None = None


def message_of(event: OutboxEvent) -> OutgoingMessage:
    """The event as a message. The CC header makes a binding to the bare event name work, beside one per scenario."""
    return OutgoingMessage(
        exchange=LEARNING_EXCHANGE,
        routing_key=event.routing_key,
        body=event.body,
        message_id=event.event_id,
        content_type=CONTENT_TYPE,
        type=event.type,
        headers={"CC": [event.type]},
    )


class OutboxRelay:
    """Publishes what is unsent, oldest first, one at a time."""

    def __init__(self, store: Outbox, publisher: Publisher, clock: Clock) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()
        self.stats = OutboxStats()

    def wake(self) -> None:
        """Something was stored: look now."""
        self._woken.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Relay until `stopping`. An event that fails holds back the ones behind it, so that order is kept."""
        backoff = 0.0
        while not stopping.is_set():
            if await self._relay():
                backoff = 0.0
                await _first_of(stopping, self._woken, seconds=_LOOK_AGAIN)
                self._woken.clear()
            else:
                backoff = min(_BACKOFF_MOST, max(_BACKOFF_FIRST, backoff * 2))
                await _first_of(stopping, seconds=backoff)

    async def drain(self, seconds: float) -> bool:
        """Send what is unsent for at most so long; True where nothing is left. What is left stays in the store."""
        end = self._clock.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                while not await self._relay():
                    if self._clock.monotonic() + _BACKOFF_FIRST >= end:
                        return False
                    await asyncio.sleep(_BACKOFF_FIRST)
        except TimeoutError:
            log.warning("outbox_not_drained", waiting=self.stats.waiting)
            return False
        return True

    async def _relay(self) -> bool:
        """Send until nothing is unsent (True) or something fails (False)."""
        async with self._turn:
            try:
                while events := await self._store.unsent_events(_PAGE):
                    for place, event in enumerate(events):
                        self._note(events[place:])
                        if not await self._send(event):
                            return False
            except StoreError as error:
                self.stats.last_error = str(error)
                log.warning("outbox_store_failed", error=str(error))
                return False
            self._note([])
            return True

    async def _send(self, event: OutboxEvent) -> bool:
        try:
            await self._publisher.publish(message_of(event))
        except PublishFailed as error:
            self.stats.failures += 1
            if str(error) != self.stats.last_error:  # else a broker that is away for a night fills the log
                self.stats.last_error = str(error)
                log.warning("event_not_sent", type=event.type, event_id=event.event_id, error=str(error))
            await self._store.mark_attempt(event.event_id)
            return False
        crash.point("event_confirmed")
        await self._store.mark_sent([event.event_id], self._clock.now_ms())
        self.stats.sent += 1
        self.stats.last_error = None
        log.info("event_sent", type=event.type, scenario=event.scenario, event_id=event.event_id)
        return True

    def _note(self, waiting: list[OutboxEvent]) -> None:
        self.stats.waiting = len(waiting)
        self.stats.oldest_created_at_ms = waiting[0].created_at_ms if waiting else None


async def _first_of(*events: asyncio.Event, seconds: float) -> None:
    """Wait until one of the events is set, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
