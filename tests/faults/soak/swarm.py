"""Swarm nodes for a soak: they publish at a pace, whatever becomes of the broker."""

from __future__ import annotations

import asyncio

from tests.faults.oracle import UNCONFIRMED, Oracle
from tests.integration.foreign_node import node_at


class Swarm:
    """The nodes: they publish at a pace, come back to a broker that was away, and send again what was not confirmed."""

    def __init__(self, oracle: Oracle, url: str, scenarios: tuple[str, ...]) -> None:
        #: Batches of each scenario in a second.
        self.rate = 0.0
        self._oracle = oracle
        self._url = url
        self._scenarios = scenarios
        self._running = asyncio.Event()
        self._idle = asyncio.Event()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                async with node_at(self._url) as node:
                    await self._oracle.resend(node)
                    while not node.channel.is_closed and not self._oracle.attempted:
                        if not self._running.is_set():
                            self._idle.set()
                            await self._running.wait()
                            self._idle.clear()
                        await self._oracle.publish_many(node, self._scenarios, 1)
                        await asyncio.sleep(1 / self.rate)  # the pace
            except UNCONFIRMED:
                await asyncio.sleep(0.5)  # the broker is away; what was attempted is kept

    async def pause(self) -> None:
        """Returns once nothing is on its way."""
        self._running.clear()
        await self._idle.wait()

    def resume(self) -> None:
        """Go on."""
        self._running.set()
