"""The sink: deliveries in, one transaction a group, acknowledgements out, never before the commit.

It is a pipeline of three: while the writer thread commits group k, group k+1 is gathered and judged, and group k-1 is
acknowledged. Judging runs on the event loop, a few messages at a stretch. It holds the interpreter's lock anyway, and
a thread of its own gained nothing that could be told from noise (RabbitMQ 3.10.8 and SQLite beside it on 2 busy cores,
paired runs: 0.9 times the rate at 100 records a message, 1.1 times at 1).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog

from worker import crash
from worker.broker.port import Delivery
from worker.clock import Clock
from worker.episodes.rules import Rules
from worker.sink.batcher import Batcher, Item, Limits
from worker.sink.judge import Judge
from worker.sink.producers import Producers
from worker.sink.stats import SinkStats
from worker.sink.trial import NoTrial, Trial
from worker.sink.writer import GroupWriter, Hold, room_enough
from worker.store.port import Incoming, Quarantined, RecordLog

log = structlog.get_logger(__name__)

Settle = Callable[[Sequence[Delivery]], Awaitable[None]]


async def ack_each(deliveries: Sequence[Delivery]) -> None:
    """Acknowledge deliveries one by one."""
    for delivery in deliveries:
        await delivery.ack()


class Sink:
    """Stores what comes into an inbox. One `run` at a time.

    `settle` acknowledges deliveries whose group is committed, in the order they came. `on_stored` is called after each
    commit and wakes the projector. While the store takes no writes, `on_store_down(reason)` has been called and
    `on_store_up()` not yet: consumption should pause, health be red with the reason. The sink resumes by itself.
    """

    def __init__(
        self,
        store: RecordLog,
        clock: Clock,
        rules_of: Callable[[str], Rules],
        *,
        settle: Settle = ack_each,
        limits: Limits | None = None,
        hold: Hold | None = None,
        on_stored: Callable[[], None] = lambda: None,
        on_store_down: Callable[[str], None] = lambda _: None,
        on_store_up: Callable[[], None] = lambda: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        trial: Trial | None = None,
        make_room: Callable[[], Awaitable[None]] = room_enough,
        producers: Producers | None = None,
    ) -> None:
        self.stats = SinkStats()
        self._clock = clock
        self._limits = limits or Limits()
        self._judge = Judge(rules_of, clock, producers)
        self._trial = trial or Trial()
        self._writer = GroupWriter(
            store,
            clock,
            self.stats,
            hold=hold,
            on_store_down=on_store_down,
            on_store_up=on_store_up,
            pause=pause,
            make_room=make_room,
        )
        self._settle = settle
        self._on_stored = on_stored
        self._batcher: Batcher | None = None
        self._progress = asyncio.Event()
        self._settling = asyncio.Lock()

    def busy(self) -> bool:
        """Whether something waits in the inbox or is on its way into the store."""
        return self.stats.in_flight > 0 or (self._batcher is not None and self._batcher.waiting > 0)

    async def run(self, inbox: asyncio.Queue[Delivery], stopping: asyncio.Event) -> None:
        """Store what comes; return once `stopping` is set and the inbox is empty and settled.

        Raises `StoreUnavailable` when the store was down for longer than `Hold.limit`, and what else the store or
        `settle` raises. Nothing unstored was acknowledged then: the broker gives it back when the channel closes. The
        same holds for cancelling.
        """
        batcher = self._batcher = Batcher(inbox, self._limits, self._take, self._drop, self._try_out)
        free = asyncio.Event()
        free.set()
        try:
            async with asyncio.TaskGroup() as writing:
                while group := await batcher.gather(free, stopping):
                    if not batcher.suspects:
                        await self._trial.close()
                    await free.wait()
                    free.clear()
                    writing.create_task(self._store(group, free), name="sink_group")
                    # The commit must have begun before the next group is judged, or they would run one after the other.
                    await asyncio.sleep(0)
        except BaseExceptionGroup as errors:
            # One writer, so one cause; the group keeps what else went down with it.
            raise errors.exceptions[0] from errors
        finally:
            await self._trial.close()
            self.stats.in_flight = 0
            self._progress.set()

    async def drain(self, seconds: float) -> bool:
        """Wait until everything in the inbox is stored and settled; False when that took longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self.busy():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    def _take(self, delivery: Delivery) -> Incoming:
        self.stats.in_flight += 1
        incoming = self._judge.delivery(delivery)
        crash.point("decode")
        return incoming

    async def _try_out(self, delivery: Delivery) -> Incoming:
        self.stats.in_flight += 1
        self.stats.suspects += 1
        try:
            end = await self._trial.verdict(
                delivery.scenario,
                delivery.body,
                content_type=delivery.content_type,
                content_encoding=delivery.content_encoding,
            )
        except NoTrial as error:
            # There is nothing to learn, so it is as good as any; alone it is all the same.
            log.warning("suspect_not_tried", error=str(error))
            end = None
        return self._judge.delivery(delivery) if end is None else self._judge.deadly(delivery, end)

    def _drop(self, _: Delivery) -> None:
        self.stats.stale += 1
        self._progress.set()

    async def _store(self, group: list[Item], free: asyncio.Event) -> None:
        """Commit a group, let the next one in, and acknowledge."""
        await self._writer.write(group)
        free.set()
        self._account(group)
        async with self._settling:  # first in, first out: in the order of the commits
            await self._acknowledge([item.delivery for item in group if item.verdict is not None])
        crash.point("post_ack")
        self.stats.in_flight -= len(group)
        self._progress.set()

    async def _acknowledge(self, deliveries: list[Delivery]) -> None:
        if crash.armed("mid_ack") and len(deliveries) > 1:
            # In two parts only then: one frame for all of them is what makes acknowledging cheap.
            middle = len(deliveries) // 2
            await self._settle(deliveries[:middle])
            await asyncio.sleep(0.001)  # the frame leaves
            crash.point("mid_ack")
            deliveries = deliveries[middle:]
        await self._settle(deliveries)

    def _account(self, group: list[Item]) -> None:
        for item in group:
            self.stats.count(item)
        self.stats.last_stored_at_ms = self._clock.now_ms()
        refused = Counter(str(item.verdict.reason) for item in group if isinstance(item.verdict, Quarantined))
        if refused:
            log.warning("messages_quarantined", **refused)
        log.debug("group_stored", messages=len(group))
        self._on_stored()
