"""What a training sees, frozen: read from the store once, written to the run's directory, the same at every attempt.

The child gets this file and nothing else: no store, no broker, no secret.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from worker import __version__
from worker.episodes.cut import holdout, holdout_key
from worker.learning.action_order import PlacedGraph
from worker.learning.analyzer import AnalysisInput, CountRow, EndedSession, count_rows
from worker.learning.offline_model import OfflineModel, Window
from worker.models.durable import make_private_directory, read_file, replace_file
from worker.models.gate import GateConfig
from worker.store.port import Facts, Projections, Run
from worker.training.results import INPUT_FILE

#: Newest dependency graphs an analysis looks at; the best of them gives the action order.
_GRAPHS = 50
_INPUT_LIMIT = 256_000_000


class TrainingConfig(Struct, frozen=True, kw_only=True):
    """What shapes a model beside the data; its hash is part of a run's identity."""

    max_sessions: int
    holdout: float
    gate: GateConfig
    seed: int = 42  # the original's default
    worker_version: str = __version__

    @property
    def hash(self) -> str:
        """SHA-256 over canonical JSON, 16 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


class FrozenFacts(Struct, frozen=True, kw_only=True):
    """How much was stored when the input was frozen: the watermark of a run that succeeds."""

    last_batch_no: int
    records: int
    episodes: int
    sessions: int


class TrainingInput(Struct, frozen=True, kw_only=True):
    """Everything the child reads."""

    format: int = 1
    run_id: str
    kind: str
    analysis: AnalysisInput
    #: Counts of what was held out, for the gate alone.
    holdout: list[CountRow]
    #: The live model, which a new one is compared with; None: with the logged behaviour.
    champion: OfflineModel | None
    config: TrainingConfig
    facts: FrozenFacts
    #: Sessions among the newest that were held out.
    held_out_sessions: int
    frozen_at_ms: int


class _Source(Projections, Facts, Protocol):
    """The two roles of the store that are read."""


def encode_input(given: TrainingInput) -> bytes:
    """Canonical JSON; its SHA-256 is the lineage's input hash."""
    return msgspec.json.encode(given, order="sorted")


def decode_input(data: bytes) -> TrainingInput:
    """From JSON; raises `msgspec.DecodeError`."""
    return msgspec.json.decode(data, type=TrainingInput)


async def collect(
    store: _Source, run: Run, *, config: TrainingConfig, champion: OfflineModel | None, now_ms: int
) -> TrainingInput:
    """Read what the run may learn from. The facts are read first: what comes in meanwhile counts as new later too."""
    scenario = run.scenario
    facts = await store.facts(scenario)
    newest = await store.sessions(scenario, latest=config.max_sessions)
    sessions = [
        session for session in newest if not holdout(holdout_key(scenario, session.record.session_id), config.holdout)
    ]
    graphs = await store.graphs(scenario, latest=_GRAPHS)
    train = await store.counts(scenario, holdout=False)
    held_out = await store.counts(scenario, holdout=True)
    return TrainingInput(
        run_id=run.run_id,
        kind=run.kind,
        analysis=AnalysisInput(
            scenario=scenario,
            counts=count_rows(train),
            sessions=[EndedSession(record=one.record, received_at_ms=one.received_at_ms) for one in sessions],
            graphs=[
                PlacedGraph(
                    record=one.record, received_at_ms=one.received_at_ms, batch_no=one.batch_no, index=one.index
                )
                for one in graphs
            ],
            previous=champion,
            window=Window(lo=run.window_lo, hi=max(run.window_hi, facts.last_batch_no)),
            updated_at_ms=facts.last_record_at_ms or 0,
        ),
        holdout=count_rows(held_out),
        champion=champion,
        config=config,
        facts=FrozenFacts(
            last_batch_no=facts.last_batch_no, records=facts.records, episodes=facts.episodes, sessions=facts.sessions
        ),
        held_out_sessions=len(newest) - len(sessions),
        frozen_at_ms=now_ms,
    )


def write_input(run_dir: Path, given: TrainingInput) -> None:
    """Put the input in the run's directory, 0700, read-only for the child."""
    make_private_directory(run_dir)
    replace_file(run_dir / INPUT_FILE, encode_input(given), mode=0o400)


def read_input(run_dir: Path) -> tuple[TrainingInput, str]:
    """The input and its SHA-256; raises OSError or `msgspec.DecodeError`."""
    data = read_file(run_dir / INPUT_FILE, limit=_INPUT_LIMIT)
    return decode_input(data), hashlib.sha256(data).hexdigest()


def frozen_before(run_dir: Path, run: Run) -> TrainingInput | None:
    """The input that an earlier attempt of this run froze, so that a retry trains on the same data."""
    try:
        given, _ = read_input(run_dir)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    return given if (given.run_id, given.analysis.scenario) == (run.run_id, run.scenario) else None
