"""The operator's side of control: send a command, follow what the workers answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
import structlog
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from worker.broker.answers import Answer, Heard
from worker.broker.consumer import Consumer
from worker.broker.faults import BROKER_ERRORS, broker_call
from worker.broker.inbound import RabbitMessage
from worker.broker.link import Link
from worker.broker.port import OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.topology import ensure_topology, jobs_queue, reply_queue, temporary_queue
from worker.errors import BrokerRefused, NoAnswer, NoListener, PublishFailed
from worker.wire.commands import decode_reply
from worker.wire.names import CONTROL_EXCHANGE

log = structlog.get_logger(__name__)

_REPLIES_EXPIRE_MS = 60_000
_PREFETCH = 100
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 3.0
#: How long a job waits for a worker of its scenario before it is not sent at all, in s: one may be reconnecting.
_WORKER_PATIENCE = 2.0


#: Given the message, the headers to send with it: its signature.
Sign = Callable[[OutgoingMessage], Mapping[str, str]]


class ControlClient:
    """`await start()`, then `send(...)` as often as you like, then `await close()`."""

    def __init__(self, session: Session, *, client_id: str, sign: Sign | None = None) -> None:
        self.reply_to = reply_queue(client_id)
        self._session = session
        self._sign = sign
        self._publisher = RabbitPublisher(session)
        #: By command id; None in the queue means that the connection was lost meanwhile.
        self._waiting: dict[str, asyncio.Queue[Answer | None]] = {}
        self._consumer = Consumer(
            session,
            name=self.reply_to,
            prepare=self._prepare,
            on_message=self._on_message,
            prefetch=_PREFETCH,
            no_ack=True,
        )

    async def start(self) -> None:
        """Make the queue for answers. Raises `BrokerRefused`, or one of `faults.BROKER_ERRORS`."""
        await self._consumer.start()

    async def close(self) -> None:
        """Delete the queue for answers."""
        await self._consumer.delete_queue(self.reply_to)
        await self._consumer.stop()
        await self._publisher.close()

    async def send(
        self,
        *,
        routing_key: str,
        command_id: str,
        body: bytes,
        timeout: float,
        workers: int | None = 1,
        first_words: bool = False,
    ) -> AsyncIterator[Answer]:
        """Send a command to `swarm.control`; yields answers until `workers` of them were final.

        With `workers=None` (how many there are is not known) it goes on until all that spoke within `answers.GATHER`
        seconds of the first one have ended. `first_words` ends it before that: once each has said anything. The same
        command is sent again after a loss of the connection, and after a long silence: its id makes that safe.

        Raises `NoListener` where nobody listens, `NoAnswer` after `timeout` seconds or where a worker that accepted is
        gone, `BrokerRefused` where it may not.
        """
        message = OutgoingMessage(
            exchange=CONTROL_EXCHANGE,
            routing_key=routing_key,
            body=body,
            message_id=command_id,
            correlation_id=command_id,
            reply_to=self.reply_to,
            type="swarm.command",
            user_id=self._session.url.login,
        )
        if self._sign is not None:
            message = msgspec.structs.replace(message, headers=dict(self._sign(message)))
        await self._require_worker(routing_key)
        answers: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._waiting[command_id] = answers
        heard = Heard(workers, first_words=first_words, timeout=timeout)
        resend = True
        try:
            while not heard.enough():
                # Never around the yield: a timeout there would strike at whatever our caller is doing.
                try:
                    async with asyncio.timeout_at(heard.look_again(routing_key)):
                        if resend:
                            await self._send(message)
                            resend = False
                        reply = await answers.get()
                except TimeoutError as error:
                    if heard.over() and not heard.enough():
                        raise NoAnswer(heard.missing(routing_key)) from error
                    resend = heard.silent(routing_key)
                    continue
                except NoListener as error:
                    if heard.words:
                        raise NoAnswer(heard.gone()) from error
                    raise
                resend = reply is None
                if reply is not None and heard.note(reply):
                    yield reply
        finally:
            del self._waiting[command_id]

    async def _require_worker(self, routing_key: str) -> None:
        """`NoListener` where a job's queue has no consumer: there it would lie, and surprise somebody much later."""
        kind, _, scenario = routing_key.partition(".")
        if kind != "job":
            return
        deadline = asyncio.get_running_loop().time() + _WORKER_PATIENCE
        while await self._consumers(jobs_queue(scenario)) == 0:
            if asyncio.get_running_loop().time() >= deadline:
                raise NoListener(_nobody(routing_key))
            await asyncio.sleep(_FIRST_PAUSE)

    async def _consumers(self, queue: str) -> int | None:
        """Of a queue; None where it cannot be seen: no permission (RabbitMQ asks for one from 4.3), no connection."""
        try:
            channel = await self._session.open_channel()
            try:
                with broker_call():
                    declared = await channel.queue_declare(queue, passive=True, timeout=self._session.call_timeout)
            finally:
                if not channel.is_closed:
                    with broker_call():
                        await channel.close(timeout=self._session.call_timeout)
        except ChannelNotFoundEntity:
            return 0
        except BROKER_ERRORS:
            return None
        return declared.consumer_count

    async def _send(self, message: OutgoingMessage) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._publisher.publish(message)
            except PublishFailed as error:
                if error.reason in ("returned", "no_exchange"):
                    raise NoListener(_nobody(message.routing_key)) from error
                if error.reason == "refused":
                    raise BrokerRefused(f"the command was not taken: {error}") from error
                log.info("command_sent_again", command_id=message.message_id, error=str(error))
            else:
                return
            await asyncio.sleep(pause)  # the caller's timeout bounds how often
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _prepare(self) -> list[str]:
        await ensure_topology(self._session, [temporary_queue(self.reply_to, expires_ms=_REPLIES_EXPIRE_MS)], "auto")
        for answers in self._waiting.values():
            answers.put_nowait(None)
        return [self.reply_to]

    def _on_message(self, link: Link, message: DeliveredMessage) -> None:
        inbound = RabbitMessage(link, message)
        try:
            reply = decode_reply(inbound.body)
        except ValueError as error:
            log.warning("reply_not_understood", error=str(error))
            return
        answers = self._waiting.get(reply.command_id)
        if answers is not None:
            answers.put_nowait(Answer(**msgspec.structs.asdict(reply), worker=inbound.headers.get("worker", "")))


def _nobody(routing_key: str) -> str:
    kind, _, name = routing_key.partition(".")
    who = {"worker": f"is named {name}", "job": f"serves {name}", "scenario": f"serves {name}"}.get(kind, "runs")
    return f"no worker listens to {routing_key!r}: none {who} at this broker; start one, or check SWARM_AMQP_URL"
