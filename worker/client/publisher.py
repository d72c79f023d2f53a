"""The records publisher of a swarm node: batches, counts, keeps, sends and confirms.

What a return means:

- `publish` returned: the record is one that the worker takes, and is in memory. A process that dies within `batch_age`
  takes it along.
- `flush` (and `end_session`) returned: the broker has confirmed every record published before, on disk and replicated.
- `close` returned 0: the same. Any other number: that many batches lie in the spool, on disk, and the next publisher
  with the same `producer_id` and `state_dir` sends them, under the same identity and to the byte.

In between, a batch is on disk before it is sent first, so from then on a crash delays it and no more. Everything that
was sent may arrive twice, and counts once.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import structlog

from worker.broker.port import OutgoingMessage, Publisher
from worker.client.actions import EventSource
from worker.client.checking import checked_json
from worker.client.learning_events import LearnStatsSnapshot, Statistics
from worker.client.spool import BatchKey, Spool
from worker.clock import Clock, SystemClock
from worker.errors import ConfigurationError, InvalidRecord, PublishFailed, StoreUnavailable
from worker.wire.names import RECORDS_EXCHANGE, is_slug
from worker.wire.records import Outcome, Record

log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")

#: Bytes of a batch beyond which no further record is added: far below the wire's 8 MB, easy on everybody's memory.
_BATCH_BYTES = 1_000_000
_BUFFER_BYTES = 16_000_000
#: Waits between two attempts for one batch double between these (seconds), shortened by up to a half at random.
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 10.0
_REMEMBERED_SESSIONS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherLimits:
    """Batches of 100 records or 100 ms (the original's subscriber), and what may wait before `publish` does."""

    batch_records: int = 100
    batch_age: float = 0.1  # seconds
    buffer_records: int = 10_000  # in memory, not yet in a batch
    spool_batches: int = 1_000  # on disk, not yet confirmed
    in_flight: int = 32  # batches sent at once


@dataclass(slots=True)
class RecordPublisherStats:
    """Counters since the start, and the present state."""

    records: int = 0  # accepted by publish
    batches: int = 0  # written to the spool
    confirmed: int = 0  # batches
    resent: int = 0  # batches left by an earlier process
    failures: int = 0  # attempts that were not confirmed
    buffered: int = 0  # records in memory
    unconfirmed: int = 0  # batches on disk
    last_failure: str | None = None  # why the newest failed attempt failed


class RecordPublisher:
    """Publishes records of one producer to one scenario, as a context manager or between `start` and `close`.

    `producer_id` names this producer for ever; two publishers never share it within a scenario. `state_dir` is where
    its counter and spool live; it must survive a restart.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        scenario: str,
        producer_id: str,
        state_dir: Path,
        limits: PublisherLimits | None = None,
        clock: Clock | None = None,
        user_id: str | None = None,
    ) -> None:
        """`user_id` is the connection's user, which the broker vouches for; see SWARM_PRODUCERS."""
        for name, value in (("scenario", scenario), ("producer_id", producer_id)):
            if not is_slug(value):
                raise ConfigurationError(f"{name}: {value!r} is no name; use letters, digits, - and _, at most 64")
        self.scenario = scenario
        self.producer_id = producer_id
        self._user_id = user_id
        self.stats = RecordPublisherStats()
        self._publisher = publisher
        self._path = state_dir / f"{scenario}.{producer_id}.spool"
        self._limits = limits or PublisherLimits()
        self._clock = clock or SystemClock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._spool: Spool | None = None
        self._runner: asyncio.Task[None] | None = None
        self._closing = False
        self._pulse = asyncio.Event()  # set and replaced at every change that somebody may wait for
        self._buffer: deque[bytes] = deque()
        self._buffer_bytes = 0
        self._due_at = 0.0  # loop time at which the oldest record in the buffer has waited long enough
        self._flushes = 0  # flushes that wait: nothing is held back for company
        self._cut = 0  # records that left the buffer
        self._unconfirmed: dict[BatchKey, int] = {}  # batch: number of its first record, 0 from an earlier process
        self._to_send: asyncio.Queue[tuple[BatchKey, bytes | None]] = asyncio.Queue()
        self._confirmed: list[BatchKey] = []  # not yet dropped from the spool
        self._ended_sessions: OrderedDict[str, None] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the spool and send what an earlier process left. Raises `ConfigurationError`."""
        self._spool = await self._in_thread(Spool.open, self._path, self.producer_id, now_ms=self._clock.now_ms())
        for key in await self._in_thread(self._spool.unconfirmed):
            self._unconfirmed[key] = 0
            self._to_send.put_nowait((key, None))
            self.stats.resent += 1
        self._note()
        self._runner = asyncio.create_task(self._run(self._spool), name="record_publisher")
        self._runner.add_done_callback(lambda _: self._note())

    async def publish(self, item: Record | EventSource) -> None:
        """Take a record or an event; waits while too much is unsent (see `PublisherLimits`).

        Raises `InvalidRecord` for what no worker would store, `PublishFailed` after `close`.
        """
        record: Record = item.to_record() if hasattr(item, "to_record") else item
        text = checked_json(record, self.scenario)
        await self._until(self._has_room)
        if self._closing:
            raise PublishFailed("this publisher is closed", reason="closed")
        if not self._buffer:
            self._due_at = asyncio.get_running_loop().time() + self._limits.batch_age
        self._buffer.append(text)
        self._buffer_bytes += len(text)
        self.stats.records += 1
        self.stats.buffered += 1
        if len(self._buffer) == 1 or self._is_full():
            self._note()

    async def end_session(
        self,
        session_id: str,
        *,
        outcome: Outcome,
        total_ticks: int,
        total_actions: int,
        stats: Statistics | None = None,
        timestamp_ms: int | None = None,
        phase: str | None = None,
        group_id: str | None = None,
        task_ids: Sequence[str] | None = None,
    ) -> None:
        """Publish the one learn-stats record of a session and flush: all of the session is confirmed then.

        Raises `InvalidRecord` for a session that was ended before. `timestamp_ms`: now where it is not given.
        """
        if session_id in self._ended_sessions:
            raise InvalidRecord(f"session {session_id!r} was ended before; a session has one end")
        snapshot = LearnStatsSnapshot(
            session_id=session_id,
            outcome=outcome,
            total_ticks=total_ticks,
            total_actions=total_actions,
            stats=stats,
            timestamp_ms=self._clock.now_ms() if timestamp_ms is None else timestamp_ms,
            phase=phase,
            group_id=group_id,
            task_ids=None if task_ids is None else tuple(task_ids),
        )
        await self.publish(snapshot)
        self._ended_sessions[session_id] = None
        if len(self._ended_sessions) > _REMEMBERED_SESSIONS:
            self._ended_sessions.popitem(last=False)
        await self.flush()

    async def flush(self) -> None:
        """Return once the broker confirmed everything published before, and what an earlier process left."""
        upto = self.stats.records
        self._flushes += 1
        self._note()
        try:
            await self._until(lambda: self._cut >= upto and all(n > upto for n in self._unconfirmed.values()))
        finally:
            self._flushes -= 1

    async def close(self, timeout: float = 30.0) -> int:
        """Flush for at most `timeout` seconds, put the rest on disk, and return how many batches are unconfirmed."""
        if self._spool is None:
            return 0
        self._closing = True
        spool, runner = self._spool, self._runner
        try:
            async with asyncio.timeout(timeout):
                await self.flush()
        except (TimeoutError, PublishFailed):
            pass  # what is left is kept, and counted below
        if runner is not None:
            runner.cancel()
            await asyncio.wait({runner})
        try:
            while self._buffer:
                await self._cut_batch(spool)
        finally:
            self._spool = None
            await self._in_thread(spool.close, self._confirmed)
            self._thread.shutdown()
        if self._unconfirmed:
            log.warning("records_left_in_spool", batches=len(self._unconfirmed), last_failure=self.stats.last_failure)
        return len(self._unconfirmed)

    # ------------------------------------------------------------ buffer to spool

    async def _run(self, spool: Spool) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cut_batches(spool), name="cut_batches")
            for _ in range(self._limits.in_flight):
                tasks.create_task(self._send_batches(spool), name="send_batches")

    async def _cut_batches(self, spool: Spool) -> None:
        wait = _FIRST_WAIT
        while True:
            await self._batch_is_due()
            await self._until(lambda: len(self._unconfirmed) < self._limits.spool_batches)
            try:
                await self._cut_batch(spool)
                wait = _FIRST_WAIT
            except StoreUnavailable as error:
                log.error("spool_full", error=str(error))  # noqa: TRY400  a full disk needs no traceback
                self._fail(str(error))
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT)

    async def _batch_is_due(self) -> None:
        await self._until(lambda: bool(self._buffer))
        try:
            async with asyncio.timeout_at(self._due_at):
                await self._until(lambda: self._is_full() or self._flushes > 0)
        except TimeoutError:
            pass  # old enough

    async def _cut_batch(self, spool: Spool) -> None:
        """The oldest records become a batch on disk, and only then leave the buffer."""
        records: list[bytes] = []
        size = 0
        for text in self._buffer:
            if records and (len(records) == self._limits.batch_records or size + len(text) > _BATCH_BYTES):
                break
            records.append(text)
            size += len(text)
        dropped = list(self._confirmed)
        adding = asyncio.ensure_future(self._in_thread(spool.add, records, dropped))
        try:
            await asyncio.shield(adding)
        finally:
            # Also when cancelled: what is on disk must leave the buffer, or it would be cut into a second batch.
            await asyncio.wait({adding})
            if adding.exception() is None:
                self._has_cut(*adding.result(), len(records), size, len(dropped))

    def _has_cut(self, key: BatchKey, body: bytes, records: int, size: int, dropped: int) -> None:
        for _ in range(records):
            self._buffer.popleft()
        self._buffer_bytes -= size
        self._unconfirmed[key] = self._cut + 1
        self._cut += records
        del self._confirmed[:dropped]
        self._due_at = asyncio.get_running_loop().time() + self._limits.batch_age
        # While the broker is away the bodies wait on disk, not in memory too.
        self._to_send.put_nowait((key, body if self._to_send.qsize() < self._limits.in_flight else None))
        self.stats.batches += 1
        self._note()

    # ------------------------------------------------------------ spool to broker

    async def _send_batches(self, spool: Spool) -> None:
        while True:
            key, body = await self._to_send.get()
            await self._send(key, await self._in_thread(spool.body, key) if body is None else body)
            del self._unconfirmed[key]
            self._confirmed.append(key)
            self.stats.confirmed += 1
            self._note()

    async def _send(self, key: BatchKey, body: bytes) -> None:
        """Until it is confirmed: a broker that is away or refuses more is waited for, at most as long as we live."""
        message = OutgoingMessage(
            exchange=RECORDS_EXCHANGE,
            routing_key=self.scenario,
            body=body,
            message_id=f"{self.producer_id}:{key.epoch}:{key.seq}",
            user_id=self._user_id,
        )
        wait = _FIRST_WAIT
        while True:
            try:
                await self._publisher.publish(message)
            except PublishFailed as error:
                self._fail(str(error))
                await asyncio.sleep(wait * (1 - random.random() / 2))  # noqa: S311  jitter, no secret
                wait = min(wait * 2, _LONGEST_WAIT)
            else:
                return

    # ------------------------------------------------------------ waiting

    def _has_room(self) -> bool:
        in_memory = len(self._buffer) < self._limits.buffer_records and self._buffer_bytes < _BUFFER_BYTES
        return in_memory or self._closing

    def _is_full(self) -> bool:
        return len(self._buffer) >= self._limits.batch_records or self._buffer_bytes >= _BATCH_BYTES

    def _fail(self, reason: str) -> None:
        self.stats.failures += 1
        if reason != self.stats.last_failure:
            self.stats.last_failure = reason
            log.warning("batch_not_confirmed", scenario=self.scenario, reason=reason)

    def _note(self) -> None:
        """Something changed: everybody who waits looks again."""
        self.stats.buffered = len(self._buffer)
        self.stats.unconfirmed = len(self._unconfirmed)
        pulse, self._pulse = self._pulse, asyncio.Event()
        pulse.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._runner is None:
                raise PublishFailed("this publisher is not started", reason="closed")
            if self._runner.done():
                cause = None if self._runner.cancelled() else self._runner.exception()
                raise PublishFailed("this publisher has stopped", reason="closed") from cause
            await self._pulse.wait()

    async def _in_thread(self, call: Callable[..., _Result], *args: Any, **options: Any) -> _Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: call(*args, **options))
