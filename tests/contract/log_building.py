"""Batches, rejects and records for the contract tests of the log."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from worker.store.port import (
    IncomingBatch,
    IncomingReject,
    QuarantineEntry,
    Store,
    StoredRecord,
)
from worker.wire.records import (
    ActionRecord,
    Batch,
    BatchIdentity,
    LearnStatsRecord,
    LlmCallRecord,
    Record,
    Success,
)

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000


def incoming(
    *records: Record,
    seq: int | None = None,
    batch_id: str | None = None,
    producer: str = "node-1",
    epoch: int = 0,
    scenario: str = "S",
    at_ms: int = NOW,
    content: bytes = b"",
    unknown_fields: int = 0,
) -> IncomingBatch:
    """A batch as the sink hands it over; `content` stands for another body where the records do not show it."""
    body = msgspec.json.encode(list(records)) + content
    identity = (
        BatchIdentity(producer, epoch, seq, None) if seq is not None else BatchIdentity(None, 0, None, batch_id or "b")
    )
    batch = Batch(identity, hashlib.sha256(body).digest(), list(records), None, unknown_fields)
    return IncomingBatch(scenario=scenario, batch=batch, body=body, received_at_ms=at_ms)


def reject(body: bytes = b"{", *, reason: str = "not_json", scenario: str = "S", at_ms: int = NOW) -> IncomingReject:
    """A message that is none."""
    return IncomingReject(
        scenario=scenario, reason=reason, detail="$: no", body=body, received_at_ms=at_ms, headers={"user_id": "node"}
    )


def action(event_id: int | None = 0, task_id: str = "t", **fields: Any) -> ActionRecord:
    """An action; its event id is its identity."""
    return ActionRecord(
        **{"task_id": task_id, "tick": 1, "worker_id": 2, "action": "look", "event_id": event_id, **fields}
    )


def llm(prompt: str = "p", **fields: Any) -> LlmCallRecord:
    """A call without an identity of its own."""
    return LlmCallRecord(
        call_type="decide",
        prompt=prompt,
        response="r",
        model="m",
        endpoint="e",
        latency_ms=1,
        **fields,
    )


def stats(session_id: str = "s", **fields: Any) -> LearnStatsRecord:
    """The end of a session."""
    given: dict[str, Any] = {
        "stats_json": Raw(b'{"total":1.0}'),
        "outcome": Success(1),
        "total_ticks": 3,
        "total_actions": 4,
    }
    return LearnStatsRecord(session_id=session_id, **{**given, **fields})


async def everything(store: Store, scenario: str = "S", **where: Any) -> list[StoredRecord]:
    """All records, in order."""
    return [stored async for stored in store.records(scenario, **where)]


async def quarantined(store: Store) -> list[QuarantineEntry]:
    """All of quarantine."""
    return await store.quarantine_list()
