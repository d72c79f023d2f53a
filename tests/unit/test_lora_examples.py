"""Rows of a training, whatever order their examples came in."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.sqlite_building import damage
from tests.unit.told_building import RULES, models_of, project, task, tell
from tests.unit.training_world import opened
from worker.clock import SystemClock
from worker.episodes.training_data import TrainingData
from worker.store import open_store
from worker.store.port import EpisodeFilter
from worker.training.episode_records import AHEAD, EpisodeRecords
from worker.training.lora.data import write_training_data
from worker.training.lora.examples import Gathered, Told
from worker.training.lora.inputs import LoraConfig
from worker.training.lora.split import Split
from worker.wire.records import ActionRecord

ALL_TRAINED = Split("S", 0.0)
#: Prints the order of the rows of twenty examples.
_ORDER = """
from worker.episodes.training_data import TrainingData
from worker.training.lora.examples import Gathered, Told
from worker.training.lora.split import Split
gathered = Gathered(Split("S", 0.0))
for n in range(20):
    gathered.add(Told(TrainingData.sft(None, f"p{n}", "a"), "m", str(n), [], frozenset("p"), "t"))
print(*(row.prompt for row in gathered.sides(1.0)[0].rows))
"""


def told(prompt: str, *, model: str = "m", episode: str = "e", producers: str = "p", task: str = "t") -> Told:
    return Told(TrainingData.sft(None, prompt, "answer"), model, episode, [], frozenset(producers), task)


def test_rows_stand_in_the_same_order_in_every_process() -> None:
    """Python's sets of texts do not: the adapter's hash would differ from start to start."""
    orders = {
        subprocess.run(
            [sys.executable, "-c", _ORDER], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(orders) == 1


def test_of_two_learn_models_that_say_the_same_one_is_named_whoever_came_first() -> None:
    for order in itertools.permutations([told("p", model="b", episode="2"), told("p", model="a", episode="1")]):
        gathered = Gathered(ALL_TRAINED)
        for each in order:
            gathered.add(each)
        ((row,), _) = (side.rows for side in gathered.sides(1.0))
        assert (row.learn_model, row.episodes, row.times) == ("a", ["1", "2"], 2)


def test_the_text_in_hand_is_counted_in_bytes_with_the_system_prompt_of_each_row() -> None:
    """It bounds memory and files, and a scenario's own system prompt may be the longest part of each row."""
    gathered = Gathered(ALL_TRAINED)
    for prompt in ("über", "other", "other"):
        data = TrainingData.dpo_with_system("a system prompt", prompt, "näher", "no")
        gathered.add(Told(data, "m", "e", [], frozenset("p"), "t"))
    assert gathered.text_bytes == 2 * len("a system prompt") + len("überothernähernähernono") + 3


def test_what_others_say_too_is_not_taken_from_a_loud_producer() -> None:
    gathered = Gathered(ALL_TRAINED)
    for producer in "abc":
        for n in range(120):
            gathered.add(told(f"{producer}{n}", producers=producer))
    for n in range(600):
        gathered.add(told(f"flood{n}", producers="f"))
    for n in range(100):
        gathered.add(told(f"shared{n}", producers="f"))
        gathered.add(told(f"shared{n}", producers="a"))
    train, _ = gathered.sides(0.34)
    assert sum(row.prompt.startswith("shared") for row in train.rows) == 100
    assert 0 < sum(row.prompt.startswith("flood") for row in train.rows) < 300
    assert train.capped.keys() == {"f"}


def pair(name: str, *, chosen: str, rejected: str) -> Told:
    """A preference; `chosen` and `rejected` are who told these answers."""
    data = TrainingData.dpo(name, f"{name} right", f"{name} wrong")
    return Told(
        data, "dpo", f"{name}+", [], frozenset(chosen), "t",
        rejected_episode_id=f"{name}-", rejected_producers=frozenset(rejected), rejected_task="t",
    )  # fmt: skip


def test_whoever_tells_the_unwanted_answers_is_held_to_its_share_of_them() -> None:
    gathered = Gathered(ALL_TRAINED)
    for n in range(800):
        gathered.add(pair(f"flood{n}", chosen="abcd"[n % 4], rejected="f"))
    for n in range(400):
        gathered.add(pair(f"honest{n}", chosen="abcd"[n % 4], rejected="abcd"[n // 4 % 4]))
    train, _ = gathered.sides(0.3)
    lies = sum(row.prompt.startswith("flood") for row in train.rows)
    assert 100 < lies <= 0.3 * len(train.rows)
    assert len(train.rows) == 400 + lies
    assert train.capped == {"f": 800 - lies}


def test_whoever_tells_all_unwanted_answers_brings_no_more_of_them_than_anybody_may() -> None:
    """A hundred, as of a producer that is new: nobody else told any, so there is no share to be had."""
    gathered = Gathered(ALL_TRAINED)
    for n in range(800):
        gathered.add(pair(f"{n}", chosen="abcd"[n % 4], rejected="f"))
    train, _ = gathered.sides(0.3)
    assert len(train.rows) == 100
    assert train.capped == {"f": 700}
    assert len(gathered.sides(1.0)[0].rows) == 800


def test_a_pair_is_of_both_of_its_episodes() -> None:
    gathered = Gathered(ALL_TRAINED)
    for n in range(2):
        gathered.add(msgspec.structs.replace(pair("p", chosen="a", rejected="b"), rejected_episode_id=f"p-{n}"))
    train, _ = gathered.sides(1.0)
    assert train.episodes == ["p+", "p-0", "p-1"]
    assert [(row.episodes, row.times) for row in train.rows] == [(["p+", "p+"], 2)]


async def test_an_episode_has_its_own_records_and_no_neighbours(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first, second = ("look", "open", "done"), ("guess", "try", "done")
        other = [ActionRecord(task_id="t", tick=n, worker_id=1, action="wait", event_id=9 + n) for n in range(3)]
        await tell(store, [*task("t", first + second), *other], producer="p")
        await project(store)
        model = models_of("S", ())[0]
        records = EpisodeRecords(store, "S", model, RULES)
        found = {
            tuple(episode.actions): [action.action for action in (await records.of(episode)).context.actions]
            async for episode in store.episodes("S", EpisodeFilter(learn_model=model.name))
        }
        assert found[first] == list(first)
        assert found[second] == list(second)
        assert found["wait", "wait", "wait"] == ["wait"] * 3


async def test_many_tasks_are_read_at_once_and_each_episode_has_its_own_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read for each of 20,000 took 7.5 s of the processor that ingest needs."""
    async with opened(tmp_path) as store:
        await tell(store, [one for n in range(250) for one in task(f"t{n:03}", ("look", f"act-{n}", "done"))])
        await project(store)
        reads: list[int] = []
        read = store.actions_of_tasks

        async def counted(*arguments: Any, **more: Any) -> Any:
            found = await read(*arguments, **more)
            reads.append(len(found))
            return found

        monkeypatch.setattr(store, "actions_of_tasks", counted)
        model = models_of("S", ())[0]
        records = EpisodeRecords(store, "S", model, RULES)
        episodes = [episode async for episode in store.episodes("S", EpisodeFilter(learn_model=model.name))]
        for at, episode in enumerate(episodes):
            lived = await records.of(episode, episodes[at + 1 : at + AHEAD])
            assert [action.action for action in lived.context.actions] == episode.actions
        assert reads == [100, 100, 50]


async def test_nothing_is_learnt_from_a_damaged_task(tmp_path: Path) -> None:
    path = tmp_path / "swarm.db"
    async with opened(tmp_path) as store:
        for n in range(10):
            await tell(store, task(f"t{n}", target=f"mark-{n}-target"), seq=n)
        await project(store)
    damage(path, lambda content: content.__setitem__(content.index(b"mark-3-target"), 0x20))
    store = open_store(f"sqlite://{path}", SystemClock())
    await store.open()
    try:
        manifest, _ = await write_training_data(
            store, "S", tmp_path, config=LoraConfig(base_model="b"), models_of=models_of, rules=RULES
        )
    finally:
        await store.close()
    assert manifest.excluded == {"a record of its task is damaged": 2}
    assert {one.episode_id.split(":")[1] for one in manifest.excluded_episodes} == {"t3"}
