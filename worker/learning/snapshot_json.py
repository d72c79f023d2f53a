"""Snapshots as JSON, tuple-keyed maps as rows, and the text form of their keys (the original's)."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from worker.learning.selection import SelectionPerformance
from worker.learning.snapshots import SNAPSHOT_VERSION, LearningSnapshot, SnapshotMetadata
from worker.learning.statistics import ActionStats, EpisodeTransitions, NgramStats, OkBad


class GlobalKey(Struct, frozen=True):
    """Everything: `global`."""

    def __str__(self) -> str:
        return "global"


class ScenarioKey(Struct, frozen=True):
    """One scenario: `scenario:<name>`."""

    scenario: str

    def __str__(self) -> str:
        return f"scenario:{self.scenario}"


class SessionKey(Struct, frozen=True):
    """One session: `session:<scenario>:<id>`; the id may hold colons, a scenario (a slug) never does."""

    scenario: str
    session_id: str

    def __str__(self) -> str:
        return f"session:{self.scenario}:{self.session_id}"


SnapshotKey = GlobalKey | ScenarioKey | SessionKey


def parse_snapshot_key(text: str) -> SnapshotKey:
    """The key that `str` wrote; raises `ValueError` for anything else."""
    match text.split(":", 2):
        case ["global"]:
            return GlobalKey()
        case ["scenario", name] if name:
            return ScenarioKey(name)
        case ["session", scenario, session_id] if scenario and session_id:
            return SessionKey(scenario, session_id)
    raise ValueError(f"{text!r} is no snapshot key; write global, scenario:<name> or session:<name>:<id>")


class _Document(Struct, kw_only=True):
    """A snapshot as it is written: rows `[action, ..., numbers...]`, sorted by their actions."""

    version: int
    metadata: SnapshotMetadata
    success_transitions: list[tuple[str, str, int]] = []
    failure_transitions: list[tuple[str, str, int]] = []
    success_starts: dict[str, int] = {}
    failure_starts: dict[str, int] = {}
    success_episodes: int = 0
    failure_episodes: int = 0
    trigrams: list[tuple[str, str, str, int, int]] = []
    quadgrams: list[tuple[str, str, str, str, int, int]] = []
    selection_performance: SelectionPerformance
    contextual_stats: list[tuple[str, str, ActionStats]] = []
    action_stats: dict[str, ActionStats] = {}


def encode_snapshot(snapshot: LearningSnapshot) -> bytes:
    """Canonical JSON: equal snapshots give equal bytes."""
    transitions, grams = snapshot.episode_transitions, snapshot.ngram_stats
    document = _Document(
        version=snapshot.version,
        metadata=snapshot.metadata,
        success_transitions=sorted((*pair, number) for pair, number in transitions.success_transitions.items()),
        failure_transitions=sorted((*pair, number) for pair, number in transitions.failure_transitions.items()),
        success_starts=transitions.success_starts,
        failure_starts=transitions.failure_starts,
        success_episodes=transitions.success_episodes,
        failure_episodes=transitions.failure_episodes,
        trigrams=sorted((*names, seen.ok, seen.bad) for names, seen in grams.trigrams.items()),
        quadgrams=sorted((*names, seen.ok, seen.bad) for names, seen in grams.quadgrams.items()),
        selection_performance=snapshot.selection_performance,
        contextual_stats=[(*pair, stats) for pair, stats in sorted(snapshot.contextual_stats.items())],
        action_stats=snapshot.action_stats,
    )
    return msgspec.json.encode(document, order="sorted")


def decode_snapshot(text: bytes) -> LearningSnapshot:
    """The snapshot that `encode_snapshot` wrote; raises `ValueError` for another version or form."""
    version: Any = msgspec.json.decode(text, type=dict[str, Any]).get("version")
    if version != SNAPSHOT_VERSION:
        raise ValueError(f"this snapshot has version {version!r}, and only version {SNAPSHOT_VERSION} can be read")
    document = msgspec.json.decode(text, type=_Document)
    return LearningSnapshot(
        version=document.version,
        metadata=document.metadata,
        episode_transitions=EpisodeTransitions(
            success_transitions={(a, b): number for a, b, number in document.success_transitions},
            failure_transitions={(a, b): number for a, b, number in document.failure_transitions},
            success_starts=document.success_starts,
            failure_starts=document.failure_starts,
            success_episodes=document.success_episodes,
            failure_episodes=document.failure_episodes,
        ),
        ngram_stats=NgramStats(
            trigrams={(a, b, c): OkBad(ok, bad) for a, b, c, ok, bad in document.trigrams},
            quadgrams={(a, b, c, d): OkBad(ok, bad) for a, b, c, d, ok, bad in document.quadgrams},
        ),
        selection_performance=document.selection_performance,
        contextual_stats={(a, b): stats for a, b, stats in document.contextual_stats},
        action_stats=document.action_stats,
    )
