"""Replaying the quarantine: the same checks as for a delivery, marked when through, safe to repeat."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_sink_trial import PATCHED
from worker.clock import ManualClock
from worker.episodes.rules import Rules
from worker.errors import DataRefused, StoreUnavailable
from worker.sink.judge import Judge
from worker.sink.replay import ReplayCounts, replay_quarantine
from worker.sink.trial import Trial
from worker.store import open_store
from worker.store.port import (
    Duplicate,
    Incoming,
    IncomingBatch,
    IncomingReject,
    Quarantined,
    QuarantineEntry,
    Stored,
    Verdict,
)
from worker.wire.codec import encode_batch
from worker.wire.reasons import Reason
from worker.wire.records import ActionRecord


def body(seq: int) -> bytes:
    """A good records message of two records."""
    records = [ActionRecord(task_id="t", tick=n, worker_id=0, action="look") for n in range(2)]
    return encode_batch(records, producer_id="node", producer_epoch=0, batch_seq=seq)


class FakeStore:
    """A quarantine of given bodies in front of a set of stored ones."""

    def __init__(self, *entries: bytes | tuple[bytes, dict[str, str]], truncated: bool = False) -> None:
        self.entries: dict[int, QuarantineEntry] = {}
        self.stored: list[bytes] = []
        self.refuse: dict[bytes, Exception | Verdict] = {}
        self.break_marking = False
        for number, given in enumerate(entries, start=1):
            text, headers = given if isinstance(given, tuple) else (given, {})
            self.entries[number] = QuarantineEntry(
                entry_id=number,
                scenario="S" if number % 2 else "T",
                reason="old",
                detail="",
                received_at_ms=1,
                size=len(text),
                sha256="",
                body=text,
                truncated=truncated,
                headers=headers,
                seen=1,
            )

    async def quarantine_waiting(self, scenario: str | None, *, reason: str | None, limit: int | None) -> list[int]:
        waiting = [
            entry
            for entry in self.entries.values()
            if scenario in (None, entry.scenario) and reason in (None, entry.reason) and entry.replayed_at_ms is None
        ]
        return [each.entry_id for each in sorted(waiting, key=lambda each: (each.replays, each.entry_id))[:limit]]

    async def quarantine_get(self, entry_id: int) -> QuarantineEntry | None:
        return self.entries.get(entry_id)

    async def quarantine_mark_replayed(self, entry_ids: Sequence[int], now_ms: int) -> None:
        if self.break_marking:
            raise StoreUnavailable("locked")
        for entry_id in entry_ids:
            self.entries[entry_id].replayed_at_ms = now_ms

    async def quarantine_mark_refused(self, entry_ids: Sequence[int]) -> None:
        for entry_id in entry_ids:
            self.entries[entry_id].replays += 1

    async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
        (incoming,) = group
        assert isinstance(incoming, IncomingBatch), "what is refused again is in the quarantine already"
        match self.refuse.get(incoming.body):
            case Exception() as error:
                raise error
            case Stored() | Duplicate() | Quarantined() as verdict:
                return [verdict]
        if incoming.body in self.stored:
            return [Duplicate()]
        self.stored.append(incoming.body)
        return [Stored(len(self.stored), fresh=2, duplicate_records=0)]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"replay has no business with {name}")


async def replay(store: FakeStore, **which: Any) -> ReplayCounts:
    """The counts; what is told of each entry has a test of its own."""
    counts = await replay_quarantine(store, ManualClock(), lambda _: Rules(), **which)  # type: ignore[arg-type]  # a fake
    assert len(counts.entries) == counts.examined
    counts.entries = {}
    return counts


async def test_what_passes_now_is_stored_and_marked_and_what_does_not_stays() -> None:
    store = FakeStore(body(1), b"not json", body(2), b"[]")
    counts = await replay(store)
    assert counts == ReplayCounts(
        examined=4, stored=2, still_refused={Reason.NOT_JSON: 1, Reason.BAD_SCHEMA: 1}, fresh_records=4
    )
    assert [entry.replayed_at_ms is not None for entry in store.entries.values()] == [True, False, True, False]


async def test_more_entries_than_a_page_are_all_examined_once() -> None:
    store = FakeStore(*(b"bad" if n % 3 else body(n) for n in range(75)))
    assert (await replay(store)).examined == 75
    assert len(store.stored) == 25


async def test_a_second_replay_finds_only_what_stayed() -> None:
    store = FakeStore(body(1), b"bad")
    await replay(store)
    assert await replay(store) == ReplayCounts(examined=1, still_refused={Reason.NOT_JSON: 1})


async def test_an_interrupted_replay_stores_nothing_twice() -> None:
    """Killed between storing and marking: the next try sees a duplicate and marks it."""
    store = FakeStore(body(1))
    store.break_marking = True
    with pytest.raises(StoreUnavailable):
        await replay(store)
    store.break_marking = False
    assert await replay(store) == ReplayCounts(examined=1, duplicates=1)
    assert store.stored == [body(1)]
    assert store.entries[1].replayed_at_ms is not None


async def test_what_the_store_refuses_again_stays_with_todays_reason() -> None:
    store = FakeStore(body(1), body(2))
    store.refuse = {body(1): DataRefused("no"), body(2): Quarantined(Reason.KEY_CONFLICT)}
    counts = await replay(store)
    assert counts.still_refused == {Reason.STORE_REFUSED: 1, Reason.KEY_CONFLICT: 1}
    assert all(entry.replayed_at_ms is None for entry in store.entries.values())


async def test_compressed_bodies_are_read_with_and_without_their_headers() -> None:
    store = FakeStore((gzip.compress(body(1)), {"content_encoding": "gzip"}), gzip.compress(body(2)))
    assert (await replay(store)).stored == 2


async def test_a_body_that_was_not_kept_whole_is_only_counted() -> None:
    assert await replay(FakeStore(body(1), truncated=True)) == ReplayCounts(examined=1, truncated=1)


async def test_one_scenario_one_reason_or_single_entries_may_be_chosen() -> None:
    def store() -> FakeStore:
        return FakeStore(body(1), body(2), body(3))

    assert (await replay(store(), scenario="S")).stored == 2
    assert (await replay(store(), reason="other")).examined == 0
    assert (await replay(store(), entry_ids=[2, 3])).stored == 2
    assert (await replay(store(), limit=2)).stored == 2
    assert (await replay(store(), entry_ids=[2, 3], limit=1)).stored == 1


async def test_named_entries_that_are_not_there_and_those_that_were_replayed_before_are_told() -> None:
    """Nothing was tried, and nothing was said of it."""
    store = FakeStore(body(1), body(2), body(3))
    counts = await replay(store, entry_ids=[3, 2, 99, 3], scenario="S")
    assert (counts.stored, counts.missing, counts.done_before) == (1, [2, 99], [])
    counts = await replay(store, entry_ids=[3, 1], scenario="S")
    assert (counts.stored, counts.missing, counts.done_before) == (1, [], [3])


async def test_a_few_at_a_time_all_get_their_turn() -> None:
    """The oldest stayed refused, whole or cut, and a limit met them again each time."""
    store = FakeStore(b"bad", b"bad too", body(1), body(2))
    store.entries[1].truncated = True
    assert (await replay(store, limit=2)).stored == 0
    assert (await replay(store, limit=2)).stored == 2
    assert (await replay(store, limit=1)).truncated == 1
    assert (await replay(store, limit=1)).still_refused == {"not_json": 1}
    assert (await replay(store, limit=1 << 64)).examined == 2


async def test_what_was_moved_out_meanwhile_is_passed_over() -> None:
    store = FakeStore(body(1), b"bad")
    get = store.quarantine_get

    async def moved(entry_id: int) -> QuarantineEntry | None:
        return None if entry_id == 1 else await get(entry_id)

    store.quarantine_get = moved  # type: ignore[method-assign]  # a fake
    assert (await replay(store)).examined == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_real_stores_quarantine_is_replayed(kind: str, tmp_path: Path) -> None:
    """What an older version refused passes now; a conflict stays a conflict."""
    url = "memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'swarm.db'}"
    clock = ManualClock()
    store = open_store(url, clock)
    await store.open()
    try:
        judge = Judge(lambda _: Rules(), clock)
        stored = judge.message("S", body(1), content_type=None, content_encoding=None)
        conflicting = judge.message("S", body(1) + b" ", content_type=None, content_encoding=None)
        rejects = [
            IncomingReject(scenario="S", reason="old", detail="", body=text, received_at_ms=1, headers={})
            for text in (body(1), body(2), gzip.compress(body(3)), b"not json")
        ]
        await store.ingest([stored, conflicting, *rejects])
        expected: dict[str, int] = {Reason.NOT_JSON: 1, Reason.KEY_CONFLICT: 1}
        counts = await replay_quarantine(store, clock, lambda _: Rules(), scenario="S")
        told = Counter(counts.entries.values())
        assert told == {"stored": 2, "duplicate": 1, "not_json": 1, "key_conflict": 1}
        counts.entries = {}
        assert counts == ReplayCounts(examined=5, stored=2, duplicates=1, still_refused=expected, fresh_records=4)
        again = await replay_quarantine(store, clock, lambda _: Rules())
        assert sorted(again.entries.values()) == ["key_conflict", "not_json"]
        again.entries = {}
        assert again == ReplayCounts(examined=2, still_refused=expected)
        entries = await store.quarantine_list("S")
        assert Counter((entry.replays, entry.replayed_at_ms is not None) for entry in entries) == {
            (0, True): 3, (2, False): 2,
        }  # fmt: skip
    finally:
        await store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_record_that_contradicts_the_log_stays_however_often_it_is_replayed(kind: str, tmp_path: Path) -> None:
    """Once it was called stored, and marked, while the log held what contradicts it."""
    url = "memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'swarm.db'}"
    clock = ManualClock()
    store = open_store(url, clock)
    await store.open()
    try:
        judge = Judge(lambda _: Rules(), clock)
        for seq, action in enumerate(["look", "jump"]):
            record = ActionRecord(task_id="t", tick=0, worker_id=0, action=action, event_id=7)
            text = encode_batch([record], producer_id="node", producer_epoch=0, batch_seq=seq)
            await store.ingest([judge.message("S", text, content_type=None, content_encoding=None)])
        (before,) = await store.quarantine_list("S")
        assert before.reason == Reason.RECORD_CONFLICT
        for tries in (1, 2):
            counts = await replay_quarantine(store, clock, lambda _: Rules(), scenario="S")
            assert counts == ReplayCounts(
                examined=1, still_refused={Reason.RECORD_CONFLICT: 1}, entries={"1": "record_conflict"}
            )
            (after,) = await store.quarantine_list("S", pending_only=True)
            assert (after.seen, after.replays) == (1, tries)
        facts = await store.facts("S")
        assert (facts.batches, facts.records, facts.quarantined) == (2, 1, 1)
    finally:
        await store.close()


async def test_a_body_that_killed_its_decoder_is_tried_out_before_it_is_judged_again() -> None:
    """The worker carries on a replay that a crash interrupted: it would die of it in every life."""
    store = FakeStore(b"kill", body(2))
    for entry in store.entries.values():
        entry.reason = Reason.CRASHED_DECODER
    counts = await replay(store, trial=Trial(command=PATCHED))
    assert counts == ReplayCounts(examined=2, stored=1, still_refused={Reason.CRASHED_DECODER: 1}, fresh_records=2)
    assert await replay(store, trial=Trial(command=("/does/not/exist",))) == ReplayCounts(
        examined=1, still_refused={Reason.CRASHED_DECODER: 1}
    )


async def test_each_entry_is_told_as_far_as_an_answer_has_room() -> None:
    store = FakeStore(*([b"bad"] * 600))
    counts = await replay_quarantine(store, ManualClock(), lambda _: Rules())  # type: ignore[arg-type]  # a fake
    assert (counts.examined, len(counts.entries), set(counts.entries.values())) == (600, 500, {"not_json"})
    assert all(entry.replays == 1 for entry in store.entries.values())
