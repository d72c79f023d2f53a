"""A worker inside somebody's program, with a trigger, store, learn model and applicator of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.foreign_node import body, ears_at, episode, node_at
from worker.app import WorkerBuilder
from worker.clock import SystemClock
from worker.episodes.episode import Episode
from worker.episodes.model import (
    ConversionError,
    EpisodeContext,
    LearnModel,
    Task,
    episode_of,
    evaluate_actions,
)
from worker.episodes.rules import Rules
from worker.episodes.training_data import TrainingData
from worker.errors import ConfigurationError
from worker.learning.trigger_context import TriggerContext, TriggerError
from worker.store.memory import MemoryStore
from worker.store.port import EpisodeFilter, Model
from worker.wire.records import Outcome, Success

Eventually = Callable[..., Awaitable[None]]


class SixtyMore:
    """A trigger of one's own: sixty episodes that the last training did not see; it fails at the first question."""

    def __init__(self) -> None:
        self.asked = 0

    def should_train(self, ctx: TriggerContext) -> bool:
        self.asked += 1
        if self.asked == 1:
            raise TriggerError("not yet")
        return ctx.event_count - ctx.last_train_count >= 60

    def name(self) -> str:
        return "sixty-more"

    def describe(self) -> str:
        return "sixty more"


class FirstMoves(LearnModel):
    """A learn model of one's own: an episode is what one worker did in a task, however it ended."""

    name = "first-moves"
    objective = "Learn how to begin"

    def build_episodes(self, task: Task) -> list[Episode]:
        return [episode_of(cut, self.name) for cut in task.by_worker]

    def evaluate(self, context: EpisodeContext) -> Outcome:
        return evaluate_actions(context, Rules())

    def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:
        raise ConversionError("it is not for teaching")


class Pocket:
    """An applicator of one's own."""

    name = "pocket"

    def __init__(self) -> None:
        self.held: dict[str, Model] = {}
        self.content: dict[str, bytes] = {}
        self.closed = False

    def target(self, scenario: str) -> str:
        return f"pocket of {scenario}"

    async def apply(self, model: Model, content: bytes) -> None:
        self.held[model.scenario], self.content[model.scenario] = model, content

    async def served(self, scenario: str) -> str | None:
        return self.held[scenario].sha256 if scenario in self.held else None

    async def withdraw(self, scenario: str) -> None:
        del self.held[scenario]

    async def close(self) -> None:
        self.closed = True


@pytest.mark.rabbitmq
async def test_a_worker_of_ones_own_parts_does_the_whole_job(
    amqp_url: str, scenario: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Nothing of the settings' trigger, store, learn models and applicator is used; only the files are elsewhere."""
    trigger, pocket = SixtyMore(), Pocket()
    store = MemoryStore(SystemClock())
    worker = (
        WorkerBuilder(
            amqp_url=amqp_url,
            data_dir=tmp_path,
            scenarios=scenario,
            worker_id=f"w-{scenario}",
            http_port=0,
            apply_mode="auto",
            holdout=0.5,
            check_interval="0.05s",
            trigger="never",
        )
        .store(store)
        .trigger(trigger)
        .learn_models(FirstMoves())
        .applicator(pocket)
        .build()
    )
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        await worker.started.wait()
    async with node_at(amqp_url) as node, ears_at(amqp_url, f"learning.*.{scenario}") as ears:
        records = [record for task in range(60) for record in episode(task, success=task % 2 == 0)]
        await node.publish(scenario, body(records))
        await eventually(lambda: scenario in pocket.held, within=20)
        (trained,) = await ears.wait_for("learning.trained", scenario)
        (applied,) = await ears.wait_for("learning.applied", scenario)
    found = [one async for one in store.episodes(scenario, EpisodeFilter())]
    assert {one.learn_model for one in found} == {"first-moves"}
    assert sum(isinstance(one.outcome, Success) for one in found) == 30
    assert (trained["data"]["trigger"]["kind"], trained["data"]["counts"]["episodes"]) == ("sixty-more", 60)
    assert applied["data"]["target"] == f"pocket of {scenario}"
    assert pocket.held[scenario].model_id == trained["data"]["model_id"]
    assert json.loads(pocket.content[scenario])["scenario"] == scenario
    state = await store.trigger_state(scenario)
    assert (state.trigger_errors, state.last_trigger_error) == (1, "not yet")
    assert trigger.asked >= 2
    assert not (tmp_path / "swarm.db").exists()

    worker.request_stop("the test")
    async with asyncio.timeout(20):
        await running
    assert pocket.closed


def test_what_could_not_run_is_refused_when_it_is_built(tmp_path: Path) -> None:
    """Before anything is opened."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"scenarios": ""}, "SWARM_SCENARIOS"),
        ({"scenarios": "a", "processor_mode": "lora"}, "SWARM_PROCESSOR_MODE"),
        ({"scenarios": "a", "trigger": "sometimes"}, "SWARM_TRIGGER"),
        ({"scenarios": "a", "amqp_url": "amqp://far.example"}, "SWARM_AMQP_ALLOW_PLAINTEXT"),
    ]
    for flags, named in wrong:
        with pytest.raises(ConfigurationError, match=named):
            WorkerBuilder(data_dir=tmp_path, **flags).build()
    assert list(tmp_path.iterdir()) == []
