"""Connecting: within bounded time, and without retrying what cannot work."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

import worker.broker.consumer
from tests.integration.conftest import NewSession
from tests.integration.proxy import Direction, proxied
from worker.broker.local import main
from worker.broker.probe import handshake
from worker.broker.session import Session, effective_semantics
from worker.broker.subscriber import Subscriber
from worker.broker.url import parse_amqp_url
from worker.errors import BrokerRefused, BrokerUnreachable

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = pytest.mark.rabbitmq
Eventually = Callable[..., Awaitable[None]]


async def test_the_version_is_known(new_session: NewSession, amqp_url: str) -> None:
    session = await new_session()
    assert session.connected
    assert session.version == await asyncio.to_thread(handshake, parse_amqp_url(amqp_url))
    assert effective_semantics(session.version)["nack_counts"] in ("yes", "no")


def test_versions_differ_in_what_they_do_by_themselves() -> None:
    assert effective_semantics("3.10.8") == {
        "default_delivery_limit": None, "nack_counts": "yes", "ack_timeout_closes": "channel",
    }  # fmt: skip
    assert effective_semantics("4.1.0")["default_delivery_limit"] == 20
    assert effective_semantics("4.3.2")["ack_timeout_closes"] == "consumer"
    assert effective_semantics("weird")["nack_counts"] == "unknown"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("guest:guest", "guest:wrong"), "credentials"),
        (lambda url: url.rsplit("/", 1)[0] + "/no-such-vhost", "virtual host"),
    ],
)
async def test_credentials_and_virtual_host_are_refused_at_once(
    amqp_url: str, change: Callable[[str], str], words: str
) -> None:
    """No retry will mend them: exit 78, not a reconnect loop."""
    url = parse_amqp_url(change(amqp_url))
    session = Session("consume", url, start_timeout=30)
    started = time.monotonic()
    with pytest.raises(BrokerRefused, match=words) as refused:
        await session.start()
    assert time.monotonic() - started < 10
    assert refused.value.exit_code == 78
    assert "wrong" not in str(refused.value)
    with pytest.raises(PermissionError):
        await asyncio.to_thread(handshake, url)


async def test_no_broker_is_told_within_the_time_given() -> None:
    session = Session("consume", parse_amqp_url("amqp://127.0.0.1:1/"), start_timeout=1)
    started = time.monotonic()
    with pytest.raises(BrokerUnreachable, match="SWARM_AMQP_URL") as unreachable:
        await session.start()
    assert time.monotonic() - started < 8
    assert unreachable.value.exit_code == 75


_COLLECTED_ELSEWHERE = """
import asyncio, gc, threading
from worker.broker.session import Session
from worker.broker.url import parse_amqp_url
from worker.errors import BrokerUnreachable

async def fail():
    try:
        await Session("consume", parse_amqp_url("amqp://127.0.0.1:1/"), start_timeout=0.1).start()
    except BrokerUnreachable:
        print("unreachable")

gc.disable()
loop = asyncio.new_event_loop()
loop.run_until_complete(fail())
collector = threading.Thread(target=gc.collect)
collector.start()
collector.join()
"""


def test_what_could_not_be_connected_leaves_nothing_to_the_collector() -> None:
    """It may come when no loop runs: then aio-pika's own clean-up is a coroutine that nobody awaits."""
    done = subprocess.run(
        [sys.executable, "-c", _COLLECTED_ELSEWHERE], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.endswith("unreachable\n")
    assert "never awaited" not in done.stderr


async def test_a_broker_that_comes_late_is_waited_for(amqp_url: str) -> None:
    async with proxied(amqp_url) as (proxy, url):
        proxy.refuse()
        session = Session("consume", parse_amqp_url(url), start_timeout=20)
        starting = asyncio.create_task(session.start())
        while proxy.accepted < 2:  # noqa: ASYNC110 - the proxy has no event for it
            await asyncio.sleep(0.02)
        proxy.refuse(refusing=False)
        await starting
        assert session.connected
        await session.close()


async def test_a_cut_connection_comes_back(new_session: NewSession, amqp_url: str, eventually: Eventually) -> None:
    async with proxied(amqp_url) as (proxy, url):
        session = await new_session(url=url)
        for times in (2, 3):
            proxy.cut()
            await eventually(lambda times=times: session.connections == times and session.connected)
        channel = await session.open_channel()
        await channel.close()
        await session.close()


async def test_a_refusal_after_the_start_is_reported_and_not_retried_in_silence(
    broker: Broker, amqp_url: str, new_session: NewSession
) -> None:
    """The virtual host is deleted under us: every reconnect is refused."""
    session = await new_session()
    broker.control("delete_vhost", amqp_url.rsplit("/", 1)[1])
    with pytest.raises(BrokerRefused, match="virtual host") as refused:
        await asyncio.wait_for(session.failed(), 15)
    # 75, for whoever supervises to start it again: it was let in before. With 78 that would be the end of it.
    assert refused.value.exit_code == 75


async def test_permissions_that_are_withdrawn_are_waited_for_a_while_and_end_the_worker_then(
    broker: Broker,
    amqp_url: str,
    scenario: str,
    new_session: NewSession,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A queue's node that restarts refuses likewise, so not at the first word; but not in silence for ever either."""
    vhost = amqp_url.rsplit("/", 1)[1]
    session = await new_session()
    subscriber = Subscriber(session, scenario, asyncio.Queue(10), prefetch=10)
    await subscriber.start()
    broker.control("set_permissions", "-p", vhost, "guest", "^$", "^$", "^$")
    subscriber.rebuild()
    await eventually(lambda: not subscriber.consuming)
    broker.control("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    await eventually(lambda: subscriber.consuming)
    monkeypatch.setattr(worker.broker.consumer, "_REFUSED_SECONDS", 0.5)
    broker.control("set_permissions", "-p", vhost, "guest", "^$", "^$", "^$")
    subscriber.rebuild()
    with pytest.raises(BrokerRefused, match="permission") as refused:
        await asyncio.wait_for(session.failed(), 15)
    assert refused.value.exit_code == 75
    await subscriber.stop()


async def test_a_connection_cut_anywhere_in_its_handshake_is_made_again(amqp_url: str) -> None:
    """Either way, after so many bytes."""
    async with proxied(amqp_url) as (proxy, url):
        sweep: dict[Direction, range] = {"down": range(0, 540, 45), "up": range(0, 400, 40)}
        for direction, places in sweep.items():
            for place in places:
                trap = proxy.cut_after(place, direction)
                session = Session("consume", parse_amqp_url(url), start_timeout=10)
                await session.start()
                assert trap.fired.is_set(), (direction, place)
                await session.close()


async def test_a_frozen_broker_does_not_hold_a_call_for_ever(new_session: NewSession, amqp_url: str) -> None:
    async with proxied(amqp_url) as (proxy, url):
        session = await new_session(url=url, call_timeout=0.5)
        proxy.freeze()
        with pytest.raises(TimeoutError):
            await session.open_channel()
        proxy.thaw()
        await session.close()


def test_a_command_runs_beside_a_broker(broker: Broker, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_AMQP_URL", amqp_url)
    assert main(["--", "/bin/sh", "-c", f'test "$SWARM_AMQP_URL" = "{amqp_url}" && exit 7']) == 7


def test_a_wrong_url_is_told_and_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWARM_AMQP_URL", "amqp://guest:guest@127.0.0.1:1/")
    assert main(["--", "/bin/sh", "-c", "exit 0"]) == 75
    assert "no broker answers" in capfd.readouterr().err
