"""Contract of the quarantine, on every store."""

from __future__ import annotations

import hashlib

from tests.contract.log_building import NOW, action, incoming, quarantined, reject
from worker.store.port import (
    Quarantined,
    QuarantineEntry,
    QuarantineRoom,
    Store,
    Stored,
)
from worker.store.quarantine_rows import room_of


async def test_a_reject_is_kept_with_its_reason(store: Store) -> None:
    assert await store.ingest([reject(), incoming(action(0), seq=1)]) == [Quarantined("not_json"), Stored(1, 1, 0)]
    [entry] = await quarantined(store)
    assert await store.quarantine_get(entry.entry_id) == entry
    assert entry == QuarantineEntry(
        entry_id=entry.entry_id, scenario="S", reason="not_json", detail="$: no", received_at_ms=NOW, size=1,
        sha256=hashlib.sha256(b"{").hexdigest(), body=b"{", truncated=False, headers={"user_id": "node"}, seen=1,
    )  # fmt: skip
    assert await store.quarantine_get(entry.entry_id + 1) is None


async def test_the_same_reject_again_is_counted_on_its_entry(store: Store) -> None:
    """A redelivered poison message does not fill the table."""
    await store.ingest([reject(), reject(at_ms=NOW + 1)])
    await store.ingest([reject(), reject(b"x"), reject(reason="too_deep"), reject(scenario="T")])
    assert sorted((e.scenario, e.reason, e.body, e.seen) for e in await quarantined(store)) == [
        ("S", "not_json", b"x", 1),
        ("S", "not_json", b"{", 3),
        ("S", "too_deep", b"{", 1),
        ("T", "not_json", b"{", 1),
    ]
    assert (await store.facts("S")).quarantined == 3


async def test_a_huge_body_is_kept_in_part_and_known_in_whole(store: Store) -> None:
    whole, huge = b"a" * 1_000_000, b"b" * 1_000_001
    await store.ingest([reject(whole), reject(huge)])
    kept = [(len(e.body), e.truncated, e.size, e.sha256) for e in await quarantined(store)]
    assert kept == [
        (1_000_000, False, 1_000_000, hashlib.sha256(whole).hexdigest()),
        (65_536, True, 1_000_001, hashlib.sha256(huge).hexdigest()),
    ]


async def test_quarantine_is_listed_by_scenario_reason_and_page(store: Store) -> None:
    await store.ingest([reject(b"1"), reject(b"2", scenario="T"), reject(b"3", reason="too_deep"), reject(b"4")])
    assert [e.body for e in await store.quarantine_list("S")] == [b"1", b"3", b"4"]
    assert [e.body for e in await store.quarantine_list("S", reason="not_json")] == [b"1", b"4"]
    first = await store.quarantine_list(limit=3)
    assert [e.body for e in await store.quarantine_list(after=first[-1].entry_id)] == [b"4"]


async def test_a_replayed_entry_is_no_longer_pending_until_it_comes_back(store: Store) -> None:
    await store.ingest([reject(b"1"), reject(b"2")])
    entries = await quarantined(store)
    await store.quarantine_mark_replayed([entry.entry_id for entry in entries], NOW + 9)
    assert [e.replayed_at_ms for e in await quarantined(store)] == [NOW + 9, NOW + 9]
    assert await store.quarantine_list(pending_only=True) == []
    await store.ingest([reject(b"2")])
    assert [(e.body, e.seen) for e in await store.quarantine_list(pending_only=True)] == [(b"2", 2)]


async def test_the_room_it_takes_is_known_and_grows_only_with_new_entries(store: Store) -> None:
    assert await store.quarantine_room() == QuarantineRoom(0, 0, 0)
    await store.ingest([reject(b"x" * 1000), reject(b"x" * 1000), reject(b"y" * 1000, scenario="T")])
    room = await store.quarantine_room()
    assert room.entries == 2
    entries = await quarantined(store)
    assert room.bytes == sum(room_of(entry.body, entry.detail, entry.headers) for entry in entries)
    assert 2 * 1256 < room.bytes < 2 * 1400


async def test_what_was_moved_out_is_gone_and_counted_and_its_number_is_not_used_again(store: Store) -> None:
    await store.ingest([reject(b"1"), reject(b"2"), reject(b"3")])
    first, second, third = await quarantined(store)
    await store.quarantine_move_out([first.entry_id, second.entry_id, 999])
    assert await quarantined(store) == [third]
    assert await store.quarantine_room() == QuarantineRoom(1, room_of(third.body, third.detail, third.headers), 2)
    await store.ingest([reject(b"1")])
    assert [entry.entry_id for entry in await quarantined(store)] == [third.entry_id, third.entry_id + 1]
    assert (await store.facts("S")).quarantined == 4


async def test_replays_that_changed_nothing_are_counted(store: Store) -> None:
    await store.ingest([reject(b"1"), reject(b"2")])
    first, second = await quarantined(store)
    await store.quarantine_mark_refused([first.entry_id])
    await store.quarantine_mark_refused([first.entry_id, second.entry_id, 999])
    assert [entry.replays for entry in await quarantined(store)] == [2, 1]


async def test_those_that_were_tried_least_come_first(store: Store) -> None:
    """Else a few at a time would be the same few each time."""
    await store.ingest([reject(b"1"), reject(b"2", scenario="T"), reject(b"3", reason="too_deep"), reject(b"4")])
    one, two, three, four = [entry.entry_id for entry in await quarantined(store)]
    await store.quarantine_mark_refused([one])
    assert await store.quarantine_waiting(limit=3) == [two, three, four]
    assert await store.quarantine_waiting("S", limit=1 << 64) == [three, four, one]
    assert await store.quarantine_waiting("S", reason="not_json") == [four, one]
    await store.quarantine_mark_replayed([four], NOW)
    assert await store.quarantine_waiting("S", reason="not_json") == [one]
