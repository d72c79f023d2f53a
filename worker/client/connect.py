"""Connecting: a publisher or a follower with a broker connection of its own, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from worker.broker.events import EventSubscriber
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.url import parse_amqp_url
from worker.client.following import EventFollower
from worker.client.logs import follow_the_programs_logging
from worker.client.publisher import PublisherLimits, RecordPublisher
from worker.clock import Clock


@asynccontextmanager
async def connect_publisher(
    amqp_url: str,
    *,
    scenario: str,
    producer_id: str,
    state_dir: Path,
    limits: PublisherLimits | None = None,
    clock: Clock | None = None,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    allow_plaintext: bool = False,
    start_timeout: float = 30.0,
    close_timeout: float = 30.0,
) -> AsyncIterator[RecordPublisher]:
    """A `RecordPublisher` on a connection that comes back by itself; flushed for at most `close_timeout` s at the end.

    Needs the right to write to the exchange `swarm.records`, nothing else; while no worker has made it yet, batches
    wait in the spool. Raises `BrokerUnreachable`, `BrokerRefused`, `ConfigurationError`.

    At the start a broker that is away is waited for, `start_timeout` s, and then told: a wrong address is as likely,
    and nothing was taken that could be lost. Whoever wants to wait longer gives it more. Later it is never told:
    batches wait in the spool, and `publish` waits where that is full.
    """
    follow_the_programs_logging()
    url = parse_amqp_url(
        amqp_url, ca_file=ca_file, cert_file=cert_file, key_file=key_file, allow_plaintext=allow_plaintext
    )
    session = Session("publish", url, start_timeout=start_timeout)
    await session.start()
    try:
        sending = RabbitPublisher(session)
        publisher = RecordPublisher(
            sending,
            scenario=scenario,
            producer_id=producer_id,
            state_dir=state_dir,
            limits=limits,
            clock=clock,
            user_id=url.login,
        )
        await publisher.start()
        try:
            yield publisher
        finally:
            await publisher.close(close_timeout)
            await sending.close()
    finally:
        await session.close()


@asynccontextmanager
async def connect_follower(
    amqp_url: str,
    *,
    name: str,
    keys: Sequence[str] = ("learning.#",),
    durable: bool = False,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    allow_plaintext: bool = False,
) -> AsyncIterator[EventFollower]:
    """An `EventFollower` on a connection that comes back by itself.

    `name` is a service's or node's own name. With `durable` its queue fills while it is away; without, it starts with
    the next event. `keys` are topics: `learning.applied`, `learning.trained.<scenario>`, `learning.#`.
    Raises `BrokerUnreachable`, `BrokerRefused`, `ConfigurationError`.
    """
    follow_the_programs_logging()
    url = parse_amqp_url(
        amqp_url, ca_file=ca_file, cert_file=cert_file, key_file=key_file, allow_plaintext=allow_plaintext
    )
    session = Session("consume", url)
    await session.start()
    try:
        events = EventSubscriber(session, name=name, keys=keys, durable=durable)
        await events.start()
        try:
            yield EventFollower(events)
        finally:
            await events.stop()
    finally:
        await session.close()
