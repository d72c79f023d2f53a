"""Stores of every released schema are opened, migrated and gone on with; nothing of them is lost or counted anew."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.stores import build
from worker.clock import ManualClock
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.projector.projector import Projector
from worker.settings import LEARN_MODELS
from worker.store import open_store
from worker.store.port import Duplicate, EpisodeFilter, Store, Stored
from worker.store.sqlite.migrate import migrations
from worker.wire.codec import record_to_json

_STORES = Path(build.__file__).parent
#: Schemas that a release had.
RELEASED = (1, 2)
PRODUCER = "node"


def old_store(folder: Path, schema: int) -> Path:
    """The file as that version left it."""
    path = folder / "swarm.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((_STORES / f"schema_{schema}.sql").read_text(encoding="utf-8"))
        assert connection.execute("PRAGMA user_version").fetchone() == (schema,)
    return path


@pytest.fixture(params=RELEASED)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An old store, opened by today's code."""
    opened = open_store(f"sqlite://{old_store(tmp_path, request.param)}", ManualClock(build.NOW))
    await opened.open()
    yield opened
    await opened.close()


def projector(store: Store) -> Projector:
    """As it ran when the store was made."""
    rules = Rules()
    models = learn_models(LEARN_MODELS, rules)
    return Projector(
        store,
        ManualClock(build.NOW),
        rules_of=lambda _: rules,
        models_of=lambda _: models,
        idle_ms=1,
        busy=lambda: False,
    )


async def test_every_record_is_there_as_it_was_sent(store: Store) -> None:
    assert (await store.describe())["schema"] == len(migrations())
    sent = [record for number in range(7) for record in build.records(number)]
    assert [json.loads(record_to_json(one.record, one.nulls)) async for one in store.records("S")] == sent
    assert store.damage == []
    facts = await store.facts("S")
    assert (facts.records, facts.batches, facts.sessions, facts.quarantined) == (len(sent), 7, 7, 1)
    assert [entry.reason for entry in await store.quarantine_list()] == ["not_json"]


async def test_what_is_sent_again_is_known_and_what_is_new_is_stored(store: Store) -> None:
    assert isinstance((await store.ingest([build.incoming(3)]))[0], Duplicate)
    assert isinstance((await store.ingest([build.incoming(7)]))[0], Stored)
    await projector(store).catch_up()
    assert (await store.facts("S")).open_tasks == 0


async def test_projections_go_on_and_a_rebuild_gives_the_same(store: Store) -> None:
    working = projector(store)
    await working.catch_up()
    counts = await store.counts("S")
    episodes = [one async for one in store.episodes("S", EpisodeFilter())]
    assert counts
    await working.follow_rules(["S"])  # as a start does
    await working.catch_up()
    assert await store.counts("S") == counts
    again = [one async for one in store.episodes("S", EpisodeFilter())]
    # Who sent an episode's records is newer than these stores; those of a graph name nobody.
    assert {one.producer for one in again if one.task_id is not None} == {PRODUCER}
    assert [replace(one, producer="") for one in again] == [replace(one, producer="") for one in episodes]


async def test_triggers_know_what_an_old_store_was_trained_on(tmp_path: Path) -> None:
    """Episodes by learn model and counted sessions are newer than it; the next training waits for new ones."""
    store = open_store(f"sqlite://{old_store(tmp_path, 2)}", ManualClock(build.NOW))
    await store.open()
    facts, state = await store.facts("S"), await store.trigger_state("S")
    assert 0 < facts.counted_sessions <= facts.sessions
    assert sum(facts.episodes_by_model.values()) == facts.episodes > 0
    assert state.trained_by_model == facts.episodes_by_model
    await projector(store).catch_up()
    counts = await store.counts("S")
    await projector(store).follow_rules(["S"])  # what is counted by producer now is counted anew
    await projector(store).catch_up()
    assert await store.counts("S") == counts
    assert set(await store.producers("S")) == {PRODUCER}
    await store.close()


async def test_the_ledger_goes_on(tmp_path: Path) -> None:
    """Of a store that had one: its runs, models, aliases, events and commands."""
    store = open_store(f"sqlite://{old_store(tmp_path, 2)}", ManualClock(build.NOW))
    await store.open()
    (run,) = await store.runs("S")
    (model,) = await store.models("S")
    assert (run.state, run.model_id, model.version) == ("trained", model.model_id, 1)
    assert await store.aliases("S") == {"candidate": model.model_id}
    assert (await store.trigger_state("S")).trained_upto == 6
    assert [event.event_id for event in await store.unsent_events(10)] == ["event-1"]
    assert [command.command_id for command in await store.unfinished_commands()] == ["c-1"]
    assert await store.acquire_lease("train", "you", now_ms=build.NOW + 60_000, ttl_ms=1) == 2
    await store.close()


def test_each_released_schema_is_tried() -> None:
    """A release adds the text of its own: `python -m tests.stores.build`."""
    assert {file.name for file in _STORES.glob("schema_*.sql")} == {f"schema_{number}.sql" for number in RELEASED}
    assert max(RELEASED) <= len(migrations())
