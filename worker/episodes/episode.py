"""An episode: a slice of records with a verdict, the unit of learning."""

from __future__ import annotations

from msgspec import Struct

from worker.episodes.task import UNNAMED
from worker.wire.records import Outcome


class Step(Struct, frozen=True, gc=False):
    """One action inside an episode, as far as learning looks at it."""

    action: str
    ok: bool
    duration_ms: int = 0
    kpi: float | None = None
    discoveries: int = 0
    selection_logic: str | None = None


class Episode(Struct, kw_only=True):
    """What a learn model cut and judged (the original's `Episode` with its metadata).

    `episode_id` is a pure function of what was cut, `<learn_model>:<task or session>:<worker>:<ordinal>`, so rebuilding
    the same slice from the log gives the same id, however often and in whatever order its records came.
    """

    episode_id: str
    learn_model: str
    outcome: Outcome
    actions: list[str]
    task_id: str | None = None
    group_id: str | None = None
    session_id: str | None = None
    worker_id: int | None = None
    strategy: str | None = None
    mean_kpi: float | None = None
    start_tick: int | None = None
    end_tick: int | None = None
    duration_ms: int = 0
    #: Wall time of its last record (Unix ms): its own timestamp where sent, else when the batch came in.
    ended_at_ms: int = 0
    #: By session: held out from training, so that the gate judges on what the model never saw. Adapters go by task, see
    #: `worker.training.lora.split`.
    holdout: bool = False
    producer: str = UNNAMED  # who sent its last action
    tags: dict[str, str] = {}
