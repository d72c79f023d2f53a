"""One task as learning sees it: its actions, the session it belongs to, whether it is over."""

from __future__ import annotations

from msgspec import Struct

from worker.wire.records import ActionRecord, LearnStatsRecord

#: The producer of what was sent without a `producer_id`; no producer can be called so.
UNNAMED = "-"


class PlacedAction(Struct, frozen=True, gc=False):
    """An action with what orders it independently of arrival: its producer's place for it."""

    record: ActionRecord
    batch_no: int
    received_at_ms: int
    place: tuple[str, int, int, int]  # producer_id or batch_id, epoch, batch_seq, index in the batch
    producer: str = UNNAMED


class TaskView(Struct, kw_only=True):
    """A task with all of its actions, in no particular order."""

    scenario: str
    task_id: str
    actions: list[PlacedAction]
    #: Learn stats of the session it belongs to (by the action's `session_id` or the stats' `task_ids`), once it ended.
    session: LearnStatsRecord | None = None
    #: No record came for the idle timeout: open sequences are closed too.
    idle: bool = False
