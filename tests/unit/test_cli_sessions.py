"""`swarm-worker sessions`: the list, one session's statistics, all that was counted, groups, scores."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec import Raw

from tests.contract.projection_building import incoming
from worker.cli import cli
from worker.clock import SystemClock
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.learning.snapshot_json import decode_snapshot
from worker.projector.projector import Projector
from worker.store import open_store
from worker.wire.records import ActionRecord, LearnStatsRecord, Success

STATS = b'{"contextual_stats": [["look", "done", {"visits": 3, "successes": 2, "failures": 1}]]}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with one session of a group, and a task of two actions."""

    async def fill() -> None:
        store = open_store(f"sqlite://{tmp_path}/swarm.db", SystemClock())
        await store.open()
        steps = [ActionRecord("t", n, 0, name, n, "s-1") for n, name in enumerate(["look", "done"])]
        ended = LearnStatsRecord("s-1", Raw(STATS), Success(1.0), 2, 2, group_id="g1", phase="release")
        await store.ingest([incoming(*steps, ended, seq=1, ends=["t"])])
        rules = Rules()
        models = learn_models(("worker_task",), rules)
        projector = Projector(
            store, SystemClock(), rules_of=lambda _: rules, models_of=lambda _: models, idle_ms=1, busy=lambda: False
        )
        await projector.catch_up()
        await store.close()

    asyncio.run(fill())
    return tmp_path


def ask(folder: Path, *words: str) -> Result:
    """Run a command beside the store."""
    return CliRunner().invoke(cli, ["sessions", *words, "--data-dir", str(folder)], catch_exceptions=False)


def test_sessions_are_listed_as_before(folder: Path) -> None:
    """A command below it does not list them too."""
    assert json.loads(ask(folder, "--scenario", "S", "--json").output)[0]["session_id"] == "s-1"
    assert "s-1" not in ask(folder, "merged", "--scenario", "S").output


def test_one_session_is_shown_as_a_table_a_snapshot_and_scores(folder: Path) -> None:
    """The original's `load_session` and `ScoreModel`."""
    assert "release" in ask(folder, "show", "s-1", "--scenario", "S").output
    snapshot = decode_snapshot(ask(folder, "show", "s-1", "--scenario", "S", "--json").output.encode())
    assert (snapshot.metadata.session_id, snapshot.action_stats["done"].visits) == ("s-1", 3)
    scores = json.loads(ask(folder, "show", "s-1", "--scenario", "S", "--scores").output)
    assert scores["contextual_scores"] == {"look->done": pytest.approx(2 / 3)}


def test_a_session_that_sent_no_statistics_is_told_as_that(tmp_path: Path) -> None:
    """With two actions in its facts, it said that no action was counted."""

    async def fill() -> None:
        store = open_store(f"sqlite://{tmp_path}/swarm.db", SystemClock())
        await store.open()
        await store.ingest([incoming(LearnStatsRecord("s-1", Raw(b"{}"), Success(1.0), 2, 2), seq=1)])
        await store.close()

    asyncio.run(fill())
    told = ask(tmp_path, "show", "s-1", "--scenario", "S").output
    assert "total_actions" in told
    assert "sent no statistics" in told
    assert "No action was counted" not in told
    assert ask(tmp_path, "show", "s-1", "--scenario", "S", "--json").exit_code == 0


def test_all_that_was_counted_is_shown(folder: Path) -> None:
    """Of the log where there is one; of one scenario, or of all."""
    for words in (["--scenario", "S"], ["--all"]):
        snapshot = decode_snapshot(ask(folder, "merged", *words, "--json").output.encode())
        assert snapshot.action_stats["look"].visits == 1
        assert snapshot.episode_transitions.success_transitions == {("look", "done"): 1}


def test_groups_are_listed(folder: Path) -> None:
    """With their phase and how often they succeeded."""
    (group,) = json.loads(ask(folder, "groups", "--scenario", "S", "--json").output)
    assert (group["id"], group["phase"], group["session_ids"], group["success_rate"]) == ("g1", "release", ["s-1"], 1.0)


def test_a_session_that_is_not_there_is_named(folder: Path) -> None:
    """As an error of the command, not an empty table."""
    error = CliRunner().invoke(cli, ["sessions", "show", "nobody", "--scenario", "S", "--data-dir", str(folder)])
    assert "nobody" in str(error.exception)
