"""What one record may claim: nothing beyond reason gets past the wire, or far in what is learnt (S20)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.contract.projection_building import NOW, incoming, stats
from worker.clock import ManualClock
from worker.learning.tally import LARGEST_ADDEND, bounded, micro
from worker.store import open_store
from worker.wire.codec import decode_batch
from worker.wire.reasons import Reason, Rejection
from worker.wire.records import Batch
from worker.wire.times import AHEAD_MS, happened_at

ACTION = {"type": "action", "task_id": "t", "tick": 1, "worker_id": 0, "action": "a"}
STATS = {
    "type": "learn_stats", "session_id": "s", "stats_json": {}, "total_ticks": 1, "total_actions": 1,
    "outcome": {"kind": "success", "score": 1.0},
}  # fmt: skip
NEGATIVE = {"contextual_stats": [["a", "b", {"visits": -5, "successes": 2, "failures": 1}]]}


def decoded(record: dict[str, Any]) -> Batch | Rejection:
    envelope = {"schema_version": 1, "producer_id": "p", "producer_epoch": 0, "batch_seq": 1, "records": [record]}
    return decode_batch(orjson.dumps(envelope), scenario="S")


@pytest.mark.parametrize(
    "claim",
    [
        {"propensity": 0}, {"propensity": -0.1}, {"propensity": 1.1}, {"tick": -1}, {"worker_id": -1},
        {"duration_ms": -1}, {"timestamp_ms": -1}, {"discoveries": -1}, {"event_id": -1},
    ],
    ids=str,
)  # fmt: skip
def test_an_action_that_claims_the_impossible_is_refused(claim: dict[str, Any]) -> None:
    answer = decoded(ACTION | claim)
    assert isinstance(answer, Rejection)
    assert answer.reason is Reason.BAD_SCHEMA
    assert next(iter(claim)) in answer.detail


@pytest.mark.parametrize(
    "claim", [{"total_ticks": -1}, {"total_actions": -1}, {"timestamp_ms": -1}, {"stats_json": NEGATIVE}], ids=str
)
def test_learn_stats_that_claim_the_impossible_are_refused(claim: dict[str, Any]) -> None:
    assert isinstance(decoded(STATS | claim), Rejection)


def test_one_absurd_number_does_not_drown_all_others() -> None:
    """It is legal JSON, so it is stored as sent; in a sum it counts as the most that one record may."""
    assert isinstance(decoded(ACTION | {"kpi": 1e308, "duration_ms": 2**63 - 1}), Batch)
    assert micro(1e308) == LARGEST_ADDEND
    assert micro(-1e308) == -LARGEST_ADDEND
    assert bounded(2**63 - 1) == LARGEST_ADDEND


def test_nothing_happened_in_the_future() -> None:
    """But for clocks that are a little, or a time zone, ahead."""
    assert happened_at(None, NOW) == NOW
    assert happened_at(0, NOW) == 0
    assert happened_at(NOW + AHEAD_MS, NOW) == NOW + AHEAD_MS
    assert happened_at(NOW + AHEAD_MS + 1, NOW) == NOW
    assert happened_at(2**63 - 1, NOW) == NOW


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_sessions_from_the_year_3000_are_not_the_newest_for_ever(kind: str, tmp_path: Any) -> None:
    """They filled the window of every analysis to come."""
    store = open_store("memory:" if kind == "memory" else f"sqlite://{tmp_path}/s.db", ManualClock())
    await store.open()
    late = 32_503_680_000_000
    await store.ingest([incoming(stats(f"x{n}", timestamp_ms=late + n), seq=n, at_ms=NOW) for n in range(3)])
    await store.ingest([incoming(stats("today", timestamp_ms=NOW + 1), seq=9, at_ms=NOW + 1)])
    newest = await store.sessions("S", latest=1)
    assert [one.record.session_id for one in newest] == ["today"]
    await store.close()
