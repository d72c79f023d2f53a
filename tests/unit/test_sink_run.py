"""The sink as a whole: verdicts, acknowledgements after the commit, bad data singled out, a bad store waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.broker.port import Delivery
from worker.clock import ManualClock
from worker.episodes.rules import Rules
from worker.errors import DataRefused, StoreCorrupt, StoreUnavailable
from worker.sink.batcher import Limits
from worker.sink.sink import Sink
from worker.sink.writer import Hold
from worker.store.port import Duplicate, Incoming, IncomingBatch, IncomingReject, Quarantined, Stored, Verdict
from worker.wire.codec import encode_batch
from worker.wire.reasons import Reason
from worker.wire.records import ActionRecord


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Errors are logged with their traceback, which is drawn slowly in a bare process."""
    with structlog.testing.capture_logs():
        yield


@dataclass(eq=False)
class FakeDelivery:
    """A delivery that counts how it was settled."""

    body: bytes
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


@dataclass
class FakeStore:
    """A record log that refuses what it is told to refuse and is down when it is told to be."""

    poison: dict[bytes, Exception] = field(default_factory=dict)  # raised for a group that holds this batch
    failures: list[Exception] = field(default_factory=list)  # raised by the next calls, one each
    kept: list[Incoming] = field(default_factory=list)
    calls: int = 0
    gate: asyncio.Event | None = None  # a commit takes until it is set

    async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        for incoming in group:
            if isinstance(incoming, IncomingBatch) and incoming.body in self.poison:
                raise self.poison[incoming.body]
        return [self._verdict(incoming) for incoming in group]

    def _verdict(self, incoming: Incoming) -> Verdict:
        if isinstance(incoming, IncomingReject):
            self.kept.append(incoming)
            return Quarantined(incoming.reason)
        if any(incoming.body == known.body for known in self.kept):
            return Duplicate()
        self.kept.append(incoming)
        return Stored(len(self.kept), fresh=len(incoming.batch.records), duplicate_records=0)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the sink has no business with {name}")


def body(seq: int, records: int = 2, action: str = "look") -> bytes:
    """A good records message."""
    return encode_batch(
        [ActionRecord(task_id=f"t{seq}", tick=n, worker_id=0, action=action) for n in range(records)],
        producer_id="node",
        producer_epoch=0,
        batch_seq=seq,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    while not condition():  # noqa: ASYNC110  one turn of the loop at a time, nothing here waits for time
        await asyncio.sleep(0)


class Bench:
    """A sink on a fake store with a clock that moves by the sink's own waits."""

    def __init__(self, store: FakeStore, **options: Any) -> None:
        self.store = store
        self.clock = ManualClock()
        self.waits: list[float] = []
        self.inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        self.stopping = asyncio.Event()
        self.rules = Rules()
        self.sink = Sink(store, self.clock, lambda _: self.rules, pause=self.pause, **options)

    async def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    async def run(self, *deliveries: FakeDelivery) -> None:
        """Put these in and run until all is done."""
        for delivery in deliveries:
            self.inbox.put_nowait(delivery)
        self.stopping.set()
        await self.sink.run(self.inbox, self.stopping)


async def test_a_batch_is_stored_and_acknowledged_once() -> None:
    bench = Bench(FakeStore())
    message = FakeDelivery(body(1))
    await bench.run(message)
    assert [type(kept) for kept in bench.store.kept] == [IncomingBatch]
    assert message.acks == 1
    stats = bench.sink.stats
    assert (stats.messages, stats.records, stats.fresh, stats.groups, stats.in_flight) == (1, 2, 2, 1, 0)
    assert stats.last_stored_at_ms == bench.clock.now_ms()


async def test_nothing_is_acknowledged_before_its_commit_returned() -> None:
    store = FakeStore(gate=asyncio.Event())
    bench = Bench(store)
    message = FakeDelivery(body(1))
    running = asyncio.create_task(bench.run(message))
    await until(lambda: store.calls > 0)
    assert (message.acks, bench.sink.busy(), bench.sink.stats.in_flight) == (0, True, 1)
    assert store.gate is not None
    store.gate.set()
    await running
    assert (message.acks, bench.sink.busy()) == (1, False)


async def test_the_next_group_is_judged_and_the_last_one_acknowledged_while_a_commit_runs() -> None:
    """Three stages at once: the commit of group 2 needs neither the acks of group 1 nor the judging of group 3."""
    settle_gate, settled = asyncio.Event(), []

    async def settle(deliveries: Sequence[Delivery]) -> None:
        settled.append(list(deliveries))
        await settle_gate.wait()

    bench = Bench(FakeStore(), limits=Limits(messages=1), settle=settle)
    messages = [FakeDelivery(body(n)) for n in range(3)]
    running = asyncio.create_task(bench.run(*messages))
    await until(lambda: len(bench.store.kept) == 3)
    assert settled == [[messages[0]]]
    settle_gate.set()
    await running
    assert settled == [[message] for message in messages]


async def test_a_commit_begins_before_the_next_group_is_judged() -> None:
    """Judging a full group takes ten milliseconds of the loop, in which the writer's thread must not be idle."""
    store = FakeStore()
    commits_begun: list[int] = []
    bench = Bench(store, limits=Limits(messages=1))
    judged = bench.sink._judge.delivery

    def judge(delivery: Delivery) -> Incoming:
        commits_begun.append(store.calls)
        return judged(delivery)

    bench.sink._judge.delivery = judge  # type: ignore[method-assign]  # to see when it is called
    await bench.run(*(FakeDelivery(body(n)) for n in range(3)))
    assert commits_begun == [0, 1, 2]


async def test_the_same_batch_twice_is_a_duplicate_and_acknowledged() -> None:
    bench = Bench(FakeStore())
    first, again = FakeDelivery(body(1)), FakeDelivery(body(1))
    await bench.run(first, again)
    assert (first.acks, again.acks, bench.sink.stats.duplicates, len(bench.store.kept)) == (1, 1, 1, 1)


async def test_what_is_no_batch_goes_into_quarantine_with_what_a_replay_needs() -> None:
    bench = Bench(FakeStore())
    bad = FakeDelivery(b"not json", headers={"message_id": "m"}, content_type="application/json")
    good = FakeDelivery(body(1))
    await bench.run(bad, good)
    kept = bench.store.kept[0]
    assert isinstance(kept, IncomingReject)
    assert (kept.reason, kept.body) == (Reason.NOT_JSON, b"not json")
    assert kept.headers == {"message_id": "m", "content_type": "application/json", "routing_key": "S"}
    assert (bad.acks, good.acks, bench.sink.stats.quarantined) == (1, 1, {"not_json": 1})


async def test_terminal_tasks_are_found_in_any_case_of_the_action() -> None:
    bench = Bench(FakeStore())
    await bench.run(FakeDelivery(body(1, action="DONE")), FakeDelivery(body(2, action="look")))
    assert [kept.terminal_tasks for kept in bench.store.kept if isinstance(kept, IncomingBatch)] == [{"t1"}, set()]


async def test_a_fault_of_ours_quarantines_one_message_and_no_neighbour() -> None:
    """A judge that breaks on one message, whatever it is that broke, costs that message only."""
    bench = Bench(FakeStore())

    class Broken(FakeDelivery):
        @property
        def headers(self) -> dict[str, str]:
            raise RuntimeError("bug")

        @headers.setter
        def headers(self, value: dict[str, str]) -> None: ...

    broken, good = Broken(b"[]"), FakeDelivery(body(1))
    await bench.run(broken, good)
    assert bench.sink.stats.quarantined == {Reason.UNEXPECTED: 1}
    assert (broken.acks, good.acks, bench.sink.stats.fresh) == (1, 1, 2)


async def test_a_culprit_is_singled_out_and_its_neighbours_are_stored() -> None:
    messages = [FakeDelivery(body(n)) for n in range(9)]
    bench = Bench(FakeStore(poison={messages[4].body: DataRefused("too wide")}))
    await bench.run(*messages)
    rejects = [kept for kept in bench.store.kept if isinstance(kept, IncomingReject)]
    assert [(r.reason, r.body) for r in rejects] == [(Reason.STORE_REFUSED, messages[4].body)]
    assert "too wide" in rejects[0].detail
    assert bench.sink.stats.fresh == 16
    assert all(message.acks == 1 for message in messages)


@settings(deadline=None)  # other tests share the processor
@given(size=st.integers(1, 30), data=st.data())
def test_bisecting_finds_every_culprit_and_keeps_everyone_else_in_order(size: int, data: st.DataObject) -> None:
    """Any set of refused batches, by the store's word or by a bug in it."""
    culprits = data.draw(st.sets(st.integers(0, size - 1)))
    errors: list[Exception] = [DataRefused("no"), OverflowError("bug")]
    messages = [FakeDelivery(body(n, records=1)) for n in range(size)]
    poison = {messages[n].body: data.draw(st.sampled_from(errors)) for n in culprits}

    async def scenario() -> None:
        bench = Bench(FakeStore(poison=poison))
        await bench.run(*messages)
        assert [kept.body for kept in bench.store.kept] == [message.body for message in messages]
        for n, kept in enumerate(bench.store.kept):
            assert isinstance(kept, IncomingReject if n in culprits else IncomingBatch)
        assert all(message.acks == 1 for message in messages)
        assert bench.sink.stats.quarantined.total() == len(culprits)

    asyncio.run(scenario())


async def test_a_store_that_refuses_even_the_quarantine_entry_stops_the_sink() -> None:
    """Nothing is acknowledged then: it is the store that is broken, not the data."""
    store = FakeStore(failures=[DataRefused("a"), DataRefused("b")])
    message = FakeDelivery(body(1))
    bench = Bench(store)
    with pytest.raises(DataRefused, match="b"):
        await bench.run(message)
    assert message.acks == 0


async def test_a_store_that_is_down_holds_the_group_and_resumes_by_itself() -> None:
    told: list[str] = []
    store = FakeStore(failures=[*[StoreUnavailable("disk full")] * 3, StoreUnavailable("locked")])
    bench = Bench(store, on_store_down=told.append, on_store_up=lambda: told.append("up"))
    message = FakeDelivery(body(1))
    await bench.run(message)
    assert told == ["disk full", "locked", "up"]
    assert (message.acks, store.calls, bench.sink.stats.store_failures) == (1, 5, 4)
    assert bench.sink.stats.store_down_reason is None


async def test_waits_for_the_store_double_with_jitter_up_to_their_most() -> None:
    bench = Bench(FakeStore(failures=[StoreUnavailable("x")] * 8), hold=Hold(first=1.0, most=10.0))
    await bench.run(FakeDelivery(body(1)))
    for wait, full in zip(bench.waits, [1, 2, 4, 8, 10, 10, 10, 10], strict=True):
        assert full / 2 <= wait <= full


async def test_a_group_is_held_no_longer_than_the_limit_and_then_given_up_unacknowledged() -> None:
    bench = Bench(FakeStore(failures=[StoreUnavailable("gone")] * 1000), hold=Hold(limit=600))
    message = FakeDelivery(body(1))
    with pytest.raises(StoreUnavailable, match="gone"):
        await bench.run(message)
    assert 600 <= sum(bench.waits) <= 610
    assert message.acks == 0
    assert bench.sink.stats.store_down_reason == "gone"


async def test_what_goes_stale_while_the_store_is_down_is_left_to_its_copy() -> None:
    messages = [FakeDelivery(body(n)) for n in range(3)]

    def down(_: str) -> None:
        messages[1].stale = True

    bench = Bench(FakeStore(failures=[StoreUnavailable("x")]), on_store_down=down)
    await bench.run(*messages)
    assert [kept.body for kept in bench.store.kept] == [messages[0].body, messages[2].body]
    assert [message.acks for message in messages] == [1, 0, 1]
    assert (bench.sink.stats.stale, bench.sink.stats.messages) == (1, 2)


async def test_a_damaged_store_stops_the_sink_at_once() -> None:
    bench = Bench(FakeStore(failures=[StoreCorrupt("page 7")]))
    with pytest.raises(StoreCorrupt):
        await bench.run(FakeDelivery(body(1)))


async def test_a_store_failure_in_the_middle_of_a_bisection_is_waited_for_too() -> None:
    messages = [FakeDelivery(body(n)) for n in range(4)]
    store = FakeStore(failures=[DataRefused("one of you"), StoreUnavailable("locked")])
    bench = Bench(store)
    await bench.run(*messages)
    assert [kept.body for kept in store.kept] == [message.body for message in messages]
    assert bench.sink.stats.fresh == 8


async def test_a_failing_settle_stops_the_sink() -> None:
    async def settle(_: Sequence[Delivery]) -> None:
        raise RuntimeError("broker bug")

    with pytest.raises(RuntimeError, match="broker bug"):
        await Bench(FakeStore(), settle=settle).run(FakeDelivery(body(1)))


async def test_the_projector_is_woken_after_every_commit() -> None:
    woken: list[int] = []
    store = FakeStore()
    bench = Bench(store, limits=Limits(messages=1), on_stored=lambda: woken.append(len(store.kept)))
    await bench.run(FakeDelivery(body(1)), FakeDelivery(body(2)))
    assert woken == [1, 2]


async def test_draining_waits_for_what_is_there_and_goes_on_afterwards() -> None:
    bench = Bench(FakeStore())
    running = asyncio.create_task(bench.sink.run(bench.inbox, bench.stopping))
    for n in range(2):
        message = FakeDelivery(body(n))
        bench.inbox.put_nowait(message)
        await until(bench.sink.busy)
        assert await bench.sink.drain(10)
        assert message.acks == 1
    bench.stopping.set()
    await running


async def test_draining_ends_when_all_that_was_left_is_stale() -> None:
    bench = Bench(FakeStore())
    bench.inbox.put_nowait(FakeDelivery(body(1), stale=True))
    running = asyncio.create_task(bench.sink.run(bench.inbox, bench.stopping))
    assert await bench.sink.drain(10)
    bench.stopping.set()
    await running
    assert bench.sink.stats.stale == 1


async def test_draining_gives_up_at_its_deadline() -> None:
    bench = Bench(FakeStore(gate=asyncio.Event()))
    message = FakeDelivery(body(1))
    bench.inbox.put_nowait(message)
    running = asyncio.create_task(bench.sink.run(bench.inbox, bench.stopping))
    await until(bench.sink.busy)
    assert not await bench.sink.drain(0.01)
    running.cancel()
    await asyncio.wait({running})
    assert message.acks == 0


@settings(deadline=None)  # other tests share the processor
@given(
    script=st.lists(
        st.sampled_from([StoreUnavailable("down"), DataRefused("refused"), ValueError("bug"), None]), max_size=12
    ),
    seqs=st.lists(st.integers(0, 6), max_size=25),
    messages=st.integers(1, 8),
)
def test_whatever_the_store_does_everything_is_kept_once_and_acknowledged_once(
    script: list[Exception | None], seqs: list[int], messages: int
) -> None:
    """Nothing lost, nothing twice, whatever errors come on whichever call."""

    class Scripted(FakeStore):
        async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
            error = script.pop(0) if script else None
            # A reject is never refused here: that stops the sink, which another test shows.
            if error and (isinstance(error, StoreUnavailable) or isinstance(group[0], IncomingBatch)):
                raise error
            return await super().ingest(group)

    async def scenario() -> None:
        bench = Bench(Scripted(), limits=Limits(messages=messages))
        deliveries = [FakeDelivery(body(seq, records=1)) for seq in seqs]
        await bench.run(*deliveries)
        assert all(delivery.acks == 1 for delivery in deliveries)
        assert {kept.body for kept in bench.store.kept} == {delivery.body for delivery in deliveries}
        stored = [kept.body for kept in bench.store.kept if isinstance(kept, IncomingBatch)]
        assert len(stored) == len(set(stored))
        assert bench.sink.stats.messages == len(deliveries)
        assert bench.sink.stats.in_flight == 0

    asyncio.run(scenario())
