"""Damage within rows: found by their check sums when they are read, set aside, named; never learnt from."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.projection_building import IDLE, NOW, action, graph, incoming, stats
from tests.unit.sqlite_building import damage, store_at
from worker.clock import ManualClock
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.projector.projector import Projector
from worker.store.port import PendingGraph, PendingSession, PendingTask, Projection
from worker.store.sqlite import SqliteStore
from worker.training.exports import TrainingDataExport
from worker.wire.records import ActionRecord, Record

_TASKS = 40
_FLIPS = 30


def marked(task: int, number: int) -> ActionRecord:
    """An action whose body can be found in the file."""
    return ActionRecord(f"t{task}", number, 1, "look", number, output=f"mark-{task}-{number}-" + "x" * 40)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A store with tasks of three actions, a session and a graph, nothing of it projected; closed."""
    path = tmp_path / "swarm.db"
    store = store_at(path)
    await store.open()
    for task in range(_TASKS):
        records: list[Record] = [marked(task, number) for number in range(3)]
        await store.ingest([incoming(*records, seq=task, ends=[f"t{task}"])])
    others = incoming(stats("s1", ["t0"], phase="mark-session"), stats("s2"), graph(), seq=_TASKS)
    await store.ingest([others])
    await store.close()
    return path


def contents(path: Path) -> bytes:
    """The whole file."""
    return path.read_bytes()


def replace(path: Path, content: bytearray) -> None:
    """Another file in its place."""
    path.write_bytes(content)


def change(path: Path, statement: str) -> None:
    """Behind the store's back, and behind its check sums."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount == 1


async def ready(store: SqliteStore) -> tuple[dict[str, list[ActionRecord]], set[str], int]:
    """What the projector would get: actions by task, sessions, the number of graphs."""
    items = await store.pending(now_ms=NOW, idle_ms=IDLE, limit=100_000)
    tasks = {
        item.task.task_id: [placed.record for placed in item.task.actions]
        for item in items
        if isinstance(item, PendingTask)
    }
    sessions = {item.record.session_id for item in items if isinstance(item, PendingSession)}
    return tasks, sessions, sum(isinstance(item, PendingGraph) for item in items)


async def test_any_flipped_bit_of_a_body_is_found_and_only_its_task_is_set_aside(path: Path) -> None:
    """Thirty bits, one at a time, in the bytes of as many actions; SQLite's own check sees none of them."""
    whole = contents(path)
    chance = random.Random(1)
    for _ in range(_FLIPS):
        task, number = chance.randrange(_TASKS), chance.randrange(3)
        at = whole.index(b"mark-%d-%d-" % (task, number)) + chance.randrange(-10, 40)
        bit = 1 << chance.randrange(8)
        spoilt = bytearray(whole)
        spoilt[at] ^= bit
        replace(path, spoilt)
        store = store_at(path)
        await store.open()
        tasks, sessions, graphs = await ready(store)
        await store.close()
        place = f"byte {at}, bit {bit}"
        assert tasks.keys() == {f"t{n}" for n in range(_TASKS) if n != task}, place
        assert all(records == [marked(int(name[1:]), each) for each in range(3)] for name, records in tasks.items()), (
            place
        )
        assert (sessions, graphs) == ({"s1", "s2"}, 1), place
        (row,) = store.damage
        assert (row.scenario, row.table, row.task_id) == ("S", "record", f"t{task}"), place
        assert row.row == (task + 1 << 14) + number, place


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET task_no = 2 WHERE position = (1 << 14) + 1",
        "UPDATE record SET kind = 1 WHERE position = (1 << 14) + 1",
        "UPDATE record SET position = (1 << 14) + 9 WHERE position = (1 << 14) + 1",
        "UPDATE record SET body = '[]' WHERE position = (1 << 14) + 1",
        "UPDATE record SET body = 'no JSON' WHERE position = (1 << 14) + 1",
        "UPDATE record SET body = CAST(x'ff00fe' AS TEXT) WHERE position = (1 << 14) + 1",
        "UPDATE record SET check_sum = 1 WHERE position = (1 << 14) + 1",
        "UPDATE record SET body = 'no JSON', check_sum = NULL WHERE position = (1 << 14) + 1",
        "DELETE FROM record WHERE position = (1 << 14) + 1",
    ],
)
async def test_a_row_that_was_changed_moved_or_lost_is_not_learnt_from(path: Path, statement: str) -> None:
    change(path, "UPDATE record SET sequence = 77 WHERE position = (1 << 14) + 1")  # makes room in the index
    change(path, statement)
    store = store_at(path)
    await store.open()
    tasks, *_ = await ready(store)
    await store.close()
    assert "t0" not in tasks
    assert tasks.keys() >= {f"t{n}" for n in range(2, _TASKS)}
    assert all(records == [marked(int(name[1:]), n) for n in range(3)] for name, records in tasks.items())
    assert "t0" in {row.task_id for row in store.damage}
    assert all("restore a backup" in str(row) for row in store.damage)


async def test_a_damaged_session_is_in_no_training_and_its_tasks_wait(path: Path) -> None:
    change(
        path, "UPDATE record SET body = replace(body, 'mark-session', 'mark-Session') WHERE body LIKE '%mark-session%'"
    )
    store = store_at(path)
    await store.open()
    assert [session.record.session_id for session in await store.sessions("S")] == ["s2"]
    (row,) = store.damage
    tasks, sessions, _ = await ready(store)
    assert (sessions, "t0" in tasks, "t1" in tasks) == ({"s2"}, False, True)
    assert await store.sessions("S", latest=5)
    assert store.damage == [row]
    await store.close()


async def test_a_damaged_graph_is_in_no_training(path: Path) -> None:
    change(path, "UPDATE record SET body = replace(body, '[', '[ ') WHERE kind = 2")
    store = store_at(path)
    await store.open()
    assert await store.graphs("S", latest=9) == []
    assert (await ready(store))[2] == 0
    assert len(store.damage) == 1
    await store.close()


async def test_an_export_leaves_a_damaged_record_out_and_writes_the_rest(path: Path) -> None:
    damage(path, lambda content: content.__setitem__(content.index(b"mark-3-1"), 0x20))
    store = store_at(path, read_only=True)
    await store.open()
    found = [stored.record async for stored in store.records("S")]
    assert len(found) == 3 * _TASKS + 3 - 1
    assert marked(3, 1) not in found
    assert [row.task_id for row in store.damage] == ["t3"]
    await store.close()


async def test_what_is_set_aside_stays_so_until_a_rebuild_finds_it_sound(path: Path) -> None:
    """Over a restart, and though new records of the task come."""
    whole = contents(path)
    damage(path, lambda content: content.__setitem__(content.index(b"mark-5-0"), 0x20))
    store = store_at(path)
    await store.open()
    await ready(store)
    await store.close()

    again = store_at(path)
    await again.open()
    assert [row.task_id for row in again.damage] == ["t5"]
    await again.ingest([incoming(action(9, "t5"), seq=100, ends=["t5"])])
    assert "t5" not in (await ready(again))[0]
    await again.rebuild("S")
    assert again.damage == []
    assert "t5" not in (await ready(again))[0]
    assert [row.task_id for row in again.damage] == ["t5"]
    await again.close()

    at = whole.index(b"mark-5-0")
    damage(path, lambda content: content.__setitem__(content.index(b" ark-5-0"), whole[at]))
    repaired = store_at(path)
    await repaired.open()
    await repaired.rebuild("S")
    assert len((await ready(repaired))[0]["t5"]) == 4
    assert repaired.damage == []
    await repaired.close()


async def test_what_was_learnt_before_the_damage_stays_learnt(path: Path) -> None:
    """A late record must not take back, by rows that nobody can read, what sound rows had added."""
    store = store_at(path)
    await store.open()
    items = await store.pending(now_ms=NOW, idle_ms=IDLE, limit=100_000)
    await store.project([Projection(of=item, episodes=[], counts={}) for item in items])
    await store.close()
    damage(path, lambda content: content.__setitem__(content.index(b"mark-7-2"), 0x20))
    again = store_at(path)
    await again.open()
    assert (await ready(again))[0] == {}
    assert again.damage == []  # nobody has read it
    await again.ingest([incoming(action(9, "t7"), seq=100)])
    assert (await ready(again))[0] == {}
    assert [row.task_id for row in again.damage] == ["t7"]
    await again.close()


async def test_a_copy_of_a_damaged_record_is_quarantined(path: Path) -> None:
    """Nobody can say whether it is a copy, so it is neither dropped as one nor stored beside it."""
    damage(path, lambda content: content.__setitem__(content.index(b"mark-4-2"), 0x20))
    store = store_at(path)
    await store.open()
    await store.ingest([incoming(marked(4, 2), seq=100)])
    (entry,) = await store.quarantine_list()
    assert entry.reason == "record_conflict"
    await store.close()


async def test_rows_of_before_the_check_sums_are_taken_as_they_are(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE record SET check_sum = NULL")
    store = store_at(path)
    await store.open()
    tasks, sessions, graphs = await ready(store)
    assert (len(tasks), sessions, graphs, store.damage) == (_TASKS, {"s1", "s2"}, 1, [])
    await store.close()


async def test_a_backup_says_what_of_it_is_damaged(path: Path, tmp_path: Path) -> None:
    """The copy is made all the same: it may be the only one."""
    damage(path, lambda content: content.__setitem__(content.index(b"mark-8-1"), 0x20))
    store = store_at(path, read_only=True)
    await store.open()
    await store.backup(tmp_path / "backup.db")
    assert [(row.table, row.task_id) for row in store.damage] == [("record", "t8")]
    await store.close()
    copy = store_at(tmp_path / "backup.db", read_only=True)
    await copy.open()
    assert len([stored async for stored in copy.records("S")]) == 3 * _TASKS + 3 - 1
    await copy.close()


async def test_training_data_leaves_out_the_episodes_of_a_damaged_task(path: Path) -> None:
    store = store_at(path)
    await store.open()
    rules = Rules()
    models = learn_models(("worker_decision_sequence",), rules)
    projector = Projector(
        store, ManualClock(NOW), rules_of=lambda _: rules, models_of=lambda _: models, idle_ms=IDLE, busy=lambda: False
    )
    await projector.catch_up()
    whole = TrainingDataExport(store, "S", models=models, rules=rules)
    assert len([line async for line in whole.lines()]) == 1  # of the one task whose session ended well
    await store.close()
    damage(path, lambda content: content.__setitem__(content.index(b"mark-0-1"), 0x20))
    again = store_at(path)
    await again.open()
    export = TrainingDataExport(again, "S", models=models, rules=rules)
    assert [line async for line in export.lines()] == []
    assert "a record of its task is damaged" in {excluded.reason for excluded in export.excluded}
    await again.close()
