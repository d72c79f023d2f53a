"""Batching: deliveries become groups, each of which will be one transaction.

A group is closed by count, bytes or age, whichever comes first, and at once when the writer is free and something is
there: a lone message on a quiet queue waits for nobody. While the writer is busy, what comes in is judged in gulps (as
soon as a full group is there, at the latest when `age` is over), so that decoding runs beside the commit and costs no
wake-up per message. A group that the writer cannot take yet goes on growing up to its limits, because on a slow disk
bigger groups are all that helps.

A delivery that is suspected of crashing the worker (reference: `x-delivery-count` of three and more) will have to be
gathered alone; `Batcher._pull` is the place for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from worker.broker.port import Delivery
from worker.sink.judge import decoded_size
from worker.store.port import Incoming, Verdict

#: Messages judged at a stretch: then the connection's frames and acknowledgements have their turn.
_GULP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How big a group may be and how long a message may wait for company."""

    messages: int = 64
    bytes: int = 4_000_000  # after decompression; one message may be bigger, then it is a group of its own
    age: float = 0.02  # seconds


@dataclass(slots=True)
class Item:
    """A delivery, what it was judged to be, and in the end what became of it."""

    delivery: Delivery
    incoming: Incoming
    verdict: Verdict | None = None
    #: The store refused it once already, and what is sent now is its quarantine entry.
    refused: bool = False


@dataclass(slots=True)
class _Group:
    """A group that is being formed."""

    items: list[Item]
    size: int = 0  # bytes
    full: bool = False


class Batcher:
    """Forms groups of one inbox in the order of arrival. A stale delivery is told to `dropped` and not judged."""

    def __init__(
        self,
        inbox: asyncio.Queue[Delivery],
        limits: Limits,
        judge: Callable[[Delivery], Incoming],
        dropped: Callable[[Delivery], None],
    ) -> None:
        self._inbox = inbox
        self._limits = limits
        self._judge = judge
        self._dropped = dropped
        self._first: Delivery | None = None  # what a wait for the inbox gave
        self._held: tuple[Item, int] | None = None  # judged, and too big for the group before

    @property
    def waiting(self) -> int:
        """Deliveries that no group has taken yet."""
        return self._inbox.qsize() + (self._first is not None) + (self._held is not None)

    async def gather(self, free: asyncio.Event, stopping: asyncio.Event) -> list[Item]:
        """The next group; empty when `stopping` is set and nothing is left. `free` is set while the writer is idle.

        A full group is returned while the writer is still busy.
        """
        group = _Group([])
        while True:
            while self._pull(group):  # noqa: ASYNC110  it does the work, and gives way between two gulps
                await asyncio.sleep(0)
            if group.full or (group.items and free.is_set()):
                return group.items
            if group.items:
                await self._writer_or_age(free)
            elif stopping.is_set():
                return []
            else:
                await self._first_delivery(stopping)

    def _pull(self, group: _Group) -> bool:
        """Move what is there into the group, up to a gulp; whether there may be more."""
        for _ in range(_GULP):
            if self._held is not None:
                item, size = self._held
                self._held = None
            elif (delivery := self._next()) is not None:
                incoming = self._judge(delivery)
                item, size = Item(delivery, incoming), decoded_size(incoming)
            else:
                return False
            if group.items and group.size + size > self._limits.bytes:
                self._held = (item, size)
                group.full = True
                return False
            group.items.append(item)
            group.size += size
            if len(group.items) == self._limits.messages:
                group.full = True
                return False
        return True

    def _next(self) -> Delivery | None:
        """The next delivery that is worth the work, if one is there."""
        while True:
            if self._first is not None:
                delivery, self._first = self._first, None
            elif self._inbox.empty():
                return None
            else:
                delivery = self._inbox.get_nowait()
            if not delivery.stale:
                return delivery
            self._dropped(delivery)  # the broker has requeued it, its copy will come

    async def _writer_or_age(self, free: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._limits.age):
                await free.wait()
        except TimeoutError:
            pass  # old enough to be looked at, though the writer is busy

    async def _first_delivery(self, stopping: asyncio.Event) -> None:
        """Wait until a delivery is there or `stopping` is set."""
        get = asyncio.ensure_future(self._inbox.get())
        stop = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait({get, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not get.cancel():  # it was done: what it took out of the inbox is in our hands now
                self._first = get.result()
