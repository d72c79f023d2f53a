"""The messages of every case: actions of about 400 bytes on the wire, 20 a task, as our own client sends them."""

from __future__ import annotations

from collections.abc import Iterator

from worker.wire.codec import encode_batch
from worker.wire.records import ActionRecord, Record

ACTIONS_A_TASK = 20
TASKS_A_SESSION = 50
NOW_MS = 1_790_000_000_000
ACTIONS = ("search_flights", "get_user_details", "read_file", "grep", "analyse", "done")


def identity(kind: str, number: int) -> str:
    """A UUID that is the same in every run, and as unordered as a random one: indexes must not have it easy."""
    return f"{kind}-{number:031d}"


def action(number: int, variety: int = 1) -> ActionRecord:
    """The action of this number; the last one of a task is terminal. `variety` times five different names."""
    task, step = divmod(number, ACTIONS_A_TASK)
    name = _name(number, variety)
    return ActionRecord(
        task_id=identity("task", task),
        tick=step,
        worker_id=step % 4,
        action="done" if step == ACTIONS_A_TASK - 1 else name,
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
        previous_action=_name(number - 1, variety),
    )


def _name(number: int, variety: int) -> str:
    name = ACTIONS[number % 5]
    return name if variety == 1 else f"{name}_{(number * 2_654_435_761 >> 9) % variety}"


def bodies(messages: int, per_message: int, *, first: int = 0, variety: int = 1) -> Iterator[bytes]:
    """Bodies of records messages; batch `n` holds the records from `n * per_message`, beginning with batch `first`."""
    for batch in range(first, first + messages):
        start = batch * per_message
        records: list[Record] = [action(start + at, variety) for at in range(per_message)]
        yield encode_batch(records, producer_id="node-7", producer_epoch=0, batch_seq=batch)
