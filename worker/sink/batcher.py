"""Batching: deliveries become groups, each of which will be one transaction.

A group is closed by count, bytes or age, whichever comes first, and at once when the writer is free and something is
there: a lone message on a quiet queue waits for nobody. While the writer is busy, what comes in is judged in gulps (as
soon as a full group is there, at the latest when `age` is over), so that decoding runs beside the commit and costs no
wake-up per message. A group that the writer cannot take yet goes on growing up to its limits, because on a slow disk
bigger groups are all that helps.

A delivery that is suspected of ending the worker, since the broker took it back three times or more, is set aside. It
is judged when nothing else waits, or a few groups later, and is a group of its own. Among suspects chance decides who
is next: one that ends the worker after it was decoded does not stand before the same neighbours in every life, and they
are stored within a few lives, long before the broker's limit of fifty.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from worker.broker.port import Delivery
from worker.sink.judge import decoded_size
from worker.store.port import Incoming, Verdict

#: Messages judged at a stretch: then the connection's frames and acknowledgements have their turn.
_GULP = 8
#: Returns to the queue that make a delivery a suspect.
SUSPECT_FROM = 3
#: Groups between two suspects while other messages keep coming.
_GROUPS_BETWEEN = 8


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
    """Forms groups of one inbox in the order of arrival. A stale delivery is told to `dropped` and not judged.

    `try_out` judges a suspect and may take its time; `chance(n)` is a whole number below n.
    """

    def __init__(
        self,
        inbox: asyncio.Queue[Delivery],
        limits: Limits,
        judge: Callable[[Delivery], Incoming],
        dropped: Callable[[Delivery], None],
        try_out: Callable[[Delivery], Awaitable[Incoming]],
        *,
        chance: Callable[[int], int] = random.randrange,
    ) -> None:
        self._inbox = inbox
        self._limits = limits
        self._judge = judge
        self._dropped = dropped
        self._try_out = try_out
        self._chance = chance
        self._suspects: list[Delivery] = []
        self._groups_since = 0  # a suspect was taken
        self._first: Delivery | None = None  # what a wait for the inbox gave
        self._held: tuple[Item, int] | None = None  # judged, and too big for the group before

    @property
    def waiting(self) -> int:
        """Deliveries that no group has taken yet."""
        held = (self._first is not None) + (self._held is not None)
        return self._inbox.qsize() + held + len(self._suspects)

    @property
    def suspects(self) -> int:
        """Deliveries that were set aside."""
        return len(self._suspects)

    async def gather(self, free: asyncio.Event, stopping: asyncio.Event) -> list[Item]:
        """The next group; empty when `stopping` is set and nothing is left. `free` is set while the writer is idle.

        A full group is returned while the writer is still busy.
        """
        group = _Group([])
        while True:
            if not group.items and self._groups_since >= _GROUPS_BETWEEN and (alone := await self._suspect_alone()):
                return alone
            while self._pull(group):  # noqa: ASYNC110  it does the work, and gives way between two gulps
                await asyncio.sleep(0)
            if group.full or (group.items and free.is_set()):
                self._groups_since += 1
                return group.items
            if group.items:
                await self._writer_or_age(free)
            elif alone := await self._suspect_alone():
                return alone
            elif stopping.is_set():
                return []
            else:
                await self._first_delivery(stopping)

    async def _suspect_alone(self) -> list[Item]:
        """One that was set aside, if any is there."""
        while self._suspects:
            delivery = self._suspects.pop(self._chance(len(self._suspects)))
            if delivery.stale:
                self._dropped(delivery)
                continue
            self._groups_since = 0
            return [Item(delivery, await self._try_out(delivery))]
        return []

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
            if delivery.stale:
                self._dropped(delivery)  # the broker has requeued it, its copy will come
            elif delivery.redelivered and delivery.delivery_count >= SUSPECT_FROM:
                self._suspects.append(delivery)
            else:
                return delivery

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
