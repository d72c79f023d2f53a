"""The store's port: what every store does, and the values that cross it.

Each method is one transaction; when it returns, what it wrote is on disk. `StoreUnavailable` means nothing was written and
the same call may be made again; `DataRefused` means this data never will be. The contract tests in tests/contract run
against every implementation.

Positions: every stored batch gets the next `batch_no` of the store (1, 2, ...). A window of the log is a pair of them, and
"as of N" means the records of batches 1..N.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from worker.episodes.episode import Episode
from worker.episodes.task import TaskView
from worker.learning.counts import BucketedCounts, Counts
from worker.wire.records import Batch, DependencyGraphRecord, LearnStatsRecord, Record

# ---------------------------------------------------------------- the log


class IncomingBatch(Struct, kw_only=True):
    """A good batch on its way into the log."""

    scenario: str
    batch: Batch
    body: bytes  # as decoded, kept only where it must be quarantined after all
    received_at_ms: int
    terminal_tasks: frozenset[str] = frozenset()  # tasks with a terminal action in this batch


class IncomingReject(Struct, kw_only=True):
    """A message that cannot be a batch, on its way into quarantine."""

    scenario: str
    reason: str  # a code of worker.wire.reasons
    detail: str
    body: bytes
    received_at_ms: int
    headers: Mapping[str, str] = {}


Incoming: TypeAlias = IncomingBatch | IncomingReject


class Stored(Struct, frozen=True):
    """The batch is in the log; `fresh` of its records are new, the others were there under their own identity."""

    batch_no: int
    fresh: int
    duplicate_records: int
    conflicts: int = 0  # records whose identity was taken by another content: quarantined one by one


class Duplicate(Struct, frozen=True):
    """The same batch was stored before."""


class Quarantined(Struct, frozen=True):
    """The message is in quarantine."""

    reason: str


Verdict: TypeAlias = Stored | Duplicate | Quarantined


class StoredRecord(Struct, frozen=True):
    """A record with its place in the log."""

    scenario: str
    batch_no: int
    index: int  # place in its batch
    received_at_ms: int
    record: Record
    nulls: int  # see Batch.nulls


# ---------------------------------------------------------------- quarantine


class QuarantineEntry(Struct, kw_only=True):
    """One message (or record) that was not stored, with the reason."""

    entry_id: int
    scenario: str
    reason: str
    detail: str
    received_at_ms: int
    size: int  # bytes of the whole body
    sha256: str
    body: bytes  # the body, or its first 64 KB where it was over 1 MB
    truncated: bool
    headers: Mapping[str, str]
    seen: int  # how often the same body came with the same reason
    replayed_at_ms: int | None = None


# ---------------------------------------------------------------- projections


class PendingTask(Struct, kw_only=True):
    """A task that may be projected now: all of its actions as of `upto`, and what was projected of it before."""

    task: TaskView
    upto: int  # highest batch_no among its actions and its session
    session_batch_no: int | None
    projected_upto: int | None  # None: never projected
    projected_idle: bool


class PendingSession(Struct, kw_only=True):
    """A session whose statistics were not counted yet."""

    scenario: str
    batch_no: int
    received_at_ms: int
    record: LearnStatsRecord


class PendingGraph(Struct, kw_only=True):
    """A dependency-graph record that was not made an episode yet."""

    scenario: str
    batch_no: int
    index: int
    received_at_ms: int
    record: DependencyGraphRecord


Pending: TypeAlias = PendingTask | PendingSession | PendingGraph


class Projection(Struct, kw_only=True):
    """What came of a pending item: its episodes (all of them, replacing earlier ones) and the change of the counts."""

    of: Pending
    episodes: list[Episode]
    counts: BucketedCounts
    #: An open sequence is left in the task, so it becomes pending once more when it is idle, though no record comes.
    open_tail: bool = False


class EpisodeFilter(Struct, kw_only=True):
    """The original's `EpisodeFilter`; times are Unix ms, an absent field does not filter."""

    learn_model: str | None = None
    outcome: Literal["success", "failure", "timeout", "unknown"] | None = None
    min_score: float | None = None
    group_id: str | None = None
    session_id: str | None = None
    task_id: str | None = None
    worker_id: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    holdout: bool | None = None
    newest_first: bool = False
    limit: int | None = None
    offset: int = 0


class Session(Struct, kw_only=True):
    """One ended session with its place in the log."""

    scenario: str
    batch_no: int
    received_at_ms: int
    record: LearnStatsRecord


# ---------------------------------------------------------------- facts and triggers


class ScenarioFacts(Struct, kw_only=True):
    """What is stored of one scenario, as plain numbers that cost the same however much is stored."""

    scenario: str
    records: int = 0
    batches: int = 0
    duplicate_batches: int = 0
    duplicate_records: int = 0
    unknown_fields: int = 0
    quarantined: int = 0
    sessions: int = 0
    episodes: int = 0
    open_tasks: int = 0  # tasks with records that no projection has taken yet
    trainings_completed: int = 0
    models_applied: int = 0
    last_batch_no: int = 0
    first_record_at_ms: int | None = None
    last_record_at_ms: int | None = None


class RollingOutcomes(Struct, frozen=True):
    """The newest closed episodes with a known outcome (the original's `TriggerMetrics`)."""

    sample_count: int
    success_rate: float
    avg_score: float


class TriggerState(Struct, kw_only=True):
    """What a scenario's trigger remembers across restarts."""

    scenario: str
    #: Facts at the start of the last successful run; None: never trained.
    trained_upto: int | None = None  # batch_no, the watermark
    trained_episodes: int = 0
    trained_sessions: int = 0
    last_success_at_ms: int | None = None
    last_attempt_at_ms: int | None = None
    failures: int = 0  # in a row
    not_before_ms: int = 0  # back-off and cool-down
    trigger_errors: int = 0
    last_trigger_error: str | None = None
    paused: bool = False  # by command


# ---------------------------------------------------------------- runs, models, deployments

RunState: TypeAlias = Literal["queued", "running", "trained", "failed", "skipped"]


class Run(Struct, kw_only=True):
    """One training, from the moment somebody or something asked for it."""

    run_id: str
    scenario: str
    kind: Literal["offline", "lora"]
    state: RunState
    trigger: dict[str, Any]  # {"kind": "...", "values": {...}, "by": "..."}
    window_lo: int  # first batch_no not seen by the run before
    window_hi: int
    requested_at_ms: int
    apply: bool | None = None  # None: as apply_mode says; the command may say otherwise
    nonce: str = ""  # command id of a forced run, so that one window can be trained again on purpose
    attempts: int = 0
    epoch: int = 0  # of the lease that owns it: a zombie's is older
    owner: str | None = None
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    progress: float = 0.0  # 0-1
    progress_text: str = ""
    reason: str | None = None  # of a failed or skipped one
    model_id: str | None = None


class Model(Struct, kw_only=True):
    """One immutable version of what was learnt."""

    model_id: str  # content hash, 32 hex digits
    scenario: str
    version: int  # 1, 2, ... per scenario
    kind: Literal["offline", "lora"]
    run_id: str
    created_at_ms: int
    uri: str  # file:///.../models/<scenario>/<version>
    sha256: str  # of the model file
    lineage: dict[str, Any]  # window, counts, hashes, config, seed, versions, parent
    metrics: dict[str, Any]
    gate_verdict: Literal["blessed", "rejected", "not_evaluable"]
    gate_reasons: list[str]


class Deployment(Struct, kw_only=True):
    """What was live when: one row of the append-only log."""

    deployment_id: str
    scenario: str
    model_id: str
    previous_model_id: str | None
    action: Literal["apply", "rollback"]
    applicator: str
    target: str
    state: Literal["started", "verified", "failed"]
    by: str
    forced: bool
    at_ms: int
    detail: str = ""


class OutboxEvent(Struct, kw_only=True):
    """An event on its way out: stored with the change it tells of, sent until the broker confirms."""

    event_id: str
    type: str
    scenario: str
    routing_key: str
    body: bytes
    created_at_ms: int
    attempts: int = 0
    sent_at_ms: int | None = None


class StoredCommand(Struct, kw_only=True):
    """A command and what came of it; its id makes a second copy harmless."""

    command_id: str
    command: str
    scenario: str | None
    body: bytes
    received_at_ms: int
    reply_to: str | None = None
    correlation_id: str | None = None
    status: Literal["accepted", "done", "refused", "failed"] = "accepted"
    result: dict[str, Any] = {}
    error: str | None = None
    ended_at_ms: int | None = None


# ---------------------------------------------------------------- the port


class RecordLog(Protocol):
    """Idempotent, append-only storage of records."""

    async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
        """Store a group in one transaction and give one verdict each, in order.

        The same identity twice (also inside the group) with the same content hash is `Duplicate`; with another it is
        quarantined as `key_conflict`. A record whose own identity is taken is counted once; with another content it is
        quarantined alone and its neighbours are stored.
        """
        ...

    def records(
        self, scenario: str, *, type_: str | None = None, task_id: str | None = None, after: int = 0,
        limit: int | None = None,
    ) -> AsyncIterator[StoredRecord]:
        """Records in the order they were stored, of batches above `after`."""
        ...

    async def quarantine_list(
        self, scenario: str | None = None, *, reason: str | None = None, limit: int = 100, after: int = 0,
        pending_only: bool = False,
    ) -> list[QuarantineEntry]: ...

    async def quarantine_get(self, entry_id: int) -> QuarantineEntry | None: ...

    async def quarantine_mark_replayed(self, entry_ids: Sequence[int], now_ms: int) -> None: ...


class Projections(Protocol):
    """What is derived from the log, and can be dropped and rebuilt from it."""

    async def pending(self, *, now_ms: int, idle_ms: int, limit: int) -> list[Pending]:
        """Items that are ready: tasks that are dirty and closed (terminal action, ended session, idle for `idle_ms`) or
        were projected before, tasks projected with an `open_tail` that are idle now, sessions and graphs not counted
        yet. `limit` bounds the number of actions read."""
        ...

    async def project(self, projections: Sequence[Projection]) -> None:
        """Replace the episodes, add the counts, mark as projected: one transaction. Items that changed since they were
        read stay pending."""
        ...

    async def rebuild(self, scenario: str) -> None:
        """Drop every projection of the scenario and make all of its log pending again."""
        ...

    def episodes(self, scenario: str, where: EpisodeFilter) -> AsyncIterator[Episode]: ...

    async def count_episodes(self, scenario: str, where: EpisodeFilter) -> int: ...

    async def sessions(
        self, scenario: str, *, latest: int | None = None, since_ms: int | None = None, until_ms: int | None = None,
        group_id: str | None = None, phase: str | None = None,
    ) -> list[Session]:
        """Newest first."""
        ...

    async def counts(self, scenario: str | None, *, holdout: bool | None = None, since_day: int | None = None) -> Counts:
        """The aggregates, summed over days; `scenario` None sums over all scenarios."""
        ...

    async def graphs(self, scenario: str, *, latest: int) -> list[PendingGraph]:
        """The newest dependency-graph records, newest first, projected or not."""
        ...


class Facts(Protocol):
    """Cheap numbers about a scenario, and what its trigger remembers."""

    async def scenarios(self) -> list[str]: ...

    async def facts(self, scenario: str) -> ScenarioFacts: ...

    async def rolling_outcomes(self, scenario: str, *, learn_model: str, sample: int) -> RollingOutcomes | None: ...

    async def trigger_state(self, scenario: str) -> TriggerState: ...

    async def save_trigger_state(self, state: TriggerState) -> None: ...


class RunLedger(Protocol):
    """Runs as rows, owned under a lease whose epoch fences zombies."""

    async def acquire_lease(self, name: str, owner: str, *, now_ms: int, ttl_ms: int) -> int | None:
        """The epoch under which `owner` holds the lease now, or None while somebody else does."""
        ...

    async def renew_lease(self, name: str, owner: str, epoch: int, *, now_ms: int, ttl_ms: int) -> bool: ...

    async def release_lease(self, name: str, owner: str, epoch: int) -> None: ...

    async def create_run(self, run: Run) -> Run:
        """Store a queued run; where one with the same `run_id` is there already, that one comes back unchanged."""
        ...

    async def start_run(self, run_id: str, *, owner: str, lease: str, epoch: int, now_ms: int) -> Run:
        """queued (or running under an older epoch) -> running; `LeaseLost` where `epoch` is not the lease's own."""
        ...

    async def progress_run(self, run_id: str, epoch: int, progress: float, text: str) -> None: ...

    async def finish_run(
        self, run: Run, *, lease: str, model: Model | None, trigger_state: TriggerState | None,
        events: Sequence[OutboxEvent],
    ) -> None:
        """End a run, register its model (as alias `candidate`), move the watermark, queue the events: one transaction.
        `LeaseLost` and no effect where `run.epoch` is not the epoch of `lease` or the run is not running."""
        ...

    async def requeue_run(self, run_id: str, *, epoch: int, reason: str) -> None:
        """running -> queued, for a run that a shutdown interrupted."""
        ...

    async def run(self, run_id: str) -> Run | None: ...

    async def runs(
        self, scenario: str | None = None, *, states: Sequence[RunState] = (), limit: int = 100
    ) -> list[Run]:
        """Newest first."""
        ...


class ModelRegistry(Protocol):
    """Immutable versions, aliases that point at them, and the log of what was live when."""

    async def models(self, scenario: str, *, limit: int = 100) -> list[Model]:
        """Newest first."""
        ...

    async def model(self, model_id: str) -> Model | None: ...

    async def aliases(self, scenario: str) -> dict[str, str]:
        """Alias (`champion`, `candidate`, `previous`) to model id."""
        ...

    async def deploy(
        self, deployment: Deployment, *, aliases: Mapping[str, str | None], events: Sequence[OutboxEvent]
    ) -> None:
        """Append to the deployment log (or update the state of the same `deployment_id`), move aliases (None removes),
        queue events: one transaction. A `verified` `apply` counts in `models_applied` once."""
        ...

    async def deployments(self, scenario: str, *, limit: int = 100) -> list[Deployment]:
        """Newest first."""
        ...


class Outbox(Protocol):
    """Events that wait for the broker's confirm."""

    async def add_events(self, events: Sequence[OutboxEvent]) -> None: ...

    async def unsent_events(self, limit: int) -> list[OutboxEvent]:
        """Oldest first."""
        ...

    async def mark_sent(self, event_ids: Sequence[str], now_ms: int) -> None: ...

    async def mark_attempt(self, event_id: str) -> None: ...

    async def events(self, scenario: str | None = None, *, limit: int = 100) -> list[OutboxEvent]:
        """Newest first, sent or not."""
        ...


class CommandLedger(Protocol):
    """Commands by id."""

    async def accept_command(self, command: StoredCommand) -> StoredCommand | None:
        """Store a new command and return None; return what is stored where its id was seen before."""
        ...

    async def finish_command(
        self, command_id: str, *, status: Literal["done", "refused", "failed"], result: Mapping[str, Any],
        error: str | None, now_ms: int,
    ) -> StoredCommand: ...

    async def unfinished_commands(self) -> list[StoredCommand]: ...


class Maintenance(Protocol):
    """The store as a thing that is opened, checked, copied and closed."""

    async def open(self) -> None:
        """Migrate, verify durability settings, take the writer's lock. Raises `ConfigurationError` where the store
        is newer than this code or in use, `StoreCorrupt` where its check fails."""
        ...

    async def close(self) -> None: ...

    async def probe(self) -> None:
        """Write and commit something small; raises `StoreUnavailable` with the reason."""
        ...

    async def backup(self, target: Path) -> None:
        """A consistent, checked copy, made while the worker goes on."""
        ...

    async def describe(self) -> dict[str, Any]:
        """Kind, place, schema version, size in bytes, durability settings: for `check` and `describe`."""
        ...


class Store(RecordLog, Projections, Facts, RunLedger, ModelRegistry, Outbox, CommandLedger, Maintenance, Protocol):
    """All of it."""

