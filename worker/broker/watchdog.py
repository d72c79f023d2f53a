"""Proof that a subscriber is registered at the broker and that its queue moves; a socket that is open proves nothing.

It exists for the recovery bug nobody knows of yet: clients have come back from a reconnect without their consumer,
healthy to look at, for days (aio-pika #231, faststream #2758).
"""

from __future__ import annotations

import asyncio

import structlog
from aiormq.exceptions import ChannelNotFoundEntity

from worker.broker.faults import BROKER_ERRORS, broker_call, describe
from worker.broker.subscriber import Subscriber
from worker.errors import BrokerRefused, WorkerError
from worker.wire.names import RECORDS_EXCHANGE

log = structlog.get_logger(__name__)

_AWAY = "the consumer is being brought back"
#: Seconds to the next check after one that the broker did not answer.
_SOON = 2.0


class Watchdog:
    """Watches one subscriber. `await run()` as a task of the worker: it raises when rebuilding has not helped.

    A broker that does not answer is waited for, however long that takes; whether it is really the broker that is away,
    `supervision` finds out.
    """

    def __init__(
        self, subscriber: Subscriber, *, interval: float = 10.0, quiet: float = 60.0, idle: float = 15.0
    ) -> None:
        self._found = "not checked yet"
        #: Messages ready in the queue, at the last check; None before the first.
        self.queue_depth: int | None = None
        #: Consumers of the queue, all workers together, at the last check.
        self.consumers: int | None = None
        self.rebuilds = 0
        self._subscriber = subscriber
        self._interval = interval
        self._quiet = quiet
        self._idle = idle
        self._strikes = 0
        self._proven = False
        #: What the last check did not find at the broker.
        self._missing: str | None = None
        #: Loop time of the first of the checks in a row which the broker answered while our consumer was away.
        self._away_since: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last check was good and nothing has happened to the consumer since."""
        return self._proven and (self._subscriber.consuming or self._subscriber.paused)

    @property
    def reason(self) -> str:
        """What the last check found or has happened to the consumer since, in words for people."""
        return self._found if self._subscriber.consuming or self._subscriber.paused else _AWAY

    async def run(self) -> None:
        """Check every `interval` seconds. Raises `WorkerError` (exit 70) at the second stall in a row."""
        task = asyncio.current_task()
        while True:
            await self.check()
            if task is not None and task.cancelling():
                # Swallowed within the client library, see `Consumer.stop`.
                raise asyncio.CancelledError
            # A broker that did not answer may be back any moment, and records flow then while we say we are not ready.
            unanswered = not self._proven and not self._strikes
            await asyncio.sleep(min(self._interval, _SOON) if unanswered else self._interval)

    async def check(self) -> None:
        """One check, in bounded time; see `run`. While it asks, what the last one found stands."""
        subscriber = self._subscriber
        try:
            with broker_call():
                await self._ask()
        except BROKER_ERRORS as error:
            # No connection, or a broker too busy: the session brings that back, and a new consumer would not help.
            self._proven, self._found = False, f"the broker does not answer: {describe(error)}"
            self._away_since = None
            return
        if subscriber.consuming or subscriber.paused:
            self._away_since = None
        if subscriber.paused:
            self._proven, self._found, self._strikes = True, "paused", 0
        elif subscriber.consuming:
            self._judge(self._stall())
            await self._renew_where_idle()
        else:
            now = asyncio.get_running_loop().time()
            self._away_since = self._away_since or now
            if now - self._away_since > self._quiet:
                self._judge(
                    f"the broker answers, but the consumer has not come back for {now - self._away_since:.0f} s"
                )

    async def _renew_where_idle(self) -> None:
        """What the broker says of a quiet queue proves nothing: another consumer does, in silence, at little cost.

        Of a queue that somebody deletes and makes again at once, RabbitMQ 3.10.8 cancels no consumer, counts it still,
        hands it every message and delivers none (measured); and the queue has lost its bindings.
        """
        subscriber = self._subscriber
        if not self._proven or subscriber.outstanding or self._silence() <= self._idle:
            return
        try:
            with broker_call():
                await subscriber.renew()
        except (BrokerRefused, *BROKER_ERRORS) as error:
            log.warning("consumer_not_renewed", queue=subscriber.queue, error=describe(error))

    def _silence(self) -> float:
        """Seconds since anything came to the present consumer."""
        subscriber = self._subscriber
        return asyncio.get_running_loop().time() - max(subscriber.last_delivery_at, subscriber.consuming_since)

    def _judge(self, stall: str | None) -> None:
        subscriber = self._subscriber
        if stall is None:
            self._proven, self._found = True, "consuming"
            if subscriber.last_delivery_at > subscriber.consuming_since or not self.queue_depth:
                self._strikes = 0
            return
        self._proven, self._found = False, stall
        self._strikes += 1
        if self._strikes > 1:
            raise WorkerError(f"{subscriber.queue}: {stall}; starting the consumer over has not helped")
        log.error("consumer_stalled", queue=subscriber.queue, reason=stall)
        self.rebuilds += 1
        subscriber.rebuild()

    def _stall(self) -> str | None:
        subscriber = self._subscriber
        if self._missing is not None:
            return self._missing
        if not self.consumers:
            return "the broker knows of no consumer"
        silent = self._silence()
        # With a full window the broker has to wait for our acks: that is the store's slowness, and no fault here.
        window_full = subscriber.outstanding >= subscriber.prefetch
        if self.queue_depth and silent > self._quiet and not window_full:
            return f"{self.queue_depth} messages wait, but none came for {silent:.0f} s"
        return None

    async def _ask(self) -> None:
        session, queue = self._subscriber.session, self._subscriber.queue
        self._missing = None
        async with asyncio.timeout(session.call_timeout):
            # A fresh channel: the consumer's own may be the one that is broken.
            channel = await session.open_channel()
            try:
                what = queue
                answer = await channel.queue_declare(queue, passive=True, timeout=session.call_timeout)
                self.queue_depth, self.consumers = answer.message_count, answer.consumer_count
                what = RECORDS_EXCHANGE  # without it no node can publish, and the queue would be quiet for ever
                await channel.exchange_declare(RECORDS_EXCHANGE, passive=True, timeout=session.call_timeout)
            except ChannelNotFoundEntity:
                self._missing = f"{what} is gone from the broker"
                if what == queue:
                    self.queue_depth = self.consumers = 0
            finally:
                if not channel.is_closed:
                    await channel.close(timeout=session.call_timeout)
