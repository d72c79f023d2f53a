"""The triggers' timer: what fires, what does not, what is remembered, and what status says."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.unit.test_training_runs import ended
from tests.unit.training_world import World, eventually, opened, worker_over
from worker.clock import ManualClock
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.errors import ConfigurationError, StoreUnavailable
from worker.learning.firing import evaluate
from worker.learning.trigger_context import TriggerContext
from worker.learning.trigger_text import parse_trigger
from worker.learning.triggers import TrainTrigger
from worker.projector.item import project_item
from worker.settings import LEARN_MODELS
from worker.store.port import ScenarioFacts, TriggerState
from worker.training.endings import after_failure, after_skip, after_success, backoff, has_news
from worker.training.inputs import FrozenFacts
from worker.training.modes import ProcessorMode, parse_mode
from worker.training.scheduler import TriggerScheduler
from worker.training.waiting import waiting_text

RULES = Rules()
MODELS = learn_models(LEARN_MODELS, RULES)


class Broken:
    """A user's trigger that raises."""

    def should_train(self, ctx: TriggerContext) -> bool:
        raise KeyError("oops")

    def name(self) -> str:
        return "broken"

    def describe(self) -> str:
        return "broken"


def scheduler(world: World, rule: str | TrainTrigger, *, clock: ManualClock | None = None) -> TriggerScheduler:
    trigger = parse_trigger(rule) if isinstance(rule, str) else rule
    return TriggerScheduler(
        store=world.store, book=world.tools.book, runs=world.runs, triggers={"S": trigger}, interval=0.05,
        clock=clock or ManualClock(world.tools.clock.now_ms()), learn_models={"S": "worker_decision_sequence"},
    )  # fmt: skip


async def test_nothing_fires_without_data_not_even_always(tmp_path: Path) -> None:
    """The original trained on nothing at its first tick, and could die of it (fault 9)."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        timer = scheduler(world, "always or every(1ms)")
        assert not await timer.check("S")
        assert await timer.waiting_for("S") == "new episodes or sessions"


async def test_a_count_fires_once_with_its_figures_and_not_again_while_the_run_waits(tmp_path: Path) -> None:
    """Who fired and why is in the run's record. Two learn models cut each task: the first one's episodes count."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        timer = scheduler(world, "count(20) or every(1h)")
        await world.feed(2)
        assert not await timer.check("S")
        assert (await timer.waiting_for("S")).startswith("2 of 20 new episodes; or ")
        await world.feed(20)
        assert await timer.check("S")
        assert not await timer.check("S")
        (run,) = await store.runs("S")
        assert run.trigger["kind"] == "count"
        assert run.trigger["values"]["thresholds"] == {"new_episodes": 20}
        assert await timer.waiting_for("S") == "a training is queued"


async def test_a_wait_is_told_with_the_setting_that_makes_it(tmp_path: Path) -> None:
    """After a training that was skipped there was talk of a cool-down, which nobody had set."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        async with world.running():
            await ended(world, await world.command("c1"))
        await world.feed(2)
        told = await scheduler(world, "always").waiting_for("S")
        assert told.endswith("more (the last one was skipped; SWARM_TRAINING_BACKOFF)")
        await world.tools.book.change("S", "offline", lambda s: replace(s, last_success_at_ms=s.last_attempt_at_ms))
        assert (await scheduler(world, "always").waiting_for("S")).endswith("more (SWARM_TRAINING_COOLDOWN)")


async def test_what_is_stored_but_not_projected_is_no_news_yet(tmp_path: Path) -> None:
    """A run of it found nothing to learn, and the trigger then waited 30 s."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        timer = scheduler(world, "always")
        await world.feed(3, project=False, session="s1")
        assert (await store.facts("S")).sessions == 1
        assert not await timer.check("S")
        assert await timer.waiting_for("S") == "new episodes or sessions"
        await world.project()
        assert (await store.facts("S")).counted_sessions == 1
        assert await timer.check("S")


async def test_whoever_sees_a_session_sees_its_episodes(tmp_path: Path) -> None:
    """However small the rounds: a session is counted after its tasks, not before them."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        for number in range(5):
            await world.feed(4, project=False, session=f"s{number}")
        seen = 0
        while items := await store.pending(now_ms=world.tools.clock.now_ms(), idle_ms=900_000, limit=1):
            await store.project([project_item(item, RULES, MODELS)[0] for item in items])
            facts = await store.facts("S")
            assert facts.episodes_by_model.get("worker_decision_sequence", 0) >= 4 * facts.counted_sessions
            seen = facts.counted_sessions
        assert seen == 5


async def test_an_episode_of_another_learn_model_is_news_but_does_not_count(tmp_path: Path) -> None:
    """Dependency graphs, say, where the first learn model is about actions (decision f)."""
    context = TriggerContext(event_count=3, last_train_count=3, now_ms=10_000, first_record_at_ms=0, other_news=True)
    assert evaluate(parse_trigger("count(1)"), context) is None
    assert evaluate(parse_trigger("every(1s)"), context) is not None


async def test_after_a_training_only_new_data_count_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    """The watermark is in the store (faults 10 and 11)."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(30)
        assert await scheduler(world, "count(20)").check("S")
        async with world.running():
            await eventually(lambda: world.runs.stats.trained == 1)
        again = worker_over(store, tmp_path, boot="boot2")
        assert not await scheduler(again, "always").check("S")
        await world.feed(1)
        assert not await scheduler(again, "count(20)").check("S")
        assert await scheduler(again, "always").check("S")


async def test_a_trigger_that_fails_is_counted_shown_and_does_not_end_the_loop(tmp_path: Path) -> None:
    """The original took an error for "no", without a word (fault 12)."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(5)
        timer, stopping = scheduler(world, Broken()), asyncio.Event()
        task = asyncio.create_task(timer.run(stopping))
        await eventually(lambda: timer.stats.trigger_errors >= 2)
        stopping.set()
        await asyncio.wait_for(task, 2)
        state = await store.trigger_state("S")
        assert state.trigger_errors >= 2
        assert "oops" in (state.last_trigger_error or "")
        assert "oops" in await timer.waiting_for("S") or "broken" in await timer.waiting_for("S")


async def test_paused_backoff_and_clock_steps_are_respected(tmp_path: Path) -> None:
    """Paused by command; waiting after a failure, but not until a clock that was set back catches up (fault 20)."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(5)
        clock = ManualClock(world.tools.clock.now_ms())
        timer = scheduler(world, "always", clock=clock)
        await world.tools.book.pause("S", paused=True)
        assert not await timer.check("S")
        assert "paused" in await timer.waiting_for("S")
        await world.tools.book.pause("S", paused=False)
        failed = partial(after_failure, now_ms=clock.now_ms(), first_backoff=30)
        await world.tools.book.change("S", "offline", failed)
        assert not await timer.check("S")
        assert await timer.waiting_for("S") == "30 s more (after 1 failed trainings)"
        clock.jump(-86_400)
        assert await timer._reason_not_to_ask(await store.facts("S"), await store.trigger_state("S"), "offline") is None
        clock.jump(86_400)
        clock.advance(31)
        assert await timer.check("S")


async def test_the_first_check_comes_after_one_interval_and_a_busy_store_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults 9 and 7."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        timer, stopping = scheduler(world, "always"), asyncio.Event()

        async def away(_scenario: str) -> ScenarioFacts:
            raise StoreUnavailable("locked")

        monkeypatch.setattr(store, "facts", away)
        task = asyncio.create_task(timer.run(stopping))
        await asyncio.sleep(0)
        assert timer.stats.checks == 0
        await eventually(lambda: timer.stats.store_errors >= 2)
        stopping.set()
        await asyncio.wait_for(task, 2)


def test_backoff_doubles_to_an_hour() -> None:
    """And stays there."""
    assert [backoff(n, 30) for n in (0, 1, 2, 6, 7, 999)] == [30, 60, 120, 1920, 3600, 3600]


def test_endings_move_only_what_they_should() -> None:
    """Success moves the watermark, failure the wait, a skip neither; nobody touches `paused` or the errors."""
    state = TriggerState(scenario="S", trained_upto=3, trained_episodes=10, failures=2, paused=True, trigger_errors=4)
    facts = FrozenFacts(last_batch_no=9, records=1, episodes=50, episodes_by_model={"m": 30}, sessions=6)
    good = after_success(state, facts=facts, now_ms=1000, cooldown=2)
    assert (good.trained_upto, good.trained_episodes, good.trained_sessions) == (9, 50, 6)
    assert good.trained_by_model == {"m": 30}
    assert (good.failures, good.not_before_ms, good.last_success_at_ms) == (0, 3000, 1000)
    bad = after_failure(state, now_ms=1000, first_backoff=30)
    assert (bad.trained_upto, bad.failures, bad.not_before_ms, bad.last_success_at_ms) == (3, 3, 121_000, None)
    skipped = after_skip(state, now_ms=1000, cooldown=30)
    assert (skipped.trained_upto, skipped.failures, skipped.not_before_ms) == (3, 2, 31_000)
    assert all((one.paused, one.trigger_errors) == (True, 4) for one in (good, bad, skipped))
    assert not has_news(good, ScenarioFacts(scenario="S", episodes=50, sessions=7, counted_sessions=6))
    assert has_news(good, ScenarioFacts(scenario="S", episodes=50, sessions=7, counted_sessions=7))
    assert not has_news(good, ScenarioFacts(scenario="S", episodes=3))  # while a rebuild goes on


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("count(100) or every(1h)", "57 of 100 new episodes; or 12 min more"),
        ("count(50) and quality(0.6)", "50 of 50 new episodes and success below 60% (now of none yet)"),
        ("(count(60) or manual) and always", "(57 of 60 new episodes; or train-now) and the next check"),
        ("never", "train-now"),
        ("every(1ms)", "the next check"),
    ],
)
def test_status_says_what_is_missing(rule: str, text: str) -> None:
    """In words a person reads."""
    context = TriggerContext(event_count=57, now_ms=48 * 60_000, first_record_at_ms=0)
    assert waiting_text(parse_trigger(rule), context) == text


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        ("offline", ProcessorMode.OFFLINE), ("OFFLINE_only", ProcessorMode.OFFLINE), ("Lora", ProcessorMode.LORA),
        ("lora_only", ProcessorMode.LORA), ("FULL", ProcessorMode.FULL), ("both", ProcessorMode.FULL),
    ],
)  # fmt: skip
def test_modes_have_the_originals_words_in_any_case(word: str, mode: ProcessorMode) -> None:
    """Domain section 7."""
    assert parse_mode(word) is mode
    assert parse_mode(str(mode)) is mode


@pytest.mark.parametrize("word", ["", "none", "offline lora", "train"])
def test_any_other_mode_is_a_wrong_setting(word: str) -> None:
    """Named, with the cure."""
    with pytest.raises(ConfigurationError, match=r"SWARM_PROCESSOR_MODE.*offline"):
        parse_mode(word)


def test_a_mode_says_what_is_trained_and_in_which_order() -> None:
    assert ProcessorMode.OFFLINE.kinds == ("offline",)
    assert ProcessorMode.LORA.kinds == ("lora",)
    assert ProcessorMode.FULL.kinds == ("offline", "lora")
