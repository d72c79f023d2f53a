"""Commands and their answers, over a real broker, through the client an operator uses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.integration.conftest import NewSession
from tests.integration.proxy import proxied
from worker.broker.answers import Answer
from worker.broker.control import MAX_REPLY, ControlListener
from worker.broker.control_client import ControlClient
from worker.broker.events import EventSubscriber
from worker.broker.port import ControlMessage, OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.errors import NoAnswer, NotFound

pytestmark = pytest.mark.rabbitmq
Eventually = Callable[..., Awaitable[None]]
Work = Callable[[ControlListener, ControlMessage], Awaitable[None]]
StartWorker = Callable[..., Awaitable[ControlListener]]


def answer(message: ControlMessage, status: str, **result: object) -> bytes:
    return json.dumps({"command_id": message.message_id, "status": status, "result": result, "error": None}).encode()


async def accept_and_do(listener: ControlListener, message: ControlMessage) -> None:
    await message.ack()
    await listener.reply(message, answer(message, "accepted"))
    await listener.reply(message, answer(message, "done", said=message.body.decode()))


@pytest.fixture
async def start_worker(new_session: NewSession, scenario: str) -> AsyncIterator[StartWorker]:
    """Starts a control listener that treats each command with `work`."""
    tasks: list[asyncio.Task[None]] = []

    async def start(worker_id: str, work: Work = accept_and_do, **session: str) -> ControlListener:
        control = await new_session("control", **session)
        listener = ControlListener(
            control, RabbitPublisher(control), worker_id=worker_id, boot_id="b1", scenarios=[scenario]
        )
        await listener.start()

        async def serve() -> None:
            while True:
                await work(listener, await listener.inbox.get())

        tasks.append(asyncio.create_task(serve()))
        return listener

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def client(new_session: NewSession) -> AsyncIterator[ControlClient]:
    client = ControlClient(await new_session("control"), client_id="operator-1")
    await client.start()
    yield client
    await client.close()


async def ask(client: ControlClient, key: str, *, timeout: float = 10, workers: int | None = 1) -> list[Answer]:
    sent = client.send(routing_key=key, command_id=f"id-{key}", body=b"hello", timeout=timeout, workers=workers)
    return [reply async for reply in sent]


async def test_a_command_is_accepted_then_done(start_worker: StartWorker, client: ControlClient) -> None:
    await start_worker("w1")
    replies = await ask(client, "worker.w1")
    assert [(reply.status, reply.worker) for reply in replies] == [("accepted", "w1"), ("done", "w1")]
    assert replies[1].result == {"said": "hello"}


async def test_a_broadcast_gathers_the_answers_of_all(start_worker: StartWorker, client: ControlClient) -> None:
    for name in ("w1", "w2", "w3"):
        await start_worker(name)
    counted = await ask(client, "all", workers=3)
    assert sorted(reply.worker for reply in counted if reply.final) == ["w1", "w2", "w3"]
    listened = await ask(client, "all", workers=None, timeout=1)
    assert sorted(reply.worker for reply in listened if reply.final) == ["w1", "w2", "w3"]


async def test_a_command_to_nobody_is_told_at_once(start_worker: StartWorker, client: ControlClient) -> None:
    """A shutdown must not wait in a queue for tomorrow's worker."""
    with pytest.raises(NotFound, match="no worker listens"):
        await ask(client, "all")
    listener = await start_worker("w1")
    with pytest.raises(NotFound, match=r"worker\.w2"):
        await ask(client, "worker.w2")
    await listener.stop()
    with pytest.raises(NotFound, match="no worker listens"):
        await ask(client, "all")


async def test_a_job_that_nobody_can_take_is_not_left_in_its_queue(
    start_worker: StartWorker, client: ControlClient, scenario: str
) -> None:
    """Sent all the same it lay there for a quarter of an hour, while its sender heard nothing."""
    with pytest.raises(NotFound, match=f"none serves {scenario}"):
        await ask(client, f"job.{scenario}")
    first = await start_worker("w1")
    await first.stop()  # the queue stays, without anybody who consumes it
    with pytest.raises(NotFound, match=f"none serves {scenario}"):
        await ask(client, f"job.{scenario}")
    second = await start_worker("w2")
    assert [reply.worker for reply in await ask(client, f"job.{scenario}")] == ["w2", "w2"]
    assert second.inbox.empty()


async def test_a_worker_that_accepted_and_is_gone_is_not_waited_for(
    start_worker: StartWorker, client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a silence the command is sent again, and the broker says that nobody is there."""
    monkeypatch.setattr("worker.broker.answers._SILENCE", 0.3)
    heard: list[Answer] = []

    async def accept_and_leave(listener: ControlListener, message: ControlMessage) -> None:
        await message.ack()
        await listener.reply(message, answer(message, "accepted"))
        await listener.stop()

    await start_worker("w1", accept_and_leave)

    async def send_and_listen() -> None:
        async for reply in client.send(routing_key="worker.w1", command_id="c", body=b"hello", timeout=20):
            heard.append(reply)  # noqa: PERF401 - it raises in the end

    with pytest.raises(NoAnswer, match="w1 accepted it and is gone"):
        await send_and_listen()
    assert [reply.status for reply in heard] == ["accepted"]


async def test_a_last_call_hands_over_what_was_sent_and_turns_away_what_comes_later(
    start_worker: StartWorker, client: ControlClient, new_session: NewSession, eventually: Eventually
) -> None:
    """Nothing that the broker took is left in a queue that is about to be deleted."""
    got: list[str | None] = []
    may_go_on = asyncio.Event()

    async def slowly(listener: ControlListener, message: ControlMessage) -> None:
        await may_go_on.wait()
        got.append(message.message_id)
        await message.ack()

    listener = await start_worker("w1", slowly)
    publisher = RabbitPublisher(await new_session("publish"))
    for number in range(40):  # more than are handed out at once
        one = OutgoingMessage(exchange="swarm.control", routing_key="all", body=b"x", message_id=f"m{number}")
        await publisher.publish(one)
    last_call = asyncio.create_task(listener.last_call())
    may_go_on.set()
    await last_call
    await eventually(lambda: len(got) == 40)
    with pytest.raises(NotFound, match="no worker listens"):
        await ask(client, "all")


async def test_a_worker_that_only_accepts_is_told_apart_from_silence(
    start_worker: StartWorker, client: ControlClient, scenario: str
) -> None:
    async def only_accept(listener: ControlListener, message: ControlMessage) -> None:
        await message.ack()
        await listener.reply(message, answer(message, "accepted"))

    async def say_nothing(listener: ControlListener, message: ControlMessage) -> None:
        await message.ack()

    await start_worker("w1", only_accept)
    with pytest.raises(NoAnswer, match="it was accepted"):
        await ask(client, f"job.{scenario}", timeout=1)
    await start_worker("w2", say_nothing)
    with pytest.raises(NoAnswer, match="is a worker"):
        await ask(client, "worker.w2", timeout=1)


async def test_a_command_is_sent_again_after_the_operators_wire_was_cut(
    start_worker: StartWorker, new_session: NewSession, amqp_url: str, eventually: Eventually
) -> None:
    """Under the same id: the worker that knows it gives the same answer."""
    seen: list[str | None] = []

    async def answer_the_second(listener: ControlListener, message: ControlMessage) -> None:
        await message.ack()
        seen.append(message.message_id)
        if len(seen) > 1:
            await listener.reply(message, answer(message, "done"))

    await start_worker("w1", answer_the_second)
    async with proxied(amqp_url) as (proxy, url):
        client = ControlClient(await new_session("control", url=url), client_id="operator-2")
        await client.start()
        asking = asyncio.create_task(ask(client, "all", timeout=20))
        await eventually(lambda: len(seen) == 1)
        proxy.cut()
        assert [reply.status for reply in await asking] == ["done"]
        assert seen == ["id-all", "id-all"]
        await client.close()


async def test_the_signature_travels_with_the_command(start_worker: StartWorker, new_session: NewSession) -> None:
    got: list[ControlMessage] = []

    async def keep(listener: ControlListener, message: ControlMessage) -> None:
        got.append(message)
        await accept_and_do(listener, message)

    def sign(message: OutgoingMessage) -> dict[str, str]:
        return {"x-signature": f"{message.exchange}|{message.routing_key}|{message.message_id}"}

    await start_worker("w1", keep)
    client = ControlClient(await new_session("control"), client_id="operator-3", sign=sign)
    await client.start()
    await ask(client, "all")
    assert got[0].headers["x-signature"] == "swarm.control|all|id-all"
    assert (got[0].exchange, got[0].routing_key, got[0].message_id) == ("swarm.control", "all", "id-all")
    await client.close()


async def test_a_worker_listens_again_after_its_wire_was_cut(
    start_worker: StartWorker, client: ControlClient, amqp_url: str, eventually: Eventually
) -> None:
    async with proxied(amqp_url) as (proxy, url):
        listener = await start_worker("w1", url=url)
        proxy.cut()
        await eventually(lambda: not listener.listening)
        await eventually(lambda: listener.listening)
        assert (await ask(client, "all"))[-1].status == "done"


async def test_too_large_an_answer_is_not_sent(start_worker: StartWorker, client: ControlClient) -> None:
    async def boast(listener: ControlListener, message: ControlMessage) -> None:
        await message.ack()
        assert not await listener.reply(message, answer(message, "done", text="x" * MAX_REPLY))
        await listener.reply(message, answer(message, "failed"))

    await start_worker("w1", boast)
    assert [reply.status for reply in await ask(client, "all")] == ["failed"]


@pytest.mark.parametrize("durable", [False, True])
async def test_events_are_followed_and_kept_for_a_service_that_is_away(
    new_session: NewSession, *, durable: bool
) -> None:
    session = await new_session("consume")
    publisher = RabbitPublisher(await new_session("publish"))

    def event(number: int) -> OutgoingMessage:
        return OutgoingMessage(
            exchange="swarm.learning", routing_key="learning.trained.S", body=b"{}", message_id=f"e{number}",
            type="learning.trained", headers={"CC": ["learning.trained"]},
        )  # fmt: skip

    def subscriber() -> EventSubscriber:
        return EventSubscriber(session, name="ui", keys=["learning.trained"], durable=durable)

    first = subscriber()
    await first.start()
    await publisher.publish(event(1))
    async with asyncio.timeout(10):
        message = await anext(first.follow())
    assert (message.message_id, message.type) == ("e1", "learning.trained")
    await message.ack()
    # The ack and the end of the subscription are on one channel, in this order.
    await first.stop()
    if durable:
        await publisher.publish(event(2))
        second = subscriber()
        await second.start()
        async with asyncio.timeout(10):
            assert (await second.inbox.get()).message_id == "e2"
        await second.stop()
