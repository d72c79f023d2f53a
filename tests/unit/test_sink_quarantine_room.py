"""The quarantine is bounded: its oldest entries move out into files, whole and on disk before they are forgotten."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_sink_run import Bench, FakeDelivery, FakeStore, body
from worker.clock import ManualClock
from worker.errors import StoreUnavailable, WorkerError
from worker.sink.quarantine_files import QuarantineFiles
from worker.sink.quarantine_room import QuarantineKeeper
from worker.store import open_store
from worker.store.port import IncomingReject, QuarantineEntry, Store

LIMIT = 100_000


def reject(number: int, size: int = 1_000) -> IncomingReject:
    """A bad message that no other one equals."""
    text = f"{number:06}".encode() + number.to_bytes(4, "big") * (size // 4)
    return IncomingReject(scenario="S", reason="not_json", detail=str(number), body=text, received_at_ms=number)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'swarm.db'}"
    opened = open_store(url, ManualClock())
    await opened.open()
    yield opened
    await opened.close()


def lines(directory: Path) -> list[Any]:
    """All that lies in files, oldest first."""
    return [
        json.loads(line)
        for path in sorted(directory.glob("[!.]*"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]


async def test_what_has_no_room_is_in_files_with_all_that_was_kept_of_it(store: Store, tmp_path: Path) -> None:
    keeper = QuarantineKeeper(store, QuarantineFiles(tmp_path / "q", 10 * LIMIT), LIMIT)
    rejects = [reject(number) for number in range(300)]
    for start in range(0, 300, 10):
        await keeper.make_room()
        await store.ingest(rejects[start : start + 10])
        assert (await store.quarantine_room()).bytes < LIMIT + 10 * 1_400
    await keeper.make_room()
    there = await store.quarantine_list(limit=1_000)
    moved = lines(tmp_path / "q")
    assert [int(line["detail"]) for line in moved] + [int(entry.detail) for entry in there] == list(range(300))
    assert [base64.b64decode(line["body"]) for line in moved] == [one.body for one in rejects[: len(moved)]]
    assert moved[0].keys() == set(there[0].__struct_fields__)
    report = await keeper.report()
    assert (report.entries, report.moved, report.file_entries) == (len(there), len(moved), len(moved))
    assert (report.deleted, report.bytes <= LIMIT, report.files > 1) == (0, True, True)
    assert report.file_bytes == sum(path.stat().st_size for path in (tmp_path / "q").iterdir())
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "q").iterdir()} == {0o600}


def test_file_and_directory_have_their_names_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store forgets what is in the file: a power cut right after must leave both to be found."""
    synced: list[int] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    entry = QuarantineEntry(
        entry_id=1, scenario="S", reason="not_json", detail="", received_at_ms=0, size=1, sha256="", body=b"{",
        truncated=False, headers={}, seen=1,
    )  # fmt: skip
    path = QuarantineFiles(tmp_path / "q", LIMIT).write([entry])
    assert {place.stat().st_ino for place in (tmp_path, path.parent, path)} <= set(synced)


async def test_the_files_are_bounded_too_and_what_is_deleted_is_counted(store: Store, tmp_path: Path) -> None:
    """Incompressible bodies, or nothing would be deleted."""
    keeper = QuarantineKeeper(store, QuarantineFiles(tmp_path / "q", 20_000), LIMIT)
    for number in range(300):
        random_looking = base64.b64encode(gzip.compress(bytes(number % 256 for _ in range(700)) + str(number).encode()))
        one = reject(number)
        one.body = random_looking + one.body
        await store.ingest([one])
        await keeper.make_room()
    report = await keeper.report()
    assert report.file_bytes <= 20_000 + 10_000  # and the newest file, which is never deleted
    assert report.deleted > 0
    assert report.deleted + report.file_entries + report.entries == 300
    newest = lines(tmp_path / "q")[-1]
    (oldest, *_) = await store.quarantine_list(limit=1)
    assert int(newest["detail"]) + 1 == int(oldest.detail)


async def test_a_crash_between_the_file_and_the_forgetting_leaves_no_entry_twice(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = QuarantineFiles(tmp_path / "q", 10 * LIMIT)
    keeper = QuarantineKeeper(store, files, LIMIT)
    await store.ingest([reject(number) for number in range(100)])

    async def dies(_: object) -> None:
        raise StoreUnavailable("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(store, "quarantine_move_out", dies)
        with pytest.raises(StoreUnavailable):
            await keeper.make_room()
    assert files.usage().files == 1
    assert len(await store.quarantine_list(limit=1_000)) == 100
    await store.ingest([reject(number) for number in range(100, 200)])
    await keeper.make_room()
    there = [entry.entry_id for entry in await store.quarantine_list(limit=1_000)]
    moved = [line["entry_id"] for line in lines(tmp_path / "q")]
    assert moved + there == sorted({*moved, *there})
    assert len(moved) + len(there) == 200


async def test_a_restored_store_gives_numbers_again_and_overwrites_no_file(tmp_path: Path) -> None:
    """What was moved out after the backup is nowhere but in those files; and they go on being bounded, oldest first."""
    here, backup, files = tmp_path / "swarm.db", tmp_path / "backup.db", tmp_path / "q"

    async def moved_out(first: int, number: int) -> None:
        store = open_store(f"sqlite:///{here}", ManualClock())
        await store.open()
        await store.ingest([reject(one) for one in range(first, first + number)])
        if not backup.exists():
            await store.backup(backup)
        await store.ingest([reject(one) for one in range(first + number, first + 2 * number)])
        await QuarantineKeeper(store, QuarantineFiles(files, 10 * LIMIT), LIMIT).make_room()
        await store.close()

    await moved_out(0, 60)
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    assert len(before) > 1
    backup.rename(here)
    backup.touch()
    await moved_out(1_000, 60)
    assert {name: (files / name).read_bytes() for name in before} == before
    assert len(list(files.iterdir())) > len(before)

    here.unlink()
    await moved_out(2_000, 100)  # a store made anew
    assert {name: (files / name).read_bytes() for name in before} == before
    bound = max(path.stat().st_size for path in files.iterdir())
    store = open_store(f"sqlite:///{here}", ManualClock())
    await store.open()
    await store.ingest([reject(one) for one in range(3_000, 3_100)])
    await QuarantineKeeper(store, QuarantineFiles(files, bound), LIMIT).make_room()
    assert sum(path.stat().st_size for path in files.iterdir()) <= 2 * bound
    await store.close()


@pytest.mark.parametrize(
    "damage",
    [
        # Named, since gzip writes the second of its making into the bytes, and the two processes of
        # a test run must collect the same names.
        pytest.param(b"no gzip", id="no gzip"),
        pytest.param(gzip.compress(b"{}\n"), id="gzip of something else"),
        pytest.param(gzip.compress(b"x" * 99)[:-9], id="gzip cut short"),
    ],
)
async def test_a_damaged_file_in_the_place_of_the_next_one_is_left_alone(
    store: Store, tmp_path: Path, damage: bytes
) -> None:
    """Nobody knows what was in it; and the worker goes on."""
    files = QuarantineFiles(tmp_path / "q", 10 * LIMIT)
    await store.ingest([reject(number) for number in range(100)])
    in_the_way = files.write(await store.quarantine_list(limit=5))
    in_the_way.write_bytes(damage)
    await QuarantineKeeper(store, files, LIMIT).make_room()
    assert in_the_way.read_bytes() == damage
    assert len(list((tmp_path / "q").iterdir())) > 1


async def test_where_no_file_can_be_written_nothing_is_forgotten_and_the_cure_is_told(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "q").write_text("in the way")
    keeper = QuarantineKeeper(store, QuarantineFiles(tmp_path / "q", LIMIT), LIMIT)
    await store.ingest([reject(number) for number in range(100)])
    with pytest.raises(StoreUnavailable, match=r"the quarantine is full.*SWARM_QUARANTINE_BYTES"):
        await keeper.make_room()
    assert len(await store.quarantine_list(limit=1_000)) == 100


async def test_one_entry_alone_stays_whatever_its_size(store: Store, tmp_path: Path) -> None:
    keeper = QuarantineKeeper(store, QuarantineFiles(tmp_path / "q", LIMIT), LIMIT)
    await store.ingest([reject(1, 500_000)])
    await keeper.make_room()
    assert len(await store.quarantine_list()) == 1


async def test_the_sink_waits_for_room_before_it_stores_and_holds_where_there_is_none() -> None:
    """A full quarantine is a store that takes no writes: nothing is acknowledged, and it goes on by itself."""
    looks: list[int] = []
    told: list[str] = []
    store = FakeStore()

    async def make_room() -> None:
        looks.append(len(store.kept))
        if len(looks) in (2, 3):
            raise StoreUnavailable("full")

    bench = Bench(store, make_room=make_room, on_store_down=told.append, on_store_up=lambda: told.append("up"))
    await bench.run(FakeDelivery(body(1)))
    bench.stopping.clear()
    await bench.run(FakeDelivery(body(2)), FakeDelivery(b"bad"))
    assert looks == [0]  # at the start, and not again while nothing comes into quarantine
    bench.stopping.clear()
    late = FakeDelivery(body(3))
    await bench.run(late)
    assert (looks, told, late.acks) == ([0, 3, 3, 3], ["full", "up"], 1)
    bench.stopping.clear()
    await bench.run(FakeDelivery(body(4)))
    assert len(looks) == 4


async def test_a_bug_in_keeping_the_room_quarantines_nobody() -> None:
    async def make_room() -> None:
        raise KeyError("bug")

    store = FakeStore()
    message = FakeDelivery(body(1))
    with pytest.raises(WorkerError, match="bug"):
        await Bench(store, make_room=make_room).run(message)
    assert (store.kept, message.acks) == ([], 0)
