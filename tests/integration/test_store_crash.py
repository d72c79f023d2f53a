"""kill -9 at any moment: what the SQLite store acknowledged is there once, and no change is there by half.

Run as a program, this file is the child: it stores batches and trainings and tells of each on its standard output.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from msgspec.structs import replace

from worker.clock import ManualClock
from worker.store import open_store
from worker.store.port import IncomingBatch, Model, OutboxEvent, Run, Store, TriggerState
from worker.wire.records import ActionRecord, Batch, BatchIdentity

NOW = 1_700_000_000_000
TTL = 15_000
CYCLES = 10
RECORDS = 3


def batch(number: int) -> IncomingBatch:
    """The batch of this number, the same each time it is sent."""
    records = [
        ActionRecord(task_id=f"t{number}", tick=place, worker_id=0, action="go", event_id=number * RECORDS + place)
        for place in range(RECORDS)
    ]
    return IncomingBatch(
        scenario="S",
        batch=Batch(
            identity=BatchIdentity("node", 0, number, None),
            content_hash=hashlib.sha256(str(number).encode()).digest(),
            records=[*records],
            nulls=None,
            unknown_fields=0,
        ),
        body=b"",
        received_at_ms=NOW,
    )


def queued(number: int) -> Run:
    """The training of this number."""
    return Run(
        run_id=f"r{number}",
        scenario="S",
        kind="offline",
        state="queued",
        trigger={},
        window_lo=number,
        window_hi=number,
        requested_at_ms=NOW,
    )


async def train(store: Store, number: int, *, owner: str, epoch: int, now_ms: int) -> None:
    """Carry a training to its end, from wherever the last process left it."""
    if (await store.create_run(queued(number))).state == "trained":
        return
    run = await store.start_run(f"r{number}", owner=owner, lease="train", epoch=epoch, now_ms=now_ms)
    newest = await store.models("S", limit=1)
    model = Model(
        model_id=f"{number:032x}",
        scenario="S",
        version=newest[0].version + 1 if newest else 1,
        kind="offline",
        run_id=run.run_id,
        created_at_ms=now_ms,
        uri="file:///m",
        sha256="00",
        lineage={},
        metrics={},
        gate_verdict="blessed",
        gate_reasons=[],
    )
    event = OutboxEvent(
        event_id=run.run_id,
        type="learning.trained",
        scenario="S",
        routing_key="k",
        body=b"{}",
        created_at_ms=now_ms,
    )
    await store.finish_run(
        replace(run, state="trained", ended_at_ms=now_ms, model_id=model.model_id),
        lease="train",
        model=model,
        trigger_state=TriggerState(scenario="S", trained_upto=number),
        events=[event],
    )


async def store_until_killed(url: str, cycle: int, first: int) -> None:
    """Store one batch and one training after the other, without end; `ACK n` follows the commits of both."""
    now_ms = NOW + cycle * 10 * TTL
    store = open_store(url, ManualClock(now_ms))
    await store.open()
    owner = f"life-{cycle}"
    epoch = await store.acquire_lease("train", owner, now_ms=now_ms, ttl_ms=TTL)
    assert epoch is not None
    number = first
    while True:
        await store.ingest([batch(number)])
        await train(store, number, owner=owner, epoch=epoch, now_ms=now_ms)
        print(f"ACK {number}", flush=True)  # noqa: T201 - the parent reads it
        number += 1


def acknowledged_before_death(url: str, cycle: int, first: int) -> list[int]:
    """Start a child, kill it at a random moment after a random number of acknowledgements; all that it gave."""
    command = [sys.executable, __file__, url, str(cycle), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        # pytest-randomly seeds this and prints the seed. The first line tells that the store was opened.
        lines = [child.stdout.readline() for _ in range(random.randint(2, 25))]
        time.sleep(random.random() * 0.005)
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        errors = child.stderr.read()
        assert child.wait() == -signal.SIGKILL, errors
    return [int(line.removeprefix("ACK ")) for line in lines if line.startswith("ACK ")]


async def check(url: str, acknowledged: set[int]) -> None:
    """Open the store and compare all of it with what was acknowledged."""
    store = open_store(url, ManualClock())
    await store.open()
    try:
        found = [stored async for stored in store.records("S")]
        runs, models = await store.runs("S", limit=100_000), await store.models("S", limit=100_000)
        events, state = await store.events(limit=100_000), await store.trigger_state("S")
        aliases, facts = await store.aliases("S"), await store.facts("S")
    finally:
        await store.close()

    of_batch = Counter(int(stored.record.task_id[1:]) for stored in found if isinstance(stored.record, ActionRecord))
    assert acknowledged <= of_batch.keys()
    assert set(of_batch.values()) == {RECORDS}
    assert len({stored.record.event_id for stored in found if isinstance(stored.record, ActionRecord)}) == len(found)
    assert (facts.batches, facts.records) == (len(of_batch), len(found))

    trained = [int(run.run_id[1:]) for run in runs if run.state == "trained"]
    assert acknowledged <= set(trained)
    assert [model.model_id for model in models] == [f"{number:032x}" for number in trained]
    assert [model.version for model in models] == list(range(len(models), 0, -1))
    assert [event.event_id for event in events] == [f"r{number}" for number in trained]
    assert facts.trainings_completed == len(trained)
    assert state.trained_upto == max(trained)
    assert aliases == {"candidate": models[0].model_id}


def damage(path: Path) -> list[tuple[object, ...]]:
    """What SQLite itself finds wrong, apart from our own look."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("PRAGMA quick_check").fetchall()
        return [*(row for row in rows if row != ("ok",)), *connection.execute("PRAGMA foreign_key_check")]
    finally:
        connection.close()


def test_what_was_acknowledged_survives_kill_nine_exactly_once(tmp_path: Path) -> None:
    """Ten lives of one store; each begins with what the last may have stored without its word being heard."""
    path = tmp_path / "swarm.db"
    acknowledged = set[int]()
    for cycle in range(CYCLES):
        first = max(acknowledged, default=1)
        fresh = acknowledged_before_death(f"sqlite://{path}", cycle, first)
        assert fresh == list(range(first, first + len(fresh)))
        acknowledged.update(fresh)
        assert damage(path) == []
        asyncio.run(check(f"sqlite://{path}", acknowledged))
    assert len(acknowledged) >= CYCLES


if __name__ == "__main__":
    asyncio.run(store_until_killed(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
