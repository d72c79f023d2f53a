"""The records publisher: batches, back-pressure, retries of the same bytes, and a spool that survives the process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.broker.port import OutgoingMessage
from worker.client.publisher import PublisherLimits, RecordPublisher
from worker.client.spool import BatchKey, Spool, batch_body
from worker.clock import ManualClock
from worker.errors import ConfigurationError, InvalidRecord, PublishFailed
from worker.wire.codec import decode_batch, encode_batch, record_to_json
from worker.wire.records import ActionRecord, Batch, LearnStatsRecord, Record, Success, Timeout


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Failures are logged, and here they are meant."""
    with structlog.testing.capture_logs():
        yield


class FakePublisher:
    """A broker's word for each message: confirmed, refused while `refusing`, withheld while `holding`."""

    def __init__(self) -> None:
        self.attempts: list[OutgoingMessage] = []
        self.confirmed: list[OutgoingMessage] = []
        self.failures = 0  # so many next attempts fail
        self.refusing = False
        self.error: Exception = PublishFailed("nacked", reason="nacked")
        self.holding: asyncio.Event | None = None

    async def publish(self, message: OutgoingMessage, *, mandatory: bool = True, timeout: float = 10.0) -> None:
        """See `port.Publisher`."""
        assert mandatory
        assert timeout > 0
        self.attempts.append(message)
        if self.holding is not None:
            await self.holding.wait()
        if self.failures > 0 or self.refusing:
            self.failures -= 1
            raise self.error
        self.confirmed.append(message)

    def records(self) -> list[Record]:
        """Confirmed records, each batch once, in the order of their batches."""
        batches = {message.message_id: decoded(message) for message in self.confirmed}
        return [record for batch in sorted(batches.values(), key=seq_of) for record in batch.records]


def decoded(message: OutgoingMessage) -> Batch:
    batch = decode_batch(message.body, scenario="S", content_type=message.content_type)
    assert isinstance(batch, Batch)
    return batch


def seq_of(batch: Batch) -> tuple[int, int]:
    assert batch.identity.batch_seq is not None
    return batch.identity.producer_epoch, batch.identity.batch_seq


def action(tick: int) -> ActionRecord:
    return ActionRecord(task_id="t", tick=tick, worker_id=0, action="look")


def publisher(broker: FakePublisher, directory: Path, *, now_ms: int = 1_000, **limits: float) -> RecordPublisher:
    options = {"batch_age": 3600.0, **limits}
    return RecordPublisher(
        broker,
        scenario="S",
        producer_id="node-7",
        state_dir=directory,
        limits=PublisherLimits(**options),  # type: ignore[arg-type]  # whole numbers are among them
        clock=ManualClock(now_ms),
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  the other side is a thread and a disk, which tell nobody
        await asyncio.sleep(0.001)


async def until_attempts(broker: FakePublisher, count: int) -> None:
    await until(lambda: len(broker.attempts) >= count)


async def test_a_full_batch_is_sent_at_once_under_the_producers_identity(tmp_path: Path) -> None:
    broker = FakePublisher()
    async with publisher(broker, tmp_path, batch_records=3) as sending:
        for tick in range(3):
            await sending.publish(action(tick))
        await until_attempts(broker, 1)
        message = broker.attempts[0]
        assert (message.exchange, message.routing_key, message.message_id) == ("swarm.records", "S", "node-7:1000:0")
        batch = decoded(message)
        assert (batch.identity.producer_id, seq_of(batch)) == ("node-7", (1000, 0))
        assert batch.records == [action(0), action(1), action(2)]


async def test_an_unfilled_batch_goes_when_it_is_old_enough(tmp_path: Path) -> None:
    broker = FakePublisher()
    async with publisher(broker, tmp_path, batch_age=0.001) as sending:
        await sending.publish(action(0))
        await until_attempts(broker, 1)


async def test_flush_returns_when_everything_before_it_is_confirmed(tmp_path: Path) -> None:
    broker = FakePublisher()
    broker.holding = asyncio.Event()
    async with publisher(broker, tmp_path, batch_records=2) as sending:
        for tick in range(5):
            await sending.publish(action(tick))
        flushing = asyncio.create_task(sending.flush())
        await until_attempts(broker, 3)
        assert not flushing.done()
        broker.holding.set()
        await flushing
        assert broker.records() == [action(tick) for tick in range(5)]
        assert (sending.stats.batches, sending.stats.confirmed, sending.stats.unconfirmed) == (3, 3, 0)


async def test_a_batch_that_was_not_confirmed_is_sent_again_to_the_byte(tmp_path: Path) -> None:
    broker = FakePublisher()
    broker.failures = 2
    async with publisher(broker, tmp_path) as sending:
        await sending.publish(action(0))
        await sending.flush()
        assert len(broker.attempts) == 3
        assert len({(message.message_id, message.body) for message in broker.attempts}) == 1
        assert (sending.stats.failures, sending.stats.last_failure) == (2, "nacked")


async def test_a_restart_goes_on_with_the_next_number(tmp_path: Path) -> None:
    broker = FakePublisher()
    for start in range(3):
        async with publisher(broker, tmp_path, now_ms=start) as sending:
            await sending.publish(action(start))
    assert [message.message_id for message in broker.confirmed] == ["node-7:0:0", "node-7:0:1", "node-7:0:2"]


async def test_what_was_not_confirmed_is_sent_by_the_next_process_under_the_same_identity(tmp_path: Path) -> None:
    away = FakePublisher()
    away.refusing = True
    # Cut by number alone: on a busy machine five records may take longer than a batch waits for company.
    sending = publisher(away, tmp_path, batch_records=2, batch_age=60)
    await sending.start()
    for tick in range(5):
        await sending.publish(action(tick))
    assert await sending.close(0.01) == 3
    back = FakePublisher()
    async with publisher(back, tmp_path, now_ms=5_000) as sending:
        assert sending.stats.resent == 3
        await sending.flush()
        await sending.publish(action(5))
    assert {message.message_id: message.body for message in away.attempts}.items() <= {
        message.message_id: message.body for message in back.confirmed
    }.items()
    assert back.records() == [action(tick) for tick in range(6)]


async def test_a_killed_process_loses_nothing_that_was_in_a_batch(tmp_path: Path) -> None:
    """The spool is left as a kill leaves it: no close, no clearing of what was confirmed."""
    broker = FakePublisher()
    broker.refusing = True
    killed = publisher(broker, tmp_path, batch_records=1)
    await killed.start()
    await killed.publish(action(0))
    await until_attempts(broker, 1)
    assert killed._runner is not None
    assert killed._spool is not None
    killed._runner.cancel()
    await asyncio.wait({killed._runner})
    killed._spool._database.close()
    back = FakePublisher()
    async with publisher(back, tmp_path) as sending:
        await sending.flush()
    assert back.records() == [action(0)]
    assert back.confirmed[0].body == broker.attempts[0].body


async def test_confirmed_batches_leave_the_spool(tmp_path: Path) -> None:
    broker = FakePublisher()
    async with publisher(broker, tmp_path) as sending:
        await sending.publish(action(0))
        await sending.flush()
    async with publisher(broker, tmp_path) as sending:
        assert sending.stats.resent == 0
    assert len(broker.confirmed) == 1


async def test_publish_waits_while_too_much_is_unsent_and_goes_on_when_it_is_sent(tmp_path: Path) -> None:
    broker = FakePublisher()
    broker.holding = asyncio.Event()
    async with publisher(
        broker, tmp_path, batch_records=2, buffer_records=4, spool_batches=2, in_flight=1, batch_age=0
    ) as sending:
        taken = 0

        async def feed() -> None:
            nonlocal taken
            for tick in range(20):
                await sending.publish(action(tick))
                taken += 1

        feeding = asyncio.create_task(feed())
        await until_attempts(broker, 1)
        await until(lambda: (sending.stats.unconfirmed, sending.stats.buffered) == (2, 4))
        assert taken <= 2 * 2 + 4
        assert not feeding.done()
        broker.holding.set()
        await feeding
        await sending.flush()
        assert broker.records() == [action(tick) for tick in range(20)]


async def test_closing_sends_the_rest_and_says_that_nothing_is_left(tmp_path: Path) -> None:
    broker = FakePublisher()
    sending = publisher(broker, tmp_path)
    await sending.start()
    await sending.publish(action(0))
    assert await sending.close() == 0
    assert broker.records() == [action(0)]
    with pytest.raises(PublishFailed):
        await sending.publish(action(1))
    assert await sending.close() == 0


async def test_a_record_that_no_worker_would_store_is_refused_at_once(tmp_path: Path) -> None:
    broker = FakePublisher()
    bad: list[Record] = [
        ActionRecord(task_id="", tick=0, worker_id=0, action="look"),
        ActionRecord(task_id="t", tick=-1, worker_id=0, action="look"),
        ActionRecord(task_id="t", tick=0, worker_id=0, action="look", kpi=float("nan")),
        ActionRecord(task_id="t", tick=0, worker_id=0, action="look", output="x" * 70_000),
        ActionRecord(task_id="t", tick=0, worker_id=0, action="look", output="a\0b"),
        ActionRecord(task_id="t", tick=0, worker_id=0, action="look", output="\ud800"),
        LearnStatsRecord(
            session_id="s", stats_json="no json", outcome=Success(1.0), total_ticks=1, total_actions=1  # type: ignore[arg-type]
        ),
    ]  # fmt: skip
    async with publisher(broker, tmp_path) as sending:
        for record in bad:
            with pytest.raises(InvalidRecord):
                await sending.publish(record)
        await sending.publish(action(0))
    assert broker.records() == [action(0)]


async def test_a_session_ends_once_and_is_confirmed_then(tmp_path: Path) -> None:
    broker = FakePublisher()
    async with publisher(broker, tmp_path, now_ms=77) as sending:
        await sending.publish(action(0))
        await sending.end_session("s1", outcome=Timeout(), total_ticks=9, total_actions=1, task_ids=["t"])
        first, last = broker.records()
        assert first == action(0)
        assert isinstance(last, LearnStatsRecord)
        assert (last.session_id, last.outcome, last.timestamp_ms, last.task_ids) == ("s1", Timeout(), 77, ["t"])
        with pytest.raises(InvalidRecord, match="ended before"):
            await sending.end_session("s1", outcome=Success(1.0), total_ticks=9, total_actions=1)


async def test_a_session_whose_end_was_invalid_can_still_be_ended(tmp_path: Path) -> None:
    async with publisher(FakePublisher(), tmp_path) as sending:
        with pytest.raises(InvalidRecord, match="stats_json"):
            await sending.end_session("s", outcome=Success(1), total_ticks=1, total_actions=1, stats={"ngram_stats": 3})
        await sending.end_session("s", outcome=Success(1), total_ticks=1, total_actions=1, stats={"ngram_stats": {}})


async def test_a_bug_below_is_told_to_whoever_waits(tmp_path: Path) -> None:
    broker = FakePublisher()
    broker.failures, broker.error = 1, RuntimeError("bug")
    sending = publisher(broker, tmp_path)
    await sending.start()
    await sending.publish(action(0))
    with pytest.raises(PublishFailed, match="stopped"):
        await sending.flush()
    assert await sending.close() == 1


async def test_two_publishers_never_count_in_one_file(tmp_path: Path) -> None:
    async with publisher(FakePublisher(), tmp_path):
        with pytest.raises(ConfigurationError, match="in use by another publisher"):
            await publisher(FakePublisher(), tmp_path).start()


@pytest.mark.parametrize("damage", [b"garbage" * 2000, None])
async def test_a_damaged_or_lost_counter_starts_a_newer_epoch(tmp_path: Path, damage: bytes | None) -> None:
    broker = FakePublisher()
    async with publisher(broker, tmp_path, now_ms=1_000) as sending:
        await sending.publish(action(0))
    path = tmp_path / "S.node-7.spool"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    async with publisher(broker, tmp_path, now_ms=2_000) as sending:
        await sending.publish(action(1))
    assert [message.message_id for message in broker.confirmed] == ["node-7:1000:0", "node-7:2000:0"]
    assert damage is None or (tmp_path / "S.node-7.spool.damaged-2000").read_bytes() == damage


def test_a_spool_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Spool.open(path, "p", now_ms=1).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=9")
    database.close()
    with pytest.raises(ConfigurationError, match="version 9"):
        Spool.open(path, "p", now_ms=2)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="state_dir"):
        Spool.open(tmp_path / "file" / "s", "p", now_ms=1)


def test_a_batch_body_is_what_the_codec_would_write() -> None:
    records: list[Record] = [action(n) for n in range(3)]
    expected = encode_batch(records, producer_id="p", producer_epoch=5, batch_seq=6)
    assert batch_body([record_to_json(record) for record in records], "p", BatchKey(5, 6)) == expected


@pytest.mark.parametrize("name", ["", "-a", "a/b", 'a"b', "a\n"])
def test_names_that_are_no_slugs_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="producer_id"):
        RecordPublisher(FakePublisher(), scenario="S", producer_id=name, state_dir=tmp_path)


@settings(deadline=None, max_examples=60)  # other tests share the processor
@given(steps=st.lists(st.sampled_from(["publish", "fail", "flush", "restart", "turn"]), max_size=30))
def test_every_record_arrives_once_in_effect_whatever_fails_in_between(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Same identity, same bytes; no number twice with two contents; nothing missing in the end."""

    async def scenario() -> None:
        directory = tmp_path_factory.mktemp("spool")
        broker = FakePublisher()
        sent = 0
        sending = publisher(broker, directory, batch_records=2)
        await sending.start()
        for step in steps:
            match step:
                case "publish":
                    await sending.publish(action(sent))
                    sent += 1
                case "fail":
                    broker.failures = 1
                case "flush":
                    broker.failures = 0
                    await sending.flush()
                case "restart":
                    await sending.close(0)
                    sending = publisher(broker, directory, batch_records=2)
                    await sending.start()
                case "turn":
                    await asyncio.sleep(0)
        broker.failures = 0
        await sending.close()
        bodies: dict[str, set[bytes]] = {}
        for message in broker.attempts:
            bodies.setdefault(message.message_id, set()).add(message.body)
        assert all(len(versions) == 1 for versions in bodies.values())
        assert broker.records() == [action(tick) for tick in range(sent)]

    asyncio.run(scenario())


def test_a_spool_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """Unconfirmed records lie in it: the folder 0700, its files 0600, whatever the umask."""
    spool = Spool.open(tmp_path / "state" / "node.spool", "node", now_ms=1)
    spool.add([b"{}"])
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "state").iterdir()} == {0o600}
    spool.close()
