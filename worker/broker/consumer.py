"""A consumer that is brought back after every loss, each time on a new `Link`.

`on_message` is called by the channel's reader, so it only hands over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

import structlog
from aiormq import spec
from aiormq.abc import DeliveredMessage

from worker.broker.direct_channel import DirectChannel
from worker.broker.faults import BROKER_ERRORS, broker_call, channel_refusal, describe
from worker.broker.link import Link
from worker.broker.session import Session
from worker.errors import BrokerRefused, WorkerError

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 0.2
#: Short, since a broker that has come back must not wait for us (10 s at most, with the session's 3 s); no storm comes
#: of it, since each attempt waits for the connection.
_LONGEST_PAUSE = 2.0
#: How long we are refused after the start before we give up, in s: a queue whose node is restarting also answers "not
#: found".
_REFUSED_SECONDS = 30.0


class Consumer:
    """Consumes queues on one channel. `prepare` declares what is needed and names the queues, before each (re)start.

    `on_message` must not fail and must not wait.
    """

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        prepare: Callable[[], Awaitable[list[str]]],
        on_message: Callable[[Link, DeliveredMessage], None],
        prefetch: int,
        no_ack: bool = False,
    ) -> None:
        self.name = name
        self.link: Link | None = None
        self.restarts = -1
        self.paused = False
        #: Loop time since which the present consumer has been registered and unpaused.
        self.consuming_since = 0.0
        self._session = session
        self._prepare = prepare
        self._on_message = on_message
        self._prefetch = prefetch
        self._no_ack = no_ack
        self._lost = asyncio.Event()
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._queues: list[str] = []
        self._refusal: BrokerRefused | None = None

    @property
    def consuming(self) -> bool:
        """Whether, as far as we know, the broker has our consumer registered."""
        return self.link is not None and not self.link.gone and bool(self.link.tags) and not self.paused

    async def start(self) -> None:
        """Register the consumer. Raises `BrokerRefused`, or one of `faults.BROKER_ERRORS`."""
        await self._establish()
        self._keeper = asyncio.create_task(self._keep(), name=f"consumer-{self.name}")
        self._keeper.add_done_callback(self._keeper_ended)

    async def pause(self) -> None:
        """Take no more deliveries; those in hand can still be settled."""
        async with self._lock:
            if self.paused:
                return
            self.paused = True
            link = self.link
            if link is None or link.gone:
                return
            tags, link.tags = link.tags, {}
            try:
                with broker_call():
                    for tag in tags.values():
                        await link.channel.basic_cancel(tag, timeout=self._session.call_timeout)
            except BROKER_ERRORS as error:
                log.info("consumer_not_paused", consumer=self.name, reason=describe(error))
                self.rebuild()

    async def resume(self) -> None:
        """Take deliveries again."""
        async with self._lock:
            if not self.paused:
                return
            self.paused = False
            link = self.link
            if link is None or link.gone:
                self.rebuild()
                return
            try:
                with broker_call():
                    await self._consume(link)
            except BROKER_ERRORS as error:
                log.info("consumer_not_resumed", consumer=self.name, reason=describe(error))
                self.rebuild()

    async def renew(self) -> None:
        """Register anew on a new channel and only then give up the present one; what that holds comes again.

        Raises `BrokerRefused`, or one of `faults.BROKER_ERRORS`; the present consumer stays then.
        """
        async with self._lock:
            old = self.link
            if old is None or old.gone or self.paused:
                return
            self._queues = await self._prepare()
            link = Link(await self._session.open_channel(), self._session.generation, self.rebuild)
            self._watch(link)
            try:
                with broker_call():
                    await link.channel.basic_qos(prefetch_count=self._prefetch, timeout=self._session.call_timeout)
                    await self._consume(link)
            except BROKER_ERRORS:
                await self._give_up(link)
                raise
            self.link = link
        await self._give_up(old)

    def rebuild(self) -> None:
        """Give the channel up and start over; the broker redelivers what was outstanding."""
        self._lost.set()

    async def stop(self) -> None:
        """Close the channel; what is unsettled goes back to its queue. Pause first and settle, to lose no work."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            # Told as well as cancelled: up to Python 3.11, `wait_for` inside the client library may swallow a
            # cancellation that meets an answer of the broker (python/cpython#86296); the keeper then waited for ever.
            self._stopping = True
            self._lost.set()
            keeper.cancel()
            await asyncio.wait([keeper], timeout=self._session.call_timeout)
        await self._retire()

    async def delete_queue(self, queue: str) -> None:
        """Delete one of our queues with what is in it; quietly, since it goes by itself later where this fails."""
        link = self.link
        if link is None or link.gone or queue not in link.tags:
            return
        tag = link.tags.pop(queue)
        try:
            # Cancelled first: deleting under a consumer reads like a fault in everybody's log.
            with broker_call():
                await link.channel.basic_cancel(tag, timeout=self._session.call_timeout)
                await link.channel.queue_delete(queue, timeout=self._session.call_timeout)
        except BROKER_ERRORS as error:
            log.info("queue_not_deleted", queue=queue, error=describe(error))

    async def drain_only(self, queue: str, bindings: Iterable[tuple[str, str]]) -> None:
        """Let go of the other queues, unbind this one, and wait until all that is in it was delivered; quietly."""
        link = self.link
        if link is None or link.gone or queue not in link.tags:
            return
        channel, timeout = link.channel, self._session.call_timeout
        try:
            with broker_call():
                for other in [name for name in link.tags if name != queue]:
                    await channel.basic_cancel(link.tags.pop(other), timeout=timeout)
                for exchange, key in bindings:
                    await channel.queue_unbind(queue, exchange, key, timeout=timeout)
                # The answer comes after the deliveries sent before it: with none left to send, all have arrived.
                while (await channel.queue_declare(queue, passive=True, timeout=timeout)).message_count:  # noqa: ASYNC110
                    await asyncio.sleep(_FIRST_PAUSE / 10)
        except BROKER_ERRORS as error:
            log.info("queue_not_drained", queue=queue, error=describe(error))

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """One that died of what nobody foresaw must not do so in silence: nothing would bring this consumer back."""
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None:
            self._session.fail(WorkerError(f"the consumer {self.name} cannot be kept: {describe(error)}"))

    async def _keep(self) -> None:
        while True:
            await self._lost.wait()
            if self._stopping:
                return
            self._lost.clear()
            await self._retire()
            pause = _FIRST_PAUSE
            refused_since: float | None = None
            while not self._stopping and not await self._restored():
                now = asyncio.get_running_loop().time()
                refused_since = None if self._refusal is None else refused_since or now
                if self._refusal is not None and refused_since is not None and now - refused_since >= _REFUSED_SECONDS:
                    self._session.fail(self._refusal)
                    return
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause = min(_LONGEST_PAUSE, pause * 2)

    async def _restored(self) -> bool:
        self._refusal = None
        try:
            await self._establish()
        except BrokerRefused as refusal:
            self._refusal = refusal
            log.warning("consumer_refused", consumer=self.name, error=str(refusal))
            return False
        except BROKER_ERRORS as error:
            log.warning("consumer_not_restored", consumer=self.name, error=describe(error))
            return False
        return True

    async def _establish(self) -> None:
        async with self._lock:
            self._queues = await self._prepare()
            channel = await self._session.open_channel()
            link = self.link = Link(channel, self._session.generation, self.rebuild)
            self._watch(link)
            try:
                with broker_call():
                    await channel.basic_qos(prefetch_count=self._prefetch, timeout=self._session.call_timeout)
                    if not self.paused:
                        await self._consume(link)
            except BROKER_ERRORS as error:
                await self._retire()
                refusal = channel_refusal(error, f"cannot consume {', '.join(self._queues)}")
                if refusal is not None:
                    raise refusal from error
                raise
            self.restarts += 1
            log.info("consumer_started", consumer=self.name, queues=self._queues, generation=link.generation)

    def _watch(self, link: Link) -> None:
        """Hear of the end of this link, and of this one only: news of an older one must not end a newer one."""

        def lost(_: object) -> None:
            if self.link is link:
                log.warning("consumer_lost", consumer=self.name, generation=link.generation)
                self._lost.set()

        def cancelled(frame: spec.Basic.Cancel) -> None:
            if frame.consumer_tag in link.tags.values():
                lost(frame)

        link.channel.on_consumer_cancel_callbacks.add(cancelled)
        link.channel.closing.add_done_callback(lost)

    async def _consume(self, link: Link) -> None:
        def on_message(message: DeliveredMessage) -> None:
            tag = message.delivery_tag
            if tag is None or link.retired:
                return
            if not self._no_ack:
                link.outstanding[tag] = None
            self._on_message(link, message)

        channel = DirectChannel.of(link.channel)
        for queue in self._queues:
            link.tags[queue] = await channel.consume(
                queue, on_message, no_ack=self._no_ack, timeout=self._session.call_timeout
            )
        self.consuming_since = asyncio.get_running_loop().time()

    async def _retire(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            await self._give_up(link)

    async def _give_up(self, link: Link) -> None:
        link.retired = True
        # Not waited for beyond the timeout: where the socket takes nothing, aiormq 7.2.4 says goodbye without one. It
        # ends with the connection then.
        closing = asyncio.ensure_future(link.channel.close(timeout=self._session.call_timeout))
        closing.add_done_callback(_heard)
        await asyncio.wait([closing], timeout=self._session.call_timeout)


def _heard(task: asyncio.Future[None]) -> None:
    """Nobody else asks how it ended, and asyncio would complain."""
    if not task.cancelled():
        task.exception()
