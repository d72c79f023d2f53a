"""One robust connection: brought up within bounded time, brought back after each loss, loud where that cannot help.

aio-pika restores the connection; channels are ours. Its robust channels restore themselves too, but one that cannot be
restored closes the whole connection (aio-pika 10.2.1, `robust_connection.py::_on_connected`), stale deliveries look
like fresh ones, and a consumer that was not restored tells nobody. A component that opens its own channel, and knows
that it did, has none of these troubles.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Literal, cast

import aio_pika
import structlog
from aio_pika.abc import TimeoutType
from aio_pika.robust_connection import RobustConnection
from aiormq.channel import Channel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential

from worker.broker.faults import (
    BROKER_ERRORS,
    broker_call,
    connection_refusal,
    describe,
    hides_the_reason,
    unreachable_hint,
)
from worker.broker.probe import handshake
from worker.broker.tolerant import tolerate_bad_properties
from worker.broker.url import BrokerUrl
from worker.errors import BrokerRefused, BrokerTurnedAway, BrokerUnreachable, BrokerUntrusted, WorkerError

log = structlog.get_logger(__name__)

tolerate_bad_properties()

Role = Literal["consume", "publish", "control"]

#: Longest wait for one answer of the broker.
CALL_TIMEOUT = 10.0
_FIRST_RECONNECT = 0.5
#: A broker that takes connections again has us back within 10 s, consumers (2 s) and their declarations included.
_SLOWEST_RECONNECT = 3.0


class _Connection(RobustConnection):
    """Closed where it could not be made.

    aio-pika leaves that to the collector, which may come when no loop runs: then a coroutine is never awaited, and says
    so on standard error. One whose connecting was cancelled would go on trying.
    """

    async def connect(self, timeout: TimeoutType = None) -> None:
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


class Session:
    """A connection for one role: `await start()`, then `open_channel()`; `failed()` tells what no retry will mend."""

    def __init__(
        self, role: Role, url: BrokerUrl, *, start_timeout: float = 30.0, call_timeout: float = CALL_TIMEOUT
    ) -> None:
        self.role = role
        self.url = url
        self.call_timeout = call_timeout
        self.version = "unknown"
        #: Grows with every channel opened; a delivery of an older generation is stale.
        self.generation = 0
        self.connections = 0
        #: Why a connection that was lost does not come back, as long as only the broker's owner can mend it.
        self.trouble: str | None = None
        self._start_timeout = start_timeout
        self._connection: RobustConnection | None = None
        self._failure: asyncio.Future[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment, as far as we know."""
        connection = self._connection
        return connection is not None and connection.connected.is_set() and not connection.is_closed

    async def start(self) -> None:
        """Connect. Raises `BrokerRefused` at once, `BrokerUnreachable` after `start_timeout` seconds of trying."""
        self._failure = asyncio.get_running_loop().create_future()
        attempts = AsyncRetrying(
            stop=stop_after_delay(self._start_timeout),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            retry=retry_if_exception_type(BROKER_ERRORS),
            before_sleep=self._log_attempt,
            reraise=True,
        )
        try:
            await attempts(self._connect)
        except BROKER_ERRORS as error:
            raise BrokerUnreachable(
                f"no broker answered at {self.url.masked} within {self._start_timeout:g} s ({describe(error)}); "
                f"check SWARM_AMQP_URL{unreachable_hint(error, tls=self.url.tls is not None)}"
            ) from error

    async def close(self) -> None:
        """Close the connection; bounded, and never raises for what the broker does meanwhile."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(*BROKER_ERRORS):
            async with asyncio.timeout(self.call_timeout):
                with broker_call():
                    await connection.close()

    async def open_channel(self, *, confirms: bool = False) -> Channel:
        """A fresh channel. Raises one of `BROKER_ERRORS`, after `call_timeout` at the latest."""
        connection = self._connection
        if connection is None:
            raise ConnectionError(f"the {self.role} session is not started")
        async with asyncio.timeout(self.call_timeout):
            await connection.connected.wait()
            transport = connection.transport
            if transport is None:
                raise ConnectionError(f"the {self.role} connection is down")
            # A large buffer of frames: the default of 10 costs a task switch every third message.
            with broker_call():
                channel = await transport.connection.channel(
                    publisher_confirms=confirms,
                    on_return_raises=True,
                    frame_buffer_size=1000,
                    timeout=self.call_timeout,
                )
        self.generation += 1
        return cast("Channel", channel)

    def fail(self, error: WorkerError) -> None:
        """Report what no retry will mend; the first report stands."""
        if isinstance(error, BrokerRefused):
            error = BrokerTurnedAway(str(error))
        if self._failure is not None and not self._failure.done():
            log.error("broker_session_failed", role=self.role, error=str(error))
            self._failure.set_exception(error)
            self._failure.exception()

    async def failed(self) -> None:
        """Waits; raises what ended this session for good: `BrokerTurnedAway`, or a component's `WorkerError`."""
        if self._failure is None:
            raise RuntimeError("the session is not started")
        await asyncio.shield(self._failure)

    async def _connect(self) -> None:
        try:
            with broker_call():
                connection = await aio_pika.connect_robust(
                    self.url.dial(self.role),
                    ssl_context=self.url.tls,
                    timeout=self.url.connection_timeout,
                    connection_class=_Connection,
                    reconnect_interval=_FIRST_RECONNECT,
                )
        except BROKER_ERRORS as error:
            refusal = await self._refusal(error)
            if refusal is not None:
                raise refusal from error
            raise
        self._connection = connection
        connection.close_callbacks.add(self._on_close)
        connection.reconnect_callbacks.add(self._on_reconnect)
        self._note_broker()

    def _note_broker(self) -> None:
        self.connections += 1
        self.trouble = None
        connection = self._connection
        transport = connection.transport if connection is not None else None
        properties = transport.connection.server_properties if transport is not None else None
        self.version = str((properties or {}).get("version", "unknown"))
        log.info(
            "broker_connected",
            role=self.role,
            broker=self.url.masked,
            version=self.version,
            **effective_semantics(self.version),
        )

    async def _refusal(self, error: BaseException) -> BrokerRefused | None:
        if hides_the_reason(error):
            try:
                await asyncio.to_thread(handshake, self.url)
            except OSError as reason:
                return connection_refusal(reason, self.url.masked)
        return connection_refusal(error, self.url.masked)

    async def _on_close(self, _: object, error: BaseException | None) -> None:
        """Called for each loss of the connection and each attempt that failed to bring it back."""
        connection = self._connection
        if connection is None or connection.close_called:
            return
        refusal = await self._refusal(error) if error is not None else None
        if isinstance(refusal, BrokerUntrusted):
            # Renewing a certificate is the broker's owner's to do, and no restart of ours helps: not ready, and on with
            # the attempts. Ending with 78 instead would keep us down after it was renewed.
            self.trouble = str(refusal)
            log.error("broker_not_trusted", role=self.role, error=self.trouble)
        elif refusal is not None:
            self.fail(refusal)
        # aio-pika waits a fixed time between attempts; this makes it back off, not to storm a broker that returns.
        slower = min(_SLOWEST_RECONNECT, connection.reconnect_interval * 2)
        connection.reconnect_interval = slower * random.uniform(0.75, 1.0)  # noqa: S311 - jitter, no secret
        log.warning("broker_connection_lost", role=self.role, error=describe(error) if error is not None else None)

    def _on_reconnect(self, _: object) -> None:
        if self._connection is not None:
            self._connection.reconnect_interval = _FIRST_RECONNECT
            self._note_broker()

    def _log_attempt(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        log.warning(
            "broker_unreachable",
            role=self.role,
            broker=self.url.masked,
            attempt=state.attempt_number,
            error=describe(error) if error else None,
        )


def effective_semantics(version: str) -> dict[str, str | int | None]:
    """What this broker does by itself, of the things that differ between versions (RabbitMQ's release notes)."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return {"default_delivery_limit": None, "nack_counts": "unknown", "ack_timeout_closes": "unknown"}
    return {
        "default_delivery_limit": 20 if major >= 4 else None,  # noqa: PLR2004 - a version
        "nack_counts": "no" if (major, minor) >= (4, 3) else "yes",
        "ack_timeout_closes": "consumer" if (major, minor) >= (4, 3) else "channel",
    }
