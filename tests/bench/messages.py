"""The messages of every case: actions of about 400 bytes on the wire, 20 a task, as our own client sends them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from msgspec import Raw

from worker.wire.codec import encode_batch
from worker.wire.records import ActionRecord, LearnStatsRecord, Record, Success
from worker.wire.stats import ContextualActionStats, EpisodeTransitions, LearnStats, NgramStats, encode_learn_stats

ACTIONS_A_TASK = 20
TASKS_A_SESSION = 50
NOW_MS = 1_790_000_000_000
ACTIONS = ("search_flights", "get_user_details", "read_file", "grep", "analyse", "done")


def identity(kind: str, number: int) -> str:
    """36 characters, in the order of the numbers: the bare pipeline keys its rows by them and is fastest so."""
    return f"{kind}-{number:031d}"


def action(number: int) -> ActionRecord:
    """The action of this number; the last one of a task is terminal."""
    task, step = divmod(number, ACTIONS_A_TASK)
    return ActionRecord(
        task_id=identity("task", task),
        tick=step,
        worker_id=step % 4,
        action="done" if step == ACTIONS_A_TASK - 1 else ACTIONS[number % 5],
        event_id=step << 24 | (step % 4) << 8,
        session_id=identity("session", task // TASKS_A_SESSION),
        group_id="g1790000000000",
        target=f"src/module_{number % 50}.py",
        success=number % 5 != 0,
        duration_ms=number % 900,
        timestamp_ms=NOW_MS + number,
        kpi=0.25,
        discoveries=number % 3,
        output=f"found {number} matches in the tree",
        selection_logic="UCB1",
        previous_action=ACTIONS[(number - 1) % 5],
    )


def bodies(messages: int, per_message: int, *, first: int = 0) -> Iterator[bytes]:
    """Bodies of records messages; batch `n` holds the records from `n * per_message`, beginning with batch `first`."""
    for batch in range(first, first + messages):
        start = batch * per_message
        records: list[Record] = [action(start + at) for at in range(per_message)]
        yield encode_batch(records, producer_id="node-7", producer_epoch=0, batch_seq=batch)


def ended_sessions(messages: int, rows: int) -> Iterator[bytes]:
    """Bodies with one ended session each, whose statistics have so many rows of each kind."""
    names = [f"action_{number}" for number in range(rows + 2)]
    pairs = list(itertools.pairwise(names))
    stats = LearnStats(
        episode_transitions=EpisodeTransitions(
            success_transitions=dict.fromkeys(pairs, 3),
            failure_transitions=dict.fromkeys(zip(names, names[2:], strict=False), 2),
            success_episodes=3,
            failure_episodes=2,
        ),
        ngram_stats=NgramStats(trigrams=dict.fromkeys(zip(names, names[1:], names[2:], strict=False), (3, 2))),
        contextual_stats=dict.fromkeys(pairs, ContextualActionStats(visits=5, successes=3, failures=2)),
    )
    text = Raw(encode_learn_stats(stats))
    for number in range(messages):
        record = LearnStatsRecord(
            session_id=identity("learner", number),
            stats_json=text,
            outcome=Success(score=1.0),
            total_ticks=100,
            total_actions=5 * rows,
            timestamp_ms=NOW_MS + number,
        )
        yield encode_batch([record], producer_id="node-8", producer_epoch=0, batch_seq=number)
