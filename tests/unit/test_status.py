"""What the status says of trainings and of the adapter that is served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from tests.contract.adapter_building import register
from tests.unit.training_world import opened, scripted, worker_over
from worker.cli import cli
from worker.cli.status import _show
from worker.status import last_failures, served_adapter, training_of
from worker.store.port import Deployment, ModelKind, Run, Store, TriggerState, trigger_key
from worker.training.child import TrainingStep
from worker.training.execution import Current

#: When the last training of each kind was, in ms.
TRAINED_AT: dict[ModelKind, int] = {"offline": 1_000, "lora": 2_000}

RUN = Run(
    run_id="r1", scenario="S", kind="lora", state="running", trigger={}, window_lo=1, window_hi=1, requested_at_ms=1
)


def test_a_training_is_told_with_its_steps_where_it_has_them() -> None:
    assert training_of(None) is None
    assert training_of(Current(RUN, 0.1, "reading")) == {
        "run_id": "r1", "kind": "lora", "progress": 0.1, "text": "reading",
    }  # fmt: skip
    stepping = Current(RUN, 0.5, "step 3 of 4", TrainingStep(step=3, steps=4, loss=0.5, seconds_left=2.5))
    assert training_of(stepping) == {
        "run_id": "r1", "kind": "lora", "progress": 0.5, "text": "step 3 of 4", "step": 3, "steps": 4, "loss": 0.5,
        "seconds_left": 2.5,
    }  # fmt: skip


async def test_steps_are_logged_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    """A training of hours is seen in the log too, and does not fill it."""
    lines = [
        json.dumps({"progress": n / 40, "step": {"step": n, "steps": 40, "loss": 0.5, "seconds_left": 40.0 - n}})
        for n in range(1, 41)
    ]
    script = f"print({chr(10).join(lines)!r}); import sys; sys.exit('done')"
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, launcher=scripted(script))
        await world.feed(60)
        with capture_logs() as logs:
            async with world.running():
                await world.runs.wait(await world.command("c1"))
    steps = [line for line in logs if line["event"] == "training_step"]
    assert [line["step"] for line in steps] == [1, 40]
    assert (steps[0]["steps"], steps[0]["loss"], steps[0]["seconds_left"], steps[0]["scenario"]) == (40, 0.5, 39.0, "S")


async def deployed(store: Store, model_id: str, state: Any, at_ms: int) -> None:
    row = Deployment(
        deployment_id=f"d{at_ms}", scenario="S", model_id=model_id, previous_model_id=None, action="apply",
        applicator="vllm", target="http://llm:8000 (S)", state=state, by="anna", forced=False, at_ms=at_ms,
        detail=f"detail {at_ms}",
    )  # fmt: skip
    before = await store.deployments("S", kind="lora", limit=1)
    after = before[0].deployment_id if before else None
    await store.deploy(row, after=after, aliases={"lora-champion": model_id} if state == "verified" else {}, events=[])


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_adapter_is_told_as_it_was_seen_when_it_was_applied(tmp_path: Path, kind: Any) -> None:
    """Not as a later try that failed would have it."""
    one, two = register(tmp_path, 1).model, register(tmp_path, 2).model
    async with opened(tmp_path, kind) as store:
        assert await served_adapter(store, "S", await store.aliases("S")) is None
        for model in (one, two):
            run = await store.create_run(
                Run(
                    run_id=model.run_id, scenario="S", kind="lora", state="queued", trigger={}, window_lo=1,
                    window_hi=model.version, requested_at_ms=1,
                )
            )  # fmt: skip
            epoch = await store.acquire_lease("training.S", "w", now_ms=1, ttl_ms=60_000)
            assert epoch is not None
            run = await store.start_run(run.run_id, owner="w", lease="training.S", epoch=epoch, now_ms=1)
            run.state, run.ended_at_ms, run.model_id = "trained", 1, model.model_id
            await store.finish_run(run, lease="training.S", model=model, trigger_state=None, events=[])
        await deployed(store, one.model_id, "verified", 1)
        await deployed(store, two.model_id, "failed", 2)
        assert await served_adapter(store, "S", await store.aliases("S")) == {
            "model_id": one.model_id, "version": 1, "applicator": "vllm", "target": "http://llm:8000 (S)",
            "detail": "detail 1", "applied_at_ms": 1,
        }  # fmt: skip
    if kind == "sqlite":  # and without a worker
        ended = await asyncio.to_thread(CliRunner().invoke, cli, ["status", "--stored", "--data-dir", str(tmp_path)])
        assert "S: adapter: version 1, at http://llm:8000 (S); detail 1" in ended.output


@pytest.mark.parametrize(("mode", "kind"), [("offline", "offline"), ("lora", "lora"), ("full", "lora")])
async def test_without_a_worker_the_last_training_is_that_of_what_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, kind: ModelKind
) -> None:
    """As the worker itself tells it: in mode `full` the later one, of whichever kind."""
    async with opened(tmp_path) as store:
        await worker_over(store, tmp_path).feed(1)
        for each, at_ms in TRAINED_AT.items():
            await store.save_trigger_state(TriggerState(scenario=trigger_key("S", each), last_success_at_ms=at_ms))
    monkeypatch.setenv("SWARM_PROCESSOR_MODE", mode)
    words = ["status", "--stored", "--json", "--data-dir", str(tmp_path)]
    ended = await asyncio.to_thread(CliRunner().invoke, cli, words, catch_exceptions=False)
    assert json.loads(ended.output)["scenarios"]["S"]["last_train_at_ms"] == TRAINED_AT[kind]


async def test_why_the_last_training_failed_is_told_until_one_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever only read that the next one waits for episodes took it that all was well."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, launcher=scripted("import sys; sys.exit('no such module: q_prj')"))
        await world.feed(60)
        assert await last_failures(store, "S", ["offline"]) == []
        async with world.running():
            await world.runs.wait(await world.command("c1"))
        (failure,) = told = await last_failures(store, "S", ["offline", "lora"])
        assert failure["kind"] == "offline"
        assert "no such module: q_prj" in failure["reason"]
        scenario = {
            "doing": "taking in records", "queue_depth": 0, "consumer_up": 1, "held_because": [], "trigger": "count",
            "waiting_for": "100 episodes", "last_failures": told,
        }  # fmt: skip
        _show({"scenarios": {"S": scenario}})
        assert "the last training failed" in capsys.readouterr().out
        await store.save_trigger_state(TriggerState(scenario=trigger_key("S", "offline"), failures=0))
        assert await last_failures(store, "S", ["offline"]) == []


def test_an_adapter_that_is_not_served_is_not_told_with_what_was_seen_when_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = {"version": 3, "target": "http://llm:8080 as S@3", "detail": "3 of 3 probes", "served": 1}
    scenario = {
        "doing": "taking in records", "queue_depth": 0, "consumer_up": 1, "held_because": [], "trigger": "count",
        "waiting_for": "100 episodes",
    }  # fmt: skip
    _show({"scenarios": {"S": scenario | {"adapter": adapter | {"not_served_because": None}}}})
    assert "adapter: version 3, at http://llm:8080 as S@3; 3 of 3 probes" in capsys.readouterr().out
    _show({"scenarios": {"S": scenario | {"adapter": adapter | {"not_served_because": "no answer"}}}})
    out = capsys.readouterr().out
    assert "adapter: version 3 is live but not served: no answer" in out
    assert "3 of 3" not in out
