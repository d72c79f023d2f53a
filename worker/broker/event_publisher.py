"""Publishing events, with the journal or without: it keeps all of them, and must keep none from its subscribers.

RabbitMQ forgets what was declared within about the last second before a kill -9 (measured, 3.10.8: Ra writes the names
of its members down only then). A stream is lost by that for good: "down or inaccessible", to be declared, unbound and
deleted no more; messages go past it, so that an event for which nobody else has a queue came back, and all others
waited behind it. Nothing of ours can mend that, and whoever does needs time: events go out meanwhile.
"""

from __future__ import annotations

import time

import structlog
from aiormq.exceptions import ChannelNotFoundEntity

from worker.broker.faults import describe
from worker.broker.port import OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.topology import TopologyMode, ensure_topology, exchanges, journal_objects
from worker.errors import PublishFailed

log = structlog.get_logger(__name__)

#: How long events wait for the journal, in s: a broker that has just started may still be bringing it up.
PATIENCE = 5.0


class EventPublisher(RabbitPublisher):
    """Looks after the exchange and its journal on each new connection, and for each event while the journal is down."""

    def __init__(self, session: Session, topology: TopologyMode, *, patience: float = PATIENCE) -> None:
        super().__init__(session, restore=self._look)
        #: Why events go out without the journal.
        self.journal_trouble: str | None = None
        self._topology: TopologyMode = topology
        self._patience = patience
        self._down_since: float | None = None
        self._looked_at = 0  # the connection, by its number

    async def publish(self, message: OutgoingMessage, *, mandatory: bool = True, timeout: float = 10.0) -> None:
        """See `port.Publisher`. While the journal is down, an event that nobody has a queue for counts as sent."""
        if self._looked_at != self._session.connections or self._down_since is not None:
            self.doubt()
        down = self.journal_trouble is not None
        try:
            await super().publish(message, mandatory=mandatory and not down, timeout=timeout)
        except PublishFailed as error:
            if error.reason != "returned" or down or self.journal_trouble is None:
                raise
            await super().publish(message, mandatory=False, timeout=timeout)

    async def _look(self) -> None:
        connection = self._session.connections
        await ensure_topology(self._session, exchanges(), self._topology)
        try:
            await ensure_topology(self._session, journal_objects(), self._topology)
        except ChannelNotFoundEntity as error:
            now = time.monotonic()
            self._down_since = self._down_since or now
            if now - self._down_since < self._patience:
                raise
            if self.journal_trouble is None:
                log.warning("journal_down", error=describe(error))
            self.journal_trouble = describe(error)
        else:
            if self.journal_trouble is not None:
                log.info("journal_up")
            self.journal_trouble = self._down_since = None
        self._looked_at = connection
