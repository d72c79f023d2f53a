"""Tasks in a store, for the tests of training data: batches of actions, projected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worker.clock import SystemClock
from worker.episodes.model import LearnModel
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.projector.projector import Projector
from worker.settings import LEARN_MODELS
from worker.store.port import IncomingBatch, Store, Stored
from worker.wire.codec import decode_batch, encode_batch
from worker.wire.records import ActionRecord, Batch

RULES = Rules(holdout=0.3)
GOOD, BAD = ("look", "open", "done"), ("guess", "open", "give_up")


def task(name: str, actions: Sequence[str] = GOOD, *, target: str | None = None, **fields: Any) -> list[Any]:
    """The actions of one task."""
    return [
        ActionRecord(
            task_id=name, tick=tick, worker_id=0, action=action, event_id=tick, target=target or name, **fields
        )
        for tick, action in enumerate(actions)
    ]


async def tell(store: Store, records: list[Any], *, producer: str = "p", seq: int = 0, at_ms: int = 1_000) -> None:
    """Ingest one batch, as the sink does."""
    body = encode_batch(records, producer_id=producer, producer_epoch=0, batch_seq=seq)
    batch = decode_batch(body, scenario="S")
    assert isinstance(batch, Batch)
    terminal = frozenset(record.task_id for record in records if isinstance(record, ActionRecord))
    incoming = IncomingBatch(scenario="S", batch=batch, body=body, received_at_ms=at_ms, terminal_tasks=terminal)
    assert isinstance((await store.ingest([incoming]))[0], Stored)


async def project(store: Store, rules: Rules = RULES) -> None:
    """Bring the projections up to the log."""
    models = models_of("S", ())
    projector = Projector(
        store,
        SystemClock(),
        rules_of=lambda _: rules,
        models_of=lambda _: models,
        idle_ms=900_000,
        busy=lambda: False,
    )
    await projector.catch_up()


def models_of(scenario: str, seen: Sequence[str]) -> list[LearnModel]:
    """All built-in learn models."""
    return learn_models(LEARN_MODELS, RULES)
