"""Tells a broker that is away, which is waited for, from a connection of ours that is broken, which a restart mends.

The client library brings a lost connection back, as far as is known; reconnecting is the least stable part of it
(aio-pika #231, #563, #622, #658). While the broker is away, it is right to go on trying for as long as that takes: the
worker is not ready and says so, and a restart would not help. But where the broker lets a new connection in, and ours
has not come back for a minute, it never will.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from worker.broker.probe import handshake
from worker.broker.session import Session
from worker.broker.url import BrokerUrl
from worker.errors import WorkerError

log = structlog.get_logger(__name__)


async def supervise(
    session: Session,
    *,
    interval: float = 10.0,
    patience: float = 60.0,
    knock: Callable[[BrokerUrl], object] = handshake,
) -> None:
    """Runs until cancelled. Raises `WorkerError` (exit 70) after `patience` seconds in which only a new one would do.

    `knock` makes a connection by other means, in a thread; an `OSError` of it says that the broker is away.
    """
    loop = asyncio.get_running_loop()
    let_in_since: float | None = None
    while True:
        await asyncio.sleep(interval)
        if session.connected:
            let_in_since = None
            continue
        try:
            await asyncio.to_thread(knock, session.url)
        except OSError:  # away, or it refuses us: that the session finds out itself
            let_in_since = None
            continue
        if session.connected:
            continue
        let_in_since = let_in_since or loop.time()
        log.warning("broker_lets_others_in", role=session.role, seconds=round(loop.time() - let_in_since))
        if loop.time() - let_in_since >= patience:
            raise WorkerError(
                f"the broker at {session.url.masked} lets new connections in, but the {session.role} connection has "
                f"not come back for {patience:g} s; a fresh process will have one"
            )
