"""Real agent episodes (tau-bench, airline): our counts and rates equal a direct count over the file.

Reads `trajectories.jsonl` in the folder that SWARM_TAU_BENCH names, else in a `data/tau-bench-airline` of a folder
beside the checkout. The data is not ours to ship, so the test always runs over a small file of the same form as well.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from worker.clock import ManualClock
from worker.episodes.episode import Episode
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.learning.counts import CountKey, Counts
from worker.projector.projector import Projector
from worker.settings import LEARN_MODELS
from worker.store import open_store
from worker.store.port import EpisodeFilter, IncomingBatch, Store, Stored
from worker.wire.codec import decode_batch, encode_batch
from worker.wire.records import ActionRecord, Batch, Failure, LearnStatsRecord, Outcome, Success

ROOT = Path(__file__).parents[2]
NAMED = os.environ.get("SWARM_TAU_BENCH")
REAL = [Path(NAMED, "trajectories.jsonl")] if NAMED else ROOT.parent.glob("*/data/tau-bench-airline/trajectories.jsonl")
FILES = [ROOT / "tests/data/tau_bench_like.jsonl", *sorted(REAL)[:1]]
#: The small file has a pseudo-action by name, which is no decision of an agent.
PSEUDO = "llm_summary"
RULES = Rules()

Trajectory = dict[str, Any]


def trajectories(path: Path) -> list[Trajectory]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def name_of(trajectory: Trajectory) -> str:
    return f"airline-{trajectory['task_id']}-{trajectory['trial']}"


def outcome_of(trajectory: Trajectory) -> Outcome:
    return Success(trajectory["reward"]) if trajectory["reward"] > 0 else Failure("reward 0")


def body_of(trajectory: Trajectory, seq: int) -> bytes:
    """A trajectory as a swarm node would publish it: its tool calls, and the end of its session with the reward.

    Rewards are per task and trial, so that is what a session is.
    """
    name = name_of(trajectory)
    actions = [
        ActionRecord(
            task_id=name, session_id=name, group_id=f"airline-{trajectory['task_id']}", tick=tick, worker_id=0,
            action=step["action"], event_id=tick, target=step["arguments"], output=step["result"],
            success=not step["result"].startswith("Error"),
        )
        for tick, step in enumerate(trajectory["steps"])
        if step["call"] is not None
    ]  # fmt: skip
    ticks = len(trajectory["steps"])
    end = LearnStatsRecord(name, Raw(b"{}"), outcome_of(trajectory), ticks, len(actions), task_ids=[name])
    return encode_batch([*actions, end], producer_id="tau-bench", producer_epoch=0, batch_seq=seq)


@asynccontextmanager
async def replayed(path: Path, url: str) -> AsyncIterator[Store]:
    """A store into which the file was published, trajectory by trajectory, and projected."""
    clock = ManualClock()
    store = open_store(url, clock)
    await store.open()
    try:
        group = []
        for seq, trajectory in enumerate(trajectories(path)):
            body = body_of(trajectory, seq)
            batch = decode_batch(body, scenario="airline")
            assert isinstance(batch, Batch)
            group.append(IncomingBatch(scenario="airline", batch=batch, body=body, received_at_ms=clock.now_ms()))
        verdicts = await store.ingest(group)
        assert all(isinstance(verdict, Stored) for verdict in verdicts)
        models = learn_models(LEARN_MODELS, RULES)
        projector = Projector(
            store, clock, rules_of=lambda _: RULES, models_of=lambda _: models, idle_ms=900_000, busy=lambda: False
        )
        await projector.catch_up()
        assert projector.stats.faults == 0
        yield store
    finally:
        await store.close()


def directly(path: Path) -> Counter[tuple[str, tuple[str, ...]]]:
    """The same figures from the raw file and nothing of ours."""
    tally: Counter[tuple[str, tuple[str, ...]]] = Counter()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            raw = json.loads(line)
            won = raw["reward"] > 0
            tally["sessions.success" if won else "sessions.failure", ()] += 1
            calls = [step for step in raw["steps"] if step["call"] is not None and step["action"] != PSEUDO]
            names = [step["action"] for step in calls]
            for step in calls:
                failed = step["result"][:5] == "Error"
                tally["action.visits", (step["action"],)] += 1
                tally["action.failures" if failed else "action.successes", (step["action"],)] += 1
            if names:
                tally["episodes.success" if won else "episodes.failure", ()] += 1
            for i in range(1, len(names)):
                tally["transition.visits", (names[i - 1], names[i])] += 1
                tally["transition.success" if won else "transition.failure", (names[i - 1], names[i])] += 1
            for size in (3, 4):
                for i in range(len(names) - size + 1):
                    tally["ngram.success" if won else "ngram.failure", tuple(names[i : i + size])] += 1
    return tally


def compared(counts: Counts) -> dict[tuple[str, tuple[str, ...]], int]:
    """Our counts as far as the direct count goes: episodes from the log, sessions from the stats."""
    measures = ("action.visits", "action.successes", "action.failures", "episodes.", "transition.", "ngram.")
    return {
        (key.measure, key.names): number
        for key, number in counts.items()
        if (key.source == "log" and key.measure.startswith(measures))
        or (key.source == "stats" and key.measure in ("sessions.success", "sessions.failure"))
    }


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store."""
    return "memory:" if request.param == "memory" else f"sqlite://{tmp_path}/tau.db"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
async def test_counts_and_rates_equal_a_direct_count(path: Path, url: str) -> None:
    direct = directly(path)
    async with replayed(path, url) as store:
        counts = await store.counts("airline")
        assert compared(counts) == dict(direct)

        for measure, names in direct:
            if measure == "action.visits":
                ours = Fraction(
                    counts[CountKey("log", "action.successes", names)], counts[CountKey("log", measure, names)]
                )
                assert ours == Fraction(direct["action.successes", names], direct[measure, names])

        held = await store.counts("airline", holdout=True)
        trained = await store.counts("airline", holdout=False)
        assert held + trained == counts
        assert held.total() > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
async def test_episodes_carry_the_reward_of_their_trial(path: Path, url: str) -> None:
    expected = {}
    for raw in trajectories(path):
        calls = [step["action"] for step in raw["steps"] if step["call"] is not None and step["action"] != PSEUDO]
        if len(calls) >= 3:  # min_actions of the decision sequence
            expected[name_of(raw)] = (calls, raw["reward"])
    async with replayed(path, url) as store:
        where = EpisodeFilter(learn_model="worker_decision_sequence")
        episodes = [episode async for episode in store.episodes("airline", where)]
        assert {str(episode.task_id): (episode.actions, score(episode)) for episode in episodes} == expected
        assert await store.count_episodes("airline", where) == len(expected)
        assert len(await store.sessions("airline")) == len(trajectories(path))


def score(episode: Episode) -> float:
    """The reward: the score of a success, 0 of a failure."""
    return float(episode.outcome.score) if isinstance(episode.outcome, Success) else 0.0
