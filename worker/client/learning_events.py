"""The swarm's three learning events (`LearningEvent`, the original's), and the record each becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw, Struct

from worker.wire.records import DependencyGraphRecord, LearnStatsRecord, Outcome, StrategyAdviceRecord
from worker.wire.stats import LearnStats, encode_learn_stats

#: Statistics of a session: typed, as an object, or as JSON text.
Statistics: TypeAlias = LearnStats | Mapping[str, Any] | str | bytes


class StrategyAdvice(Struct, frozen=True, kw_only=True):
    """What an advisor said about the selection strategy."""

    timestamp_ms: int
    tick: int
    advisor: str
    current_strategy: str
    recommended: str
    should_change: bool
    confidence: float
    reason: str
    frontier_count: int
    total_visits: int
    failure_rate: float
    latency_ms: int
    success: bool = True
    error: str | None = None
    session_id: str | None = None

    def to_record(self) -> StrategyAdviceRecord:
        """The record: the same fields."""
        return StrategyAdviceRecord(**msgspec.structs.asdict(self))


class DependencyGraphInference(Struct, frozen=True, kw_only=True):
    """An inferred order of actions. The record has only `error`, so an unsuccessful one without a message gets one."""

    timestamp_ms: int
    prompt: str
    response: str
    available_actions: tuple[str, ...]
    discover_order: tuple[str, ...]
    not_discover_order: tuple[str, ...]
    model: str
    endpoint: str
    latency_ms: int
    success: bool = True
    error: str | None = None
    lora: str | None = None
    session_id: str | None = None

    def to_record(self) -> DependencyGraphRecord:
        """The record; a failed inference always carries an error, so that it never replaces a good order."""
        return DependencyGraphRecord(
            prompt=self.prompt,
            response=self.response,
            available_actions=list(self.available_actions),
            discover_order=list(self.discover_order),
            not_discover_order=list(self.not_discover_order),
            model=self.model,
            endpoint=self.endpoint,
            latency_ms=self.latency_ms,
            timestamp_ms=self.timestamp_ms,
            lora=self.lora,
            error=self.error if self.success or self.error is not None else "the inference failed",
            session_id=self.session_id,
        )


class LearnStatsSnapshot(Struct, frozen=True, kw_only=True):
    """The end of a session: its statistics and outcome. One a session; `RecordPublisher.end_session` sees to that."""

    session_id: str
    outcome: Outcome
    total_ticks: int
    total_actions: int
    stats: Statistics | None = None  # None: no statistics were gathered
    timestamp_ms: int | None = None
    phase: str | None = None
    group_id: str | None = None
    task_ids: tuple[str, ...] | None = None

    def to_record(self) -> LearnStatsRecord:
        """The record, its statistics as a JSON object (or as the text that was given)."""
        return LearnStatsRecord(
            session_id=self.session_id,
            stats_json=Raw(_statistics_json(self.stats)),
            outcome=self.outcome,
            total_ticks=self.total_ticks,
            total_actions=self.total_actions,
            timestamp_ms=self.timestamp_ms,
            phase=self.phase,
            group_id=self.group_id,
            task_ids=None if self.task_ids is None else list(self.task_ids),
        )


#: The original's enum.
LearningEvent: TypeAlias = StrategyAdvice | DependencyGraphInference | LearnStatsSnapshot


def _statistics_json(stats: Statistics | None) -> bytes:
    if stats is None or isinstance(stats, LearnStats):
        return encode_learn_stats(stats or LearnStats())
    if isinstance(stats, str):
        return stats.encode()
    if isinstance(stats, bytes):
        return stats
    return msgspec.json.encode(stats)
