"""The five record types and the batch envelope, as they travel in `swarm.records.<scenario>`.

Field names and defaults are those of swarm-engine-core 0.1.6 (`ActionRecord`, `LlmCallRecord`, ...) with the additions
of this worker's wire contract. An optional field that was not sent is None here; its domain default is applied by the
reader (`ActionRecord.succeeded`), so that what is stored and exported stays what was sent.

The types themselves take no unknown field: that is the fast way to find out that there is one. `worker.wire.codec`
ignores and counts them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Raw, Struct

#: Wire schema versions this worker reads.
SCHEMA_VERSION = 1
#: Characters in any one string.
MAX_STRING = 65_536
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Text: TypeAlias = Annotated[str, Meta(max_length=MAX_STRING)]
Slug64: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?\Z", max_length=64)]
Key: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
#: int64, never negative: the original's u64 and usize, kept to what every JSON reader and both stores hold.
Count: TypeAlias = Annotated[int, Meta(ge=0, le=INT64_MAX)]
#: A JSON number as sent: 1 stays 1 and 1.0 stays 1.0, so that an export equals what came in.
Number: TypeAlias = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)] | float
Propensity: TypeAlias = Annotated[int, Meta(gt=0, le=1)] | Annotated[float, Meta(gt=0, le=1)]
Milliseconds: TypeAlias = Count


class _Outcome(Struct, frozen=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True):
    """What the four outcomes share."""


class Success(_Outcome, frozen=True, tag="success"):
    """The goal was reached; `score` says how well, usually 0.0-1.0."""

    score: Number


class Failure(_Outcome, frozen=True, tag="failure"):
    """The goal was missed."""

    reason: Text


class Timeout(_Outcome, frozen=True, tag="timeout"):
    """Time ran out; `partial_score` is what was reached by then, if known."""

    partial_score: Number | None = None


class Unknown(_Outcome, frozen=True, tag="unknown"):
    """Nobody said. Never enters a rate."""


Outcome: TypeAlias = Success | Failure | Timeout | Unknown


def score_of(outcome: Outcome) -> float:
    """The outcome as one number: a timeout counts its partial score, failure and unknown 0.0 (the original's)."""
    match outcome:
        case Success(score):
            return float(score)
        case Timeout(partial) if partial is not None:
            return float(partial)
        case _:
            return 0.0


class _Record(Struct, tag_field="type", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What the five record types share."""


class ActionRecord(_Record, tag="action"):
    """One step of one swarm worker. Identity: `(task_id, event_id)` where `event_id` is given."""

    task_id: Key
    tick: Count
    worker_id: Count
    action: Name
    event_id: Count | None = None
    session_id: Key | None = None
    group_id: Key | None = None
    target: Text | None = None
    success: bool | None = None
    error: Text | None = None
    duration_ms: Milliseconds | None = None
    timestamp_ms: Milliseconds | None = None
    kpi: Number | None = None
    discoveries: Count | None = None
    output: Text | None = None
    cost: Number | None = None
    selection_logic: Text | None = None
    from_guidance: bool | None = None
    previous_action: Text | None = None
    lora: Text | None = None
    propensity: Propensity | None = None
    candidates: list[Text] | None = None
    policy_version: Text | None = None
    record_id: Key | None = None

    @property
    def succeeded(self) -> bool:
        """An action that says nothing of success succeeded (the original's default)."""
        return self.success is not False


class LlmCallRecord(_Record, tag="llm"):
    """One call of a language model. `call_type` is `decide` or `call_raw` in the original."""

    call_type: Text
    prompt: Text
    response: Text
    model: Text
    endpoint: Text
    latency_ms: Milliseconds
    lora: Text | None = None
    timestamp_ms: Milliseconds | None = None
    worker_id: Count | None = None
    error: Text | None = None
    task_id: Key | None = None
    session_id: Key | None = None
    record_id: Key | None = None


class DependencyGraphRecord(_Record, tag="dependency_graph"):
    """An inferred order of actions: which discover, which do not, and the prompt that gave it."""

    prompt: Text
    response: Text
    available_actions: list[Text]
    discover_order: list[Text]
    not_discover_order: list[Text]
    model: Text
    endpoint: Text
    latency_ms: Milliseconds
    timestamp_ms: Milliseconds | None = None
    lora: Text | None = None
    error: Text | None = None
    session_id: Key | None = None
    record_id: Key | None = None


class StrategyAdviceRecord(_Record, tag="strategy_advice"):
    """What an advisor said about the selection strategy."""

    timestamp_ms: Milliseconds
    tick: Count
    advisor: Text
    current_strategy: Text
    recommended: Text
    should_change: bool
    confidence: Number
    reason: Text
    frontier_count: Count
    total_visits: Count
    failure_rate: Number
    latency_ms: Milliseconds
    success: bool
    error: Text | None = None
    session_id: Key | None = None
    record_id: Key | None = None


class LearnStatsRecord(_Record, tag="learn_stats"):
    """The end of one session: its statistics and its outcome. Identity: `session_id`.

    `stats_json` is kept as sent, JSON text or an object; `worker.learning` reads it.
    """

    session_id: Key
    stats_json: Raw
    outcome: Outcome
    total_ticks: Count
    total_actions: Count
    timestamp_ms: Milliseconds | None = None
    scenario: Text | None = None
    phase: Text | None = None
    group_id: Key | None = None
    task_ids: list[Key] | None = None
    record_id: Key | None = None


Record: TypeAlias = ActionRecord | LlmCallRecord | DependencyGraphRecord | StrategyAdviceRecord | LearnStatsRecord


class BatchIdentity(Struct, frozen=True):
    """Who sent which batch: the counter of a producer's epoch, else a batch id, else the SHA-256 of the body.

    Exactly one road is filled: (`producer_id`, `producer_epoch`, `batch_seq`) or `batch_id` (which holds
    `sha256:<hex>` where the producer named nothing).
    """

    producer_id: str | None
    producer_epoch: int
    batch_seq: int | None
    batch_id: str | None


class Batch(Struct):
    """One records message, decoded and found good."""

    identity: BatchIdentity
    content_hash: bytes  # SHA-256 of the body after decompression, 32 bytes
    records: list[Record]
    #: Per record, a bit for each field (in struct order) that was sent as an explicit null, and one more for the
    #: `partial_score` of its outcome; None when no record had one.
    nulls: list[int] | None
    #: Extra fields that nobody knows, in the whole batch: ignored and counted.
    unknown_fields: int
