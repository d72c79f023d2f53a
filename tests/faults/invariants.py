"""What must hold after every fault (I1 to I9), seen from outside: exports, queues, events, and SELECTs of our own."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.faults.oracle import RECORDS, Oracle
from tests.faults.store_state import damage, doubles, leftovers, opened
from tests.faults.watch import Bounds, Watch, keeps_within
from tests.integration.foreign_node import Ears, Node, depth
from tests.integration.worker_process import WorkerProcess, until
from worker.wire.events import event_id

#: Seconds until a fresh message is stored, and until a fresh train-now has its event (I6).
FRESH_STORED, FRESH_EVENT = 10.0, 30.0
#: Seconds until what was held up by the faults is through.
BACKLOG = 60.0

_TASK = "SELECT 1 FROM task t JOIN scenario s USING (scenario_no) WHERE s.name = ? AND t.task_id = ? AND t.actions > 0"


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a check that held, for tables."""

    confirmed: int
    stored: int
    duplicate_batches: int
    duplicate_records: int
    redelivered: int
    trained: int
    seconds: float


async def check(
    worker: WorkerProcess,
    oracle: Oracle,
    node: Node,
    *,
    ears: Ears | None = None,
    watch: Watch | None = None,
    bounds: Bounds | None = None,
    duplicates: bool = True,
    redeliveries: bool = True,
    backlog: float = BACKLOG,
) -> Report:
    """All invariants of a worker that runs, once the faults have stopped; it is stopped (SIGTERM) when this returns.

    `ears` must have been listening from the start; without them the events are checked in the outbox alone. With a
    `watch` the run must have seen a redelivery, and its figures must keep within `bounds`. `duplicates` and
    `redeliveries` are False only where a fault leaves no room for any.
    """
    began = time.monotonic()
    scenarios = worker.scenarios
    await oracle.resend(node)
    for name in scenarios:
        await fresh_is_stored(worker, oracle, node, name)
    await settled(worker, oracle, node, within=backlog)
    await asyncio.gather(*(fresh_is_trained(worker, name, ears) for name in scenarios))
    await quiet(worker)
    if watch is not None:
        await watch.look(worker)
    assert await worker.stop(within=25) == 0, worker.log_tail()

    for name in scenarios:
        for queue in (f"swarm.records.{name}", f"swarm.dead.{name}"):
            assert await depth(node, queue) == 0, f"I1: {queue} is not empty"
        lost, phantom, doubled = compare(oracle, name, await worker.exported(name))
        assert lost + phantom + doubled == [], (
            f"{name}, SWARM_TEST_SEED={oracle.seed}: I1 lost {len(lost)}, I2 unexpected {len(phantom)}, I3 doubled "
            f"{len(doubled)}; for example {[*lost[:1], *phantom[:1], *doubled[:1]]}"
        )
    with opened(worker) as store:
        assert (found := damage(store)) == [], f"I7: {found}"
        assert (found := doubles(store)) == [], f"I3: {found}"
        for name in scenarios:
            await events_match(store, name, ears)
        facts = store.execute(
            "SELECT sum(duplicate_batches), sum(duplicate_records), sum(quarantined) FROM scenario"
        ).fetchone()
        trained = store.execute("SELECT count(*) FROM training_run WHERE state = 'trained'").fetchone()[0]
    assert facts[2] == 0, f"I1: {facts[2]} in quarantine, though nothing wrong was sent"
    assert (left := leftovers(worker)) == [], f"I7: {left}"
    # I8: else all this would have shown nothing.
    assert not duplicates or facts[0] + facts[1] > 0, "I8: no duplicate was seen; send more, or die later"
    if watch is not None:
        assert not redeliveries or watch.redelivered > 0, "I8: no redelivery was seen"
        keeps_within(watch, bounds or Bounds())
    return Report(
        confirmed=sum(len(oracle.confirmed[name]) for name in scenarios),
        stored=sum(oracle.issued[name] for name in scenarios),
        duplicate_batches=facts[0],
        duplicate_records=facts[1],
        redelivered=0 if watch is None else watch.redelivered,
        trained=trained,
        seconds=time.monotonic() - began,
    )


# ---------------------------------------------------------------- I1, I2, I3: what is stored


def compare(oracle: Oracle, scenario: str, exported: list[bytes]) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Lines that were confirmed and are not there, that are there and were never issued, that are there twice."""
    there = Counter(exported)
    issued = set(oracle.all_lines(scenario))
    confirmed = (line for number in sorted(oracle.confirmed[scenario]) for line in oracle.lines(scenario, number))
    return (
        [line for line in confirmed if line not in there],
        [line for line in there if line not in issued],
        [line for line, times in there.items() if times > 1],
    )


# ---------------------------------------------------------------- I5: events


async def events_match(store: sqlite3.Connection, scenario: str, ears: Ears | None) -> None:
    """Each trained run and each verified deployment has one event under its one id; whoever listened has heard all."""

    def ids(query: str) -> set[str]:
        return {row[0] for row in store.execute(query, (scenario,))}

    runs = ids("SELECT run_id FROM training_run WHERE scenario = ? AND state = 'trained'")
    applied = ids("SELECT deployment_id FROM deployment WHERE scenario = ? AND action = 'apply' AND state = 'verified'")
    outbox = Counter(row[0] for row in store.execute("SELECT type FROM outbox WHERE scenario = ?", (scenario,)))
    sent = ids("SELECT event_id FROM outbox WHERE scenario = ? AND sent_at_ms IS NOT NULL")
    assert sent == ids("SELECT event_id FROM outbox WHERE scenario = ?"), "I5: some events were never sent"
    expected = {event_id(run, "learning.trained") for run in runs} | {
        event_id(one, "learning.applied") for one in applied
    }
    assert expected <= sent, f"I5: {len(expected - sent)} events are missing"
    assert (outbox["learning.trained"], outbox["learning.applied"]) == (len(runs), len(applied)), f"I5: {outbox}"
    facts = "SELECT trainings_completed, models_applied FROM scenario WHERE name = ?"
    assert store.execute(facts, (scenario,)).fetchone() == (len(runs), len(applied)), "I5: the counters differ"
    unended = "SELECT run_id FROM training_run WHERE scenario = ? AND state IN ('queued', 'running')"
    assert ids(unended) == set(), "I5: a run was left"
    if ears is not None:

        async def heard_all() -> bool:
            return sent <= ears.copies.keys()

        await until(heard_all)
        heard = {event["id"] for _, event in ears.deliveries if event["subject"] == scenario}
        assert heard == sent, f"I5: {len(sent - heard)} events were not heard, {len(heard - sent)} belong to nothing"


# ---------------------------------------------------------------- I6: alive


async def fresh_is_stored(worker: WorkerProcess, oracle: Oracle, node: Node, scenario: str) -> None:
    """A message published now is stored in time."""
    number = oracle.issued[scenario]
    assert await oracle.publish(node, scenario), "I6: the broker took no fresh message"

    async def stored() -> bool:
        with opened(worker) as store:
            return store.execute(_TASK, (scenario, f"t{number}")).fetchone() is not None

    try:
        await until(stored, within=FRESH_STORED)
    except AssertionError as error:
        raise AssertionError(f"I6: a fresh message of {scenario}: {error}; {worker.log_tail()}") from None


async def fresh_is_trained(worker: WorkerProcess, scenario: str, ears: Ears | None) -> None:
    """A train-now sent now brings an event in time, whatever the run brings."""
    began = time.monotonic()
    reply = await worker.tell("train-now", "--scenario", scenario, "--force", within=FRESH_EVENT)
    run_id = reply["result"]["run_id"]
    ids = {event_id(run_id, type_) for type_ in ("learning.trained", "learning.skipped")}

    async def told() -> bool:
        if ears is not None:
            return not ids.isdisjoint(ears.copies)
        with opened(worker) as store:
            sent = store.execute("SELECT event_id FROM outbox WHERE sent_at_ms IS NOT NULL")
            return not ids.isdisjoint(row[0] for row in sent)

    await until(told, within=FRESH_EVENT - (time.monotonic() - began))


async def settled(worker: WorkerProcess, oracle: Oracle, node: Node, *, within: float = BACKLOG) -> None:
    """Until all that was issued is stored and cut into episodes, and nothing is under way."""

    async def look() -> dict[str, Any]:
        status = await worker.status()
        left: dict[str, Any] = {"in_flight": status["counters"]["in_flight"]}
        for name in worker.scenarios:
            one = status["scenarios"][name]
            left[f"{name} missing"] = oracle.issued[name] * RECORDS - one.get("records_received", 0)
            left[f"{name} in queue"] = await depth(node, f"swarm.records.{name}")
            left[f"{name} open"] = one.get("open_tasks")
        return left

    await until(look, lambda left: not any(left.values()), within=within, every=0.1)


async def quiet(worker: WorkerProcess, *, within: float = 40.0) -> None:
    """Until no run is queued or running and every event is sent; a dead worker's lease runs out first."""

    async def look() -> int:
        with opened(worker) as store:
            return int(
                store.execute(
                    "SELECT (SELECT count(*) FROM training_run WHERE state IN ('queued', 'running'))"
                    " + (SELECT count(*) FROM outbox WHERE sent_at_ms IS NULL)"
                    " + (SELECT count(*) FROM deployment WHERE state = 'started')"
                ).fetchone()[0]
            )

    await until(look, lambda left: left == 0, within=within, every=0.1)
