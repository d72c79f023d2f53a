"""Groups: by count, bytes or age, in order, nothing lost, and no waiting for company on a quiet queue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.broker.port import Delivery
from worker.sink.batcher import Batcher, Limits
from worker.store.port import Incoming, IncomingReject


@dataclass(eq=False)
class FakeDelivery:
    """A delivery that counts how it was settled."""

    body: bytes = b"{}"
    scenario: str = "S"
    stale: bool = False
    content_type: str | None = None
    content_encoding: str | None = None
    user_id: str | None = None
    routing_key: str = "S"
    redelivered: bool = False
    delivery_count: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    acks: int = 0

    async def ack(self) -> None:
        self.acks += 1

    async def give_back(self) -> None:
        raise AssertionError("the sink never gives back")


def as_reject(delivery: Delivery) -> Incoming:
    """A judge that looks at nothing."""
    return IncomingReject(scenario=delivery.scenario, reason="r", detail="", body=delivery.body, received_at_ms=0)


class Bench:
    """A batcher with its inbox, whose writer is told when to be free."""

    def __init__(self, limits: Limits, *, free: bool = True) -> None:
        self.inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        self.dropped: list[Delivery] = []
        self.tried: list[Delivery] = []
        self.batcher = Batcher(self.inbox, limits, as_reject, self.dropped.append, self.try_out, chance=self.first)
        self.free = asyncio.Event()
        self.stopping = asyncio.Event()
        if free:
            self.free.set()

    async def try_out(self, delivery: Delivery) -> Incoming:
        self.tried.append(delivery)
        return as_reject(delivery)

    @staticmethod
    def first(_: int) -> int:
        return 0

    def put(self, *deliveries: FakeDelivery) -> None:
        for delivery in deliveries:
            self.inbox.put_nowait(delivery)

    async def gather(self) -> list[Delivery]:
        return [item.delivery for item in await self.batcher.gather(self.free, self.stopping)]


async def test_a_lone_message_waits_for_nobody_while_the_writer_is_idle() -> None:
    """With an age of an hour, this returns at once or the test times out."""
    bench = Bench(Limits(age=3600))
    message = FakeDelivery()
    bench.put(message)
    assert await bench.gather() == [message]


async def test_the_first_message_ends_the_wait_of_an_idle_writer() -> None:
    bench = Bench(Limits(age=3600))
    gathering = asyncio.create_task(bench.gather())
    await asyncio.sleep(0)
    message = FakeDelivery()
    bench.put(message)
    assert await gathering == [message]


async def test_a_full_group_is_closed_while_the_writer_is_busy() -> None:
    bench = Bench(Limits(messages=3, age=3600), free=False)
    messages = [FakeDelivery() for _ in range(5)]
    bench.put(*messages)
    assert await bench.gather() == messages[:3]
    assert bench.batcher.waiting == 2


async def test_a_group_grows_while_the_writer_is_busy_and_goes_when_it_is_free() -> None:
    bench = Bench(Limits(messages=10, age=3600), free=False)
    early, late = FakeDelivery(), FakeDelivery()
    bench.put(early)
    gathering = asyncio.create_task(bench.gather())
    await asyncio.sleep(0)
    bench.put(late)
    bench.free.set()
    assert await gathering == [early, late]


async def test_an_old_message_is_judged_though_the_writer_is_busy() -> None:
    """Age bounds how long a message waits for company: then it is judged, beside the commit."""
    judged = asyncio.Event()

    def judge(delivery: Delivery) -> Incoming:
        judged.set()
        return as_reject(delivery)

    bench = Bench(Limits(), free=False)
    bench.batcher = Batcher(bench.inbox, Limits(messages=10, age=0.001), judge, bench.dropped.append, bench.try_out)
    bench.put(FakeDelivery())
    gathering = asyncio.create_task(bench.gather())
    await judged.wait()
    judged.clear()
    bench.put(FakeDelivery())
    await judged.wait()
    assert not gathering.done()
    bench.free.set()
    assert len(await gathering) == 2


async def test_bytes_close_a_group_and_the_message_that_did_not_fit_opens_the_next() -> None:
    bench = Bench(Limits(bytes=100))
    first, second, third = (FakeDelivery(body=bytes(60)) for _ in range(3))
    bench.put(first, second)
    assert await bench.gather() == [first]
    assert bench.batcher.waiting == 1
    bench.put(third)
    assert await bench.gather() == [second]
    assert await bench.gather() == [third]
    assert bench.batcher.waiting == 0


async def test_a_message_over_the_byte_limit_is_a_group_of_its_own() -> None:
    bench = Bench(Limits(bytes=10))
    big = FakeDelivery(body=bytes(1000))
    bench.put(big, FakeDelivery())
    assert await bench.gather() == [big]


async def test_stale_deliveries_are_dropped_before_they_are_judged() -> None:
    bench = Bench(Limits())
    stale, good = FakeDelivery(stale=True), FakeDelivery()
    bench.put(stale, good, stale)
    assert await bench.gather() == [good]
    bench.stopping.set()
    assert await bench.gather() == []
    assert bench.dropped == [stale, stale]


async def test_stopping_empties_the_inbox_first_and_then_ends() -> None:
    bench = Bench(Limits(messages=2))
    messages = [FakeDelivery() for _ in range(3)]
    bench.put(*messages)
    bench.stopping.set()
    assert [await bench.gather(), await bench.gather(), await bench.gather()] == [messages[:2], messages[2:], []]


async def test_stopping_ends_a_wait_for_the_first_message() -> None:
    bench = Bench(Limits())
    gathering = asyncio.create_task(bench.gather())
    await asyncio.sleep(0)
    bench.stopping.set()
    assert await gathering == []


async def test_a_message_taken_in_the_moment_of_cancelling_is_not_lost() -> None:
    bench = Bench(Limits())
    gathering = asyncio.create_task(bench.gather())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    message = FakeDelivery()
    bench.put(message)
    gathering.cancel()
    await asyncio.wait({gathering})
    assert bench.batcher.waiting == 1
    assert await bench.gather() == [message]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.booleans()),  # scenario, size, stale
        st.sampled_from(["free", "busy", "turn"]),
    ),
    max_size=60,
)


@settings(deadline=None)  # other tests share the processor
@given(steps=STEPS, messages=st.integers(1, 6), size=st.integers(20, 120))
def test_no_delivery_is_lost_repeated_or_overtaken_and_no_limit_broken(
    steps: list[tuple[str, int, bool] | str], messages: int, size: int
) -> None:
    """Whatever the writer does in between: the groups, put together, are the fresh deliveries in their order."""

    async def scenario() -> None:
        bench = Bench(Limits(messages=messages, bytes=size, age=0.0))
        sent: list[FakeDelivery] = []
        groups: list[list[Delivery]] = []

        async def collect() -> None:
            while group := await bench.gather():
                groups.append(group)
                await asyncio.sleep(0)

        collecting = asyncio.create_task(collect())
        for step in steps:
            match step:
                case "free":
                    bench.free.set()
                case "busy":
                    bench.free.clear()
                case "turn":
                    await asyncio.sleep(0)
                case (name, length, stale):
                    delivery = FakeDelivery(scenario=name, body=bytes(length), stale=stale)
                    sent.append(delivery)
                    bench.put(delivery)
        bench.free.set()
        bench.stopping.set()
        await collecting
        assert [d for group in groups for d in group] == [d for d in sent if not d.stale]
        assert bench.dropped == [d for d in sent if d.stale]
        for group in groups:
            assert len(group) <= messages
            assert len(group) == 1 or sum(len(d.body) for d in group) <= size
        assert bench.batcher.waiting == 0

    asyncio.run(scenario())


def suspect(**how: Any) -> FakeDelivery:
    """One that the broker took back three times."""
    return FakeDelivery(redelivered=True, delivery_count=3, **how)


async def test_a_suspect_is_tried_out_after_the_others_in_a_group_of_its_own() -> None:
    bench = Bench(Limits())
    first, second, third = suspect(), FakeDelivery(), suspect()
    bench.put(first, second, third)
    assert bench.batcher.waiting == 3
    assert await bench.gather() == [second]
    assert (bench.tried, bench.batcher.suspects, bench.batcher.waiting) == ([], 2, 2)
    assert await bench.gather() == [first]
    assert await bench.gather() == [third]
    assert (bench.tried, bench.batcher.waiting) == ([first, third], 0)
    bench.stopping.set()
    assert await bench.gather() == []


async def test_a_count_that_the_producer_claims_or_that_is_small_makes_nobody_a_suspect() -> None:
    bench = Bench(Limits())
    messages = [FakeDelivery(delivery_count=99), FakeDelivery(redelivered=True, delivery_count=2)]
    bench.put(*messages)
    assert await bench.gather() == messages


async def test_a_suspect_has_its_turn_though_others_keep_coming() -> None:
    bench = Bench(Limits(messages=1))
    odd = suspect()
    bench.put(odd, *(FakeDelivery() for _ in range(50)))
    groups = [await bench.gather() for _ in range(20)]
    assert groups.index([odd]) <= 10


async def test_a_suspect_whose_channel_is_gone_is_dropped_untried() -> None:
    bench = Bench(Limits())
    odd = suspect()
    bench.put(odd, FakeDelivery())
    await bench.gather()
    odd.stale = True
    bench.stopping.set()
    assert await bench.gather() == []
    assert (bench.dropped, bench.tried) == ([odd], [])
