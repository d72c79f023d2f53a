"""The projector as a service: rounds, rest beside busy ingest, faults of the store, of data and of users' models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from msgspec import Raw

from worker.clock import ManualClock, SystemClock
from worker.episodes.dpo import DpoLearnModel
from worker.episodes.episode import Episode
from worker.episodes.model import EpisodeContext, LearnModel, Task
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.episodes.task import PlacedAction, TaskView
from worker.episodes.training_data import TrainingData
from worker.episodes.worker_decision_sequence import WorkerDecisionSequenceLearn
from worker.errors import DataRefused, StoreUnavailable
from worker.learning.counts import CountKey
from worker.projector.item import difference, project_item, rules_digest
from worker.projector.projector import BUSY_ROUND_ACTIONS, ROUND_ACTIONS, Projector
from worker.store.port import Pending, PendingGraph, PendingSession, PendingTask, Projection
from worker.wire.records import ActionRecord, DependencyGraphRecord, LearnStatsRecord, Outcome, Success, Unknown

RULES = Rules()
MODELS = learn_models(("worker_decision_sequence", "worker_task", "dependency_graph", "dpo"), RULES)
NOW = ManualClock().now_ms()


def task(name: str, *, at: int = NOW, idle: bool = False, projected_upto: int | None = None) -> PendingTask:
    actions = [
        PlacedAction(ActionRecord(task_id=name, tick=tick, worker_id=0, action=action), 1, at, ("node", 0, 0, tick))
        for tick, action in enumerate(["look", "move", "done"])
    ]
    view = TaskView(scenario="s", task_id=name, actions=actions, idle=idle)
    return PendingTask(task=view, upto=1, session_batch_no=None, projected_upto=projected_upto, projected_idle=False)


def graph(**fields: Any) -> PendingGraph:
    record = DependencyGraphRecord("which order?", "a, b", ["a", "b"], ["a"], ["b"], "m", "http://x", 5, **fields)
    return PendingGraph(scenario="s", batch_no=1, index=0, received_at_ms=NOW, record=record)


class Shelf:
    """A store that offers what lies on it until it is projected, and fails when told to."""

    def __init__(self, *items: Pending) -> None:
        self.items: list[Pending] = list(items)
        self.stored: list[Projection] = []
        self.limits: list[int] = []
        self.times: list[tuple[int, int]] = []
        self.outages = 0
        self.refuses: Callable[[Projection], bool] = lambda _: False
        self.emptied = asyncio.Event()
        self.asked = asyncio.Event()

    async def pending(
        self, *, now_ms: int, idle_ms: int, limit: int, scenarios: Sequence[str] | None = None
    ) -> list[Pending]:
        """All of it."""
        self.limits.append(limit)
        self.times.append((now_ms, idle_ms))
        self.asked.set()
        if self.outages:
            self.outages -= 1
            raise StoreUnavailable("database is locked")
        return list(self.items)

    async def project(self, projections: Sequence[Projection]) -> None:
        """All or nothing."""
        if any(self.refuses(projection) for projection in projections):
            raise DataRefused("no")
        self.stored += projections
        done = [projection.of for projection in projections]
        self.items = [item for item in self.items if item not in done]
        if not self.items:
            self.emptied.set()

    def episodes(self) -> list[str]:
        """The ids of all that was stored."""
        return [episode.episode_id for projection in self.stored for episode in projection.episodes]


class Endless(Shelf):
    """Ingest goes on: what was taken off is there anew."""

    async def project(self, projections: Sequence[Projection]) -> None:
        """As ever, and then again."""
        again = list(self.items)
        await super().project(projections)
        self.items = again


def projector(shelf: Shelf, *, busy: bool = False, models: Sequence[LearnModel] = MODELS) -> Projector:
    return Projector(
        shelf,  # type: ignore[arg-type]  # a part of the role: what a projector needs of it
        ManualClock(),
        rules_of=lambda _: RULES,
        models_of=lambda _: models,
        idle_ms=1000,
        busy=lambda: busy,
    )


class Broken(LearnModel):
    """A user's model with a mistake in it."""

    name = "broken"
    objective = "none"

    def build_episodes(self, task: Task) -> list[Episode]:
        """Fails for one task."""
        if task.view.task_id == "t1":
            raise ZeroDivisionError("division by zero")
        return []

    def evaluate(self, context: EpisodeContext) -> Outcome:
        """Whatever there is, is good."""
        return Success(1.0) if len(context) else Unknown()

    def convert(self, episode: Episode, context: EpisodeContext) -> TrainingData:
        """Nothing of use."""
        return TrainingData.sft_simple(episode.episode_id, str(len(context)))


async def test_a_round_makes_the_episodes_of_every_learn_model_and_the_counts() -> None:
    shelf = Shelf(task("t0"))
    assert await projector(shelf).catch_up() == 1
    assert shelf.episodes() == ["worker_decision_sequence:t0:0:0", "worker_task:t0:-:0"]
    (counts,) = shelf.stored[0].counts.values()
    assert counts[CountKey("log", "episodes.success", ())] == 1
    assert counts[CountKey("log", "action.visits", ("look",))] == 1


async def test_stats_count_sessions_under_the_same_split_as_their_tasks() -> None:
    for number in range(20):
        stats = LearnStatsRecord(f"run-{number}", Raw(b"{}"), Success(1.0), total_ticks=3, total_actions=4)
        item = PendingSession(scenario="s", batch_no=1, received_at_ms=NOW, record=stats)
        (bucket,) = project_item(item, RULES, MODELS)[0].counts
        pending = task("t")
        pending.task.session = stats
        (same,) = project_item(pending, RULES, MODELS)[0].counts
        assert bucket == same


async def test_a_graph_becomes_an_episode_under_an_id_that_does_not_depend_on_its_place() -> None:
    shelf = Shelf(graph(), graph(record_id="r1"), graph(error="timed out"))
    await projector(shelf).catch_up()
    moved = graph()
    moved.batch_no, moved.index = 7, 3
    again, _ = project_item(moved, RULES, MODELS)
    made = [projection.episodes[0] for projection in shelf.stored]
    assert made[0] == again.episodes[0]
    assert made[1].episode_id == "dependency_graph:r1:-:0"
    assert [type(episode.outcome).__name__ for episode in made] == ["Success", "Success", "Failure"]
    assert len({episode.episode_id for episode in made}) == 3


async def test_it_projects_what_a_stored_batch_brings_and_ends_when_asked() -> None:
    shelf = Shelf()
    service = projector(shelf)
    stopping = asyncio.Event()
    running = asyncio.create_task(service.run(stopping))
    await shelf.asked.wait()
    shelf.items.append(task("t0"))
    service.wake()
    await shelf.emptied.wait()
    stopping.set()
    await running
    assert service.stats.tasks_projected == 1
    assert service.stats.episodes_created == 2


async def test_it_asks_by_the_clock_for_what_became_idle() -> None:
    shelf = Shelf()
    stopping = asyncio.Event()
    running = asyncio.create_task(projector(shelf).run(stopping))
    await shelf.asked.wait()
    shelf.items.append(task("t0", idle=True))  # and nobody wakes it
    await shelf.emptied.wait()
    stopping.set()
    await running


async def test_a_store_that_is_away_is_waited_for() -> None:
    shelf = Shelf(task("t0"))
    shelf.outages = 2
    service = projector(shelf)
    stopping = asyncio.Event()
    running = asyncio.create_task(service.run(stopping))
    await shelf.emptied.wait()
    stopping.set()
    await running
    assert service.stats.store_errors == 2


async def test_a_model_that_raises_loses_its_own_episodes_of_that_task_only() -> None:
    shelf = Shelf(task("t0"), task("t1"), task("t2"))
    service = projector(shelf, models=[*MODELS, Broken()])
    assert await service.catch_up() == 3
    assert len(shelf.episodes()) == 6
    assert service.stats.faults == 1
    assert service.stats.last_fault == "s, t1: broken: ZeroDivisionError: division by zero"


async def test_a_projection_that_the_store_refuses_holds_up_nobody_and_keeps_its_counts() -> None:
    """It is stored without its episodes, so that it does not come back, and it is shown."""
    shelf = Shelf(task("t0"), task("t1"), task("t2"))
    shelf.refuses = lambda projection: any(episode.task_id == "t1" for episode in projection.episodes)
    service = projector(shelf)
    assert await service.catch_up() == 3
    assert {name.split(":")[1] for name in shelf.episodes()} == {"t0", "t2"}
    assert [bool(projection.counts) for projection in shelf.stored] == [True, True, True]
    assert service.stats.faults == 1


async def test_a_projection_that_is_refused_with_its_counts_is_stored_empty() -> None:
    shelf = Shelf(task("t0"), task("t1"))
    shelf.refuses = lambda projection: projection.of.task.task_id == "t1" and bool(projection.counts)  # type: ignore[union-attr]  # tasks only
    service = projector(shelf)
    assert await service.catch_up() == 2
    assert [len(projection.counts) for projection in shelf.stored] == [1, 0]
    assert service.stats.faults == 2


async def test_what_cannot_be_counted_is_left_out_and_taken_back_as_nothing() -> None:
    stats = LearnStatsRecord("run", Raw(b"[1]"), Success(1.0), total_ticks=3, total_actions=4)
    item = PendingSession(scenario="s", batch_no=1, received_at_ms=NOW, record=stats)
    projection, faults = project_item(item, RULES, MODELS)
    assert projection.counts == {}
    assert [fault.culprit for fault in faults] == ["counts"]


async def test_rounds_are_smaller_beside_busy_ingest() -> None:
    shelf = Shelf()
    await projector(shelf).catch_up()
    await projector(shelf, busy=True).catch_up()
    assert shelf.limits == [ROUND_ACTIONS, BUSY_ROUND_ACTIONS]
    assert shelf.times == [(NOW, 1000), (NOW, 1000)]


async def test_beside_busy_ingest_it_rests_nineteen_times_as_long_as_it_worked() -> None:
    busy = [True]
    service = Projector(
        Shelf(),  # type: ignore[arg-type]  # a part of the role: what a projector needs of it
        SystemClock(),
        rules_of=lambda _: RULES,
        models_of=lambda _: MODELS,
        idle_ms=1000,
        busy=lambda: busy[0],
    )
    began = monotonic()
    await service._make_way(asyncio.Event(), 0.01)
    assert monotonic() - began >= 0.189
    stopping = asyncio.Event()
    stopping.set()
    await service._make_way(stopping, 1000.0)  # a shutdown does not wait for it
    busy[0] = False
    await service._make_way(asyncio.Event(), 1000.0)  # and neither does a backlog when ingest is quiet


async def test_beside_busy_ingest_it_goes_on_nevertheless() -> None:
    shelf = Shelf(task("t0"))
    stopping = asyncio.Event()
    running = asyncio.create_task(projector(shelf, busy=True).run(stopping))
    await shelf.emptied.wait()
    stopping.set()
    await running


async def test_the_lag_is_the_age_of_the_newest_record_of_the_round() -> None:
    service = projector(Shelf(task("t0", at=NOW - 9000), task("t1", at=NOW - 4000), task("t2", at=0, idle=True)))
    await service.project_pending()
    assert service.stats.lag_ms == 4000
    await service.project_pending()
    assert service.stats.lag_ms == 0


async def test_catching_up_beside_ingest_that_never_rests_comes_to_an_end() -> None:
    """Of a shelf that is filled again and again nobody sees the bottom: what was there has to do, and time ends."""
    shelf = Endless(task("t0"))
    assert await projector(shelf).catch_up() == 1
    assert shelf.items
    crowded = Endless(*(task(f"t{number}") for number in range(4_000)))
    assert await projector(crowded).catch_up(within=0) == 4_000


def test_a_difference_holds_only_what_changed() -> None:
    old = project_item(task("t0"), RULES, MODELS)[0].counts
    assert difference(old, old) == {}
    (bucket,) = old
    assert difference({}, old)[bucket][CountKey("log", "action.visits", ("done",))] == -1
    assert difference(old, {}) == old
    again = project_item(task("t0", projected_upto=1), RULES, MODELS)[0]
    assert again.counts == {}
    assert len(again.episodes) == 2


def test_the_rules_digest_tells_of_every_change_that_changes_projections() -> None:
    """Rules, learn models and their fields count; the order in which a set is kept does not."""
    rules = Rules(terminal_actions=frozenset({"done", "finish", "submit"}))
    same = Rules(terminal_actions=frozenset({"submit", "done", "finish"}))
    models = [WorkerDecisionSequenceLearn(), DpoLearnModel()]
    digest = rules_digest(rules, models)
    assert digest == rules_digest(same, [WorkerDecisionSequenceLearn(), DpoLearnModel()])
    others = [
        rules_digest(Rules(terminal_actions=frozenset({"done"})), models),
        rules_digest(rules, models[:1]),
        rules_digest(rules, [WorkerDecisionSequenceLearn(min_actions=5), models[1]]),
    ]
    assert len({digest, *others}) == 4


def test_a_changed_prompt_drops_no_projections() -> None:
    """It changes the export alone; a rebuild of a large log for it would be a waste."""
    models = [WorkerDecisionSequenceLearn()]
    digest = rules_digest(Rules(), models)
    told = Rules(system_prompt="You are kind.", available_actions=("Look",))
    assert rules_digest(told, [models[0].with_system_prompt("You are kind.").with_available_actions("Look")]) == digest
