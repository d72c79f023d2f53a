"""3,000 messages that nobody would send on purpose: each is stored or has a reason that is known, and nothing else."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import structlog

from tests.faults.fuzz import Fuzzed, bomb, messages
from tests.faults.oracle import chosen_seed
from tests.integration.foreign_node import body, depth, episode, line, node_at
from tests.integration.worker_process import NewWorker, until
from tests.unit.test_wire_corpus import BAD, GOOD_ONES
from worker.clock import ManualClock
from worker.episodes.rules import Rules
from worker.sink.judge import Judge
from worker.store import open_store
from worker.store.port import Duplicate, Incoming, IncomingReject, Quarantined, Stored, Verdict
from worker.wire.reasons import Reason

_NUMBER = 3_000
_REASONS = {str(reason) for reason in Reason}
#: Seconds for one message; the worst takes a fifth of a second on an idle machine.
_LONGEST = 5.0
#: What decoding may hold on to, and need at its height, in bytes.
_KEPT, _PEAK = 60_000_000, 500_000_000


def _judged(judge: Judge, fuzzed: Fuzzed) -> Incoming:
    return judge.message(
        "S", fuzzed.body, content_type=fuzzed.content_type, content_encoding=fuzzed.content_encoding
    )  # fmt: skip


async def test_each_of_3000_fuzzed_messages_is_stored_or_refused_for_a_known_reason(tmp_path: Path) -> None:
    """In time and memory that are bounded, and in groups with the corpus and with good neighbours."""
    seed = chosen_seed()
    judge = Judge(lambda _: Rules(), ManualClock())
    store = open_store(f"sqlite:///{tmp_path / 'swarm.db'}", ManualClock())
    await store.open()
    corpus = [Fuzzed(text) for text in (*(text for text, _ in BAD.values()), *GOOD_ONES.values())]
    bombs = [Fuzzed(bomb(size), "application/json", "gzip") for size in (8, 9, 256)]
    reasons: Counter[str] = Counter()
    verdicts: Counter[type] = Counter()
    process = psutil.Process()
    gc.collect()
    before, slowest = process.memory_info().rss, 0.0
    height = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with structlog.testing.capture_logs() as logged:
            group: list[Incoming] = []
            for number, fuzzed in enumerate([*messages(seed, _NUMBER), *corpus, *bombs]):
                began = time.process_time()
                group.append(_judged(judge, fuzzed))
                slowest = max(slowest, time.process_time() - began)
                if number % 7 == 0:
                    group.append(_judged(judge, Fuzzed(body(episode(number, success=True), batch_id=f"good-{number}"))))
                if len(group) >= 40:
                    _count(await store.ingest(group), group, reasons, verdicts)
                    group = []
            _count(await store.ingest(group), group, reasons, verdicts)
        assert not logged, (seed, logged[:3])
        facts = await store.facts("S")
        assert facts.batches == verdicts[Stored]
        neighbours = (_NUMBER + len(corpus) + len(bombs) + 6) // 7
        assert facts.sessions >= neighbours, seed
    finally:
        await store.close()
    gc.collect()
    assert verdicts[Stored] > 300 + neighbours, (seed, verdicts)  # the fuzz is not all rubbish
    assert len(reasons) >= 15, (seed, reasons)  # nor all of one kind
    assert Reason.UNEXPECTED not in reasons, (seed, reasons)
    assert Reason.STORE_REFUSED not in reasons, (seed, reasons)
    assert slowest < _LONGEST, (seed, slowest)
    assert process.memory_info().rss - before < _KEPT + 64_000_000, seed  # and the store's cache
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - height) * 1024 < _PEAK, seed


def _count(found: list[Verdict], group: list[Incoming], reasons: Counter[str], verdicts: Counter[type]) -> None:
    assert len(found) == len(group)
    for incoming, verdict in zip(group, found, strict=True):
        verdicts[type(verdict)] += 1
        if isinstance(verdict, Quarantined):
            assert verdict.reason in _REASONS
            reasons[verdict.reason] += 1
        else:
            assert isinstance(verdict, Stored | Duplicate)
            assert not isinstance(incoming, IncomingReject)


@pytest.mark.rabbitmq
@pytest.mark.timeout(180)
async def test_fuzzed_messages_through_the_broker_come_out_as_the_model_says_and_harm_no_neighbour(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """The model is the store in memory: the same messages in the same order, without a broker, a disk or a batch."""
    seed = chosen_seed()
    judge = Judge(lambda _: Rules(), ManualClock())
    model = open_store("memory:", ManualClock())
    await model.open()
    worker = new_worker(scenario)
    await worker.start()
    await worker.tell("pause", "--scenario", scenario, "--what", "ingest")
    neighbours: list[bytes] = []
    async with node_at(amqp_url) as node:

        async def publish(fuzzed: Fuzzed) -> None:
            await node.publish(
                scenario, fuzzed.body, content_type=fuzzed.content_type or "", content_encoding=fuzzed.content_encoding
            )
            await model.ingest(
                [
                    judge.message(
                        scenario,
                        fuzzed.body,
                        content_type=fuzzed.content_type,
                        content_encoding=fuzzed.content_encoding,
                    )
                ]
            )

        for number, fuzzed in enumerate([*messages(seed, 60), Fuzzed(bomb(64), None, "gzip")]):
            await publish(fuzzed)
            records = episode(number, success=True)
            neighbours += map(line, records)
            await publish(Fuzzed(body(records, producer_id="good", batch_seq=number)))
        await worker.tell("resume", "--scenario", scenario)
        facts = await model.facts(scenario)
        expected = (facts.batches, facts.records, facts.quarantined, facts.duplicate_records)
        names = ("batches", "records_received", "quarantined", "duplicate_records")
        await until(worker.scenario_status, lambda s: tuple(s[name] for name in names) == expected)
        await until(lambda: depth(node, f"swarm.records.{scenario}"), lambda n: n == 0)
        assert await depth(node, f"swarm.dead.{scenario}") == 0
    exported = set(await worker.exported())
    assert exported.issuperset(neighbours), seed
    listed = (await worker.cli("quarantine", "list", "--limit", "1000", "--json")).json
    modelled = await model.quarantine_list(scenario, limit=1_000)
    assert sorted((e["reason"], e["sha256"], e["seen"]) for e in listed) == sorted(
        (e.reason, e.sha256, e.seen) for e in modelled
    ), seed
    assert facts.quarantined > 20, (seed, os.getpid())
    assert not [entry for entry in worker.log() if entry["level"] == "error"], seed
    assert await worker.stop() == 0
