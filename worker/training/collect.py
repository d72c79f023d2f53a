"""Reads from the store what a run may learn from, once, into files for the child.

What is in hand at a time does not grow with what is stored: counts go to their files a chunk at a time, and of each
family of counts a run takes the best supported names (`worker.learning.bounds`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from worker.durable import make_private_directory
from worker.episodes.cut import holdout, holdout_key
from worker.learning.action_order import PlacedGraph
from worker.learning.analyzer import AnalysisInput, EndedSession
from worker.learning.offline_model import OfflineModel, Window
from worker.learning.shares import WHOLE, ProducerTotals, producer_weights, sessions_of_one
from worker.store.port import Facts, Projections, Run
from worker.training.inputs import (
    COUNTS_FILE,
    HOLDOUT_FILE,
    FrozenFacts,
    RowsFile,
    TrainingConfig,
    TrainingInput,
    read_head,
    write_head,
)

#: Newest dependency graphs an analysis looks at; the best of them gives the action order.
_GRAPHS = 50
#: Producers that are told of by name; the smaller ones together under `OTHERS`, which no producer can be called.
_NAMED = 50
OTHERS = "(others)"


class ProjectionsAndFacts(Projections, Facts, Protocol):
    """The two roles of the store that are read."""


async def collect(
    store: ProjectionsAndFacts, run: Run, *, config: TrainingConfig, champion: OfflineModel | None, run_dir: Path
) -> TrainingInput:
    """Freeze in `run_dir` what the run may learn from; the head of it, without the counts.

    The facts are read first: what comes in meanwhile counts as new later too.
    """
    scenario = run.scenario
    facts = await store.facts(scenario)
    totals = await store.producers(scenario)
    weights = producer_weights(totals, config.producer_share)
    newest = await store.sessions(
        scenario,
        latest=config.max_sessions,
        most_of_one=sessions_of_one(totals, config.producer_share, config.max_sessions),
    )
    sessions = [
        session for session in newest if not holdout(holdout_key(scenario, session.record.session_id), config.holdout)
    ]
    graphs = await store.graphs(scenario, latest=_GRAPHS)
    await asyncio.to_thread(make_private_directory, run_dir)
    head = TrainingInput(
        run_id=run.run_id,
        kind=run.kind,
        analysis=AnalysisInput(
            scenario=scenario,
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
        champion=champion,
        config=config,
        facts=FrozenFacts(
            last_batch_no=facts.last_batch_no,
            records=facts.records,
            episodes=facts.episodes,
            episodes_by_model=facts.episodes_by_model,
            sessions=facts.counted_sessions,
        ),
        held_out_sessions=len(newest) - len(sessions),
        producers=_told(totals),
        capped={name: weight / WHOLE for name, weight in weights.items()},
        counts_sha256=await _freeze_counts(store, scenario, run_dir / COUNTS_FILE, weights, held_out=False),
        holdout_sha256=await _freeze_counts(store, scenario, run_dir / HOLDOUT_FILE, weights, held_out=True),
    )
    await asyncio.to_thread(write_head, run_dir, head)
    return head


def frozen_before(run_dir: Path, run: Run, config: TrainingConfig) -> TrainingInput | None:
    """The head of the input that an earlier attempt of this run froze, so that a retry trains on the same data.

    None where the settings are others now.
    """
    try:
        head = read_head(run_dir)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    same = (head.run_id, head.analysis.scenario, head.config.hash) == (run.run_id, run.scenario, config.hash)
    return head if same else None


async def _freeze_counts(
    store: Projections, scenario: str, path: Path, weights: Mapping[str, int], *, held_out: bool
) -> str:
    file = await asyncio.to_thread(RowsFile, path)
    try:
        await store.learnable_counts(scenario, file.take, holdout=held_out, weights=weights)
        return await asyncio.to_thread(file.close)
    except BaseException:
        file.discard()
        raise


def _told(totals: Mapping[str, ProducerTotals]) -> dict[str, int]:
    """Episodes by producer, the greatest first."""
    greatest = sorted(totals.items(), key=lambda item: (-item[1].episodes, item[0]))
    told = {name: one.episodes for name, one in greatest[:_NAMED]}
    if rest := sum(one.episodes for _, one in greatest[_NAMED:]):
        told[OTHERS] = rest
    return told
