"""`python -m tests.stores.build NUMBER > tests/stores/schema_NUMBER.sql`: a store with a bit of everything, as text.

To be run with the code of a release, for its newest schema: later versions are tested to open what it wrote. Number 1
leaves out the ledger, which came with number 2.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from worker.clock import ManualClock
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.projector.projector import Projector
from worker.settings import LEARN_MODELS
from worker.store import open_store
from worker.store.port import IncomingBatch, IncomingReject, Model, OutboxEvent, Run, Store, StoredCommand, TriggerState
from worker.store.sqlite import migrate
from worker.wire.codec import decode_batch
from worker.wire.records import Batch

NOW = 1_700_000_000_000


def records(task: int) -> list[dict[str, Any]]:
    """A task and the end of its session, one record of each other type, explicit nulls and other alphabets."""
    actions: list[dict[str, Any]] = [
        {
            "type": "action", "task_id": f"t{task}", "tick": tick, "worker_id": 0, "action": action,
            "event_id": tick << 24, "target": None, "session_id": f"s{task}", "success": task % 3 > 0,
            "output": "naïve 数据 🙂",
        }
        for tick, action in enumerate(("look", "move", "done"))
    ]  # fmt: skip
    outcome = {"kind": "success", "score": 1.0} if task % 3 else {"kind": "failure", "reason": "no"}
    others: list[dict[str, Any]] = [
        {
            "type": "learn_stats", "session_id": f"s{task}", "stats_json": {"a": 1.0}, "outcome": outcome,
            "total_ticks": 3, "total_actions": 3,
        },
        {
            "type": "llm", "call_type": "decide", "prompt": "p", "response": "r", "model": "m", "endpoint": "e",
            "latency_ms": 1, "task_id": f"t{task}", "record_id": f"call-{task}",
        },
        {
            "type": "dependency_graph", "prompt": "order?", "response": "r", "available_actions": ["look", "move"],
            "discover_order": ["look"], "not_discover_order": ["move"], "model": "m", "endpoint": "e", "latency_ms": 1,
        },
    ]  # fmt: skip
    return [*actions, *others]


def incoming(seq: int) -> IncomingBatch:
    """Batches of one producer."""
    body = json.dumps(
        {"schema_version": 1, "producer_id": "node", "batch_seq": seq, "records": records(seq)}, ensure_ascii=False
    ).encode()
    batch = decode_batch(body, scenario="S")
    assert isinstance(batch, Batch), batch
    return IncomingBatch(
        scenario="S", batch=batch, body=body, received_at_ms=NOW, terminal_tasks=frozenset({f"t{seq}"})
    )


async def fill_log(store: Store) -> None:
    """Records, a quarantine entry, projections; the last task is stored and not projected yet."""
    await store.ingest([incoming(seq) for seq in range(6)])
    await store.ingest(
        [IncomingReject(scenario="S", reason="not_json", detail="$: no", body=b"{", received_at_ms=NOW, headers={})]
    )
    rules = Rules()
    models = learn_models(LEARN_MODELS, rules)
    projector = Projector(
        store, ManualClock(NOW), rules_of=lambda _: rules, models_of=lambda _: models, idle_ms=1, busy=lambda: False
    )
    await projector.catch_up()
    await store.ingest([incoming(6)])


async def fill_ledger(store: Store) -> None:
    """A run with its model, live; an event that was not sent, a command that is not carried out."""
    run = Run(
        run_id="run-1", scenario="S", kind="offline", state="queued", trigger={"kind": "manual"}, window_lo=1,
        window_hi=6, requested_at_ms=NOW,
    )  # fmt: skip
    await store.create_run(run)
    epoch = await store.acquire_lease("train", "me", now_ms=NOW, ttl_ms=15_000)
    assert epoch is not None
    started = await store.start_run("run-1", owner="me", lease="train", epoch=epoch, now_ms=NOW)
    model = Model(
        model_id="m" * 32, scenario="S", version=1, kind="offline", run_id="run-1", created_at_ms=NOW,
        uri="file:///m", sha256=hashlib.sha256(b"").hexdigest(), lineage={}, metrics={}, gate_verdict="blessed",
        gate_reasons=[],
    )  # fmt: skip
    event = OutboxEvent(
        event_id="event-1", type="learning.trained", scenario="S", routing_key="learning.trained.S", body=b"{}",
        created_at_ms=NOW,
    )  # fmt: skip
    await store.finish_run(
        replace(started, state="trained", ended_at_ms=NOW, model_id=model.model_id),
        lease="train",
        model=model,
        trigger_state=TriggerState(scenario="S", trained_upto=6),
        events=[event],
    )
    await store.accept_command(
        StoredCommand(command_id="c-1", command="train-now", scenario="S", body=b"{}", received_at_ms=NOW)
    )


async def build(path: Path, *, ledger: bool) -> None:
    """The whole store."""
    store = open_store(f"sqlite://{path}", ManualClock(NOW))
    await store.open()
    await fill_log(store)
    if ledger:
        await fill_ledger(store)
    await store.close()


def main(number: int) -> None:
    """Text on standard output."""
    if number == 1:
        every = migrate.migrations
        migrate.migrations = lambda folder=migrate.FOLDER: every(folder)[:1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "swarm.db"
        asyncio.run(build(path, ledger=number > 1))
        connection = sqlite3.connect(path)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        assert found == number, f"this code makes schema {found}"
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        sys.stdout.write(f"PRAGMA application_id={application_id};\nPRAGMA user_version={number};\n")
        sys.stdout.writelines(f"{statement}\n" for statement in connection.iterdump())
        connection.close()


if __name__ == "__main__":
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    main(int(sys.argv[1]))
