"""A swarm that asks a language model what to do, and what it lived: one session a task, solved by one order of actions.

Prompts are those that the tiny base knows; the actions on offer stand in another order each time, so that no two tasks
ask the same, and what is held out was not asked in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import permutations

from msgspec import Raw

from tests.lora.tiny import TARGETS
from worker.episodes.worker_decision_sequence import AVAILABLE_ACTIONS
from worker.wire.codec import encode_batch
from worker.wire.records import ActionRecord, LearnStatsRecord, Record, Success

#: Orders that the base may answer with, one of many.
FIRST_ORDER = ("ReadLogs", "Diagnose", "Restart", "done")
SECOND_ORDER = ("AnalyzeMetrics", "CheckStatus", "done")
#: Of the actions on offer, in an order that follows from nothing.
_OFFERS = [*permutations(AVAILABLE_ACTIONS[:-1])]
random.Random(0).shuffle(_OFFERS)


def lived(tasks: Iterable[int], order: Sequence[str], *, targets: Sequence[str] = TARGETS) -> list[Record]:
    """Records of these tasks, each solved by `order` for one of `targets`; each of these may be asked 120 things."""
    records: list[Record] = []
    for task in tasks:
        session = f"session-{task}"
        offered = [*_OFFERS[task // len(targets) % len(_OFFERS)], AVAILABLE_ACTIONS[-1]]
        records += [
            ActionRecord(
                task_id=f"task-{task}",
                tick=tick,
                worker_id=0,
                action=action,
                event_id=tick,
                session_id=session,
                target=targets[task % len(targets)],
                success=True,
                candidates=offered if tick == 0 else None,
            )
            for tick, action in enumerate(order)
        ]
        records.append(LearnStatsRecord(session, Raw(b"{}"), Success(1.0), len(order), len(order)))
    return records


def body(records: Sequence[Record], *, batch: int) -> bytes:
    """A records message."""
    return encode_batch(records, producer_id="swarm", producer_epoch=0, batch_seq=batch)
