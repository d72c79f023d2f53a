"""One process's connections to the broker in memory: deliveries take time, acknowledgements and confirms get lost.

A connection that is cut is known to the broker at once and to the process a little later; until then it works on
deliveries that are somebody else's already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.faults.simulation.faults import Faults
from tests.faults.simulation.loop import SimulatedLoop
from tests.faults.simulation.process import Process
from worker.broker.memory import (
    Held,
    MemoryBroker,
    MemoryConsumer,
    MemoryControl,
    MemoryDelivery,
)
from worker.broker.port import ControlMessage, Delivery, OutgoingMessage
from worker.broker.topology import records_queue
from worker.errors import PublishFailed

#: Longest a process takes to see that its connection is gone and to have another, in s.
_RECONNECT = 2.0
#: How long a publish waits for a confirm that does not come, in s.
_CONFIRM_TIMEOUT = 4.0


class SimulatedDelivery(MemoryDelivery):
    """Stale once the process knows that the channel is gone, which is later than it goes."""

    _consumer: SimulatedSubscriber

    @property
    def stale(self) -> bool:
        return self._generation != self._consumer.known_generation


class SimulatedSubscriber(MemoryConsumer):
    """See `worker.broker.port.Subscription`."""

    def __init__(
        self,
        broker: MemoryBroker,
        scenario: str,
        inbox: asyncio.Queue[Delivery],
        *,
        prefetch: int,
        process: Process,
        loop: SimulatedLoop,
        faults: Faults,
    ) -> None:
        broker.declare_scenario(scenario)
        super().__init__(broker.queues[records_queue(scenario)], prefetch)
        self.scenario = scenario
        self.known_generation = self.generation
        self._connected = True
        self._inbox = inbox
        self._process = process
        self._loop = loop
        self._faults = faults

    # ------------------------------------------------------------ the broker's side

    def fill(self) -> None:
        """A channel that is gone gets nothing."""
        if self._connected:
            super().fill()

    def deliver(self, tag: int, held: Held) -> None:
        """On its way."""
        delivery = SimulatedDelivery(self, tag, held, self.scenario)
        self._loop.call_soon(self._inbox.put_nowait, delivery, context=self._process.context)

    def cut(self) -> None:
        """The connection is gone; the process will know, and have another one."""
        if not self._connected:
            return
        self._connected = False
        self.lose_channel()
        wait = self._faults.random.uniform(0.0, _RECONNECT)
        self._loop.call_later(wait, self._reconnect, context=self._process.context)

    def leave(self) -> None:
        """The process is gone, or consumes no more."""
        self._connected = False
        super().leave()

    # ------------------------------------------------------------ the process's side

    def _reconnect(self) -> None:
        self._connected = True
        self.known_generation = self.generation
        self.fill()

    async def start(self) -> None:
        """Consume."""
        await self.resume()

    async def pause(self) -> None:
        """Take no more."""
        self.paused = True

    async def resume(self) -> None:
        """Take deliveries again."""
        if not self._process.unwinding:
            self.paused = False
            self.fill()

    async def stop(self) -> None:
        """Let go; what is unsettled is redelivered."""
        if not self._process.unwinding:
            self.leave()

    async def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge a group; the connection may be gone before the broker reads it, or half of it."""
        if self._process.unwinding:
            return
        await asyncio.sleep(0)
        if self._faults.dies(self._process, "before_ack"):
            await self._loop.create_future()
        if self._faults.lost_acks > 0:
            self._faults.lost_acks -= 1
            self._faults.note("ack lost")
            self.cut()
            return
        for place, delivery in enumerate(deliveries):
            if place == len(deliveries) // 2 and self._faults.dies(self._process, "half_acked"):
                await self._loop.create_future()
            await delivery.ack()
        if self._faults.dies(self._process, "after_ack"):
            await self._loop.create_future()


class SimulatedPublisher:
    """See `worker.broker.port.Publisher`."""

    def __init__(self, broker: MemoryBroker, process: Process, loop: SimulatedLoop, faults: Faults) -> None:
        self._broker = broker
        self._process = process
        self._loop = loop
        self._faults = faults

    async def prepare(self) -> None:
        """What it publishes to is there."""

    async def publish(self, message: OutgoingMessage, *, mandatory: bool = True, timeout: float = 10.0) -> None:
        """Ends as the faults say."""
        if self._process.unwinding:
            raise asyncio.CancelledError
        await asyncio.sleep(0)
        if self._faults.dies(self._process, "before_publish"):
            await self._loop.create_future()
        end = self._faults.publish_end()
        if end in ("nacked", "returned"):
            raise PublishFailed(f"{end}, as planned", reason=end)
        self._broker.send(message, mandatory=mandatory)
        if self._faults.dies(self._process, "after_publish"):
            await self._loop.create_future()
        if end == "lost_confirm":
            await asyncio.sleep(_CONFIRM_TIMEOUT)
            raise PublishFailed("no confirm came in time", reason="timeout")
        await asyncio.sleep(0)


class SimulatedControl(MemoryControl):
    """See `worker.broker.control.CommandSource`."""

    def __init__(
        self, broker: MemoryBroker, *, process: Process, boot_id: str, scenarios: Sequence[str], loop: SimulatedLoop
    ) -> None:
        super().__init__(broker, worker_id=process.name, boot_id=boot_id, scenarios=scenarios)
        self._process = process
        self._loop = loop
        self._listening = False

    async def start(self) -> None:
        """Listen."""
        self._listening = True
        await super().start()

    async def last_call(self) -> None:
        """Take in nothing that is sent from now on."""
        self._broker.delete(self._name)

    async def stop(self) -> None:
        """Listen no more."""
        self._listening = False
        if not self._process.unwinding:
            await super().stop()

    async def reply(self, to: ControlMessage, body: bytes) -> bool:
        """Answer, as long as there is somebody who can."""
        return not self._process.unwinding and await super().reply(to, body)

    def cut(self) -> None:
        """What was not acknowledged goes back, and comes to whoever listens; to this one once it is connected again."""
        if self._listening:
            for consumer in (self, *self._jobs):
                consumer.paused = True
                consumer.lose_channel()
            self._loop.call_later(_RECONNECT, self._reconnect, context=self._process.context)

    def forget(self) -> None:
        """The process is dead: its consumers go, its own queue stays a while."""
        self._listening = False
        for consumer in (self, *self._jobs):
            consumer.leave()

    def _reconnect(self) -> None:
        if self._listening:
            for consumer in (self, *self._jobs):
                consumer.paused = False
                consumer.fill()
