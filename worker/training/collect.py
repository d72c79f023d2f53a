"""Reads from the store what a run may learn from, once; the child gets the result as a file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import msgspec

from worker.episodes.cut import holdout, holdout_key
from worker.learning.action_order import PlacedGraph
from worker.learning.analyzer import AnalysisInput, EndedSession, count_rows
from worker.learning.offline_model import OfflineModel, Window
from worker.store.port import Facts, Projections, Run
from worker.training.inputs import FrozenFacts, TrainingConfig, TrainingInput, read_input

#: Newest dependency graphs an analysis looks at; the best of them gives the action order.
_GRAPHS = 50


class ProjectionsAndFacts(Projections, Facts, Protocol):
    """The two roles of the store that are read."""


async def collect(
    store: ProjectionsAndFacts, run: Run, *, config: TrainingConfig, champion: OfflineModel | None
) -> TrainingInput:
    """Read what the run may learn from. The facts are read first: what comes in meanwhile counts as new later too."""
    scenario = run.scenario
    facts = await store.facts(scenario)
    newest = await store.sessions(scenario, latest=config.max_sessions)
    sessions = [
        session for session in newest if not holdout(holdout_key(scenario, session.record.session_id), config.holdout)
    ]
    graphs = await store.graphs(scenario, latest=_GRAPHS)
    # Sorted in a thread, since ingest runs on this loop.
    train = await asyncio.to_thread(count_rows, await store.counts(scenario, holdout=False))
    held_out = await asyncio.to_thread(count_rows, await store.counts(scenario, holdout=True))
    return TrainingInput(
        run_id=run.run_id,
        kind=run.kind,
        analysis=AnalysisInput(
            scenario=scenario,
            counts=train,
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
        holdout=held_out,
        champion=champion,
        config=config,
        facts=FrozenFacts(
            last_batch_no=facts.last_batch_no, records=facts.records, episodes=facts.episodes, sessions=facts.sessions
        ),
        held_out_sessions=len(newest) - len(sessions),
    )


def frozen_before(run_dir: Path, run: Run) -> TrainingInput | None:
    """The input that an earlier attempt of this run froze, so that a retry trains on the same data."""
    try:
        given, _ = read_input(run_dir)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    return given if (given.run_id, given.analysis.scenario) == (run.run_id, run.scenario) else None
