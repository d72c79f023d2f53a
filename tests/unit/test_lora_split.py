"""The sides of a training: no task on both, none ever judged that was learnt, one held out even of few."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.episodes.episode import Episode
from worker.episodes.training_data import TrainingData
from worker.training.lora.examples import Gathered, Side, Told
from worker.training.lora.split import Split, attempted
from worker.wire.records import Success

TASKS = st.integers(0, 30).map("task-{}".format)
#: An attempt: its task, what is asked and what is answered. Texts are few, so that tasks share some.
ATTEMPTS = st.lists(st.tuples(TASKS, st.integers(0, 5), st.integers(0, 2)), max_size=40, unique=True)
SHARES = st.sampled_from([0.05, 0.2, 0.5])


def sides_of(attempts: list[tuple[str, int, int]], share: float, *, pairs: bool) -> tuple[Side, Side]:
    gathered = Gathered(Split("S", share))
    for task, asked, answer in attempts:
        name = f"{task}:{asked}:{answer}"
        told = Told(TrainingData.sft(None, f"{asked}", f"{answer}"), "m", name, [], frozenset("p"), task)
        if pairs:
            told = Told(
                TrainingData.dpo(f"{asked}", f"{answer}", "no"), "dpo", name, [], frozenset("p"), task,
                rejected_episode_id=f"{name}-", rejected_producers=frozenset("p"), rejected_task=task,
            )  # fmt: skip
        gathered.add(told)
    return gathered.sides(1.0)


def tasks_of(side: Side) -> set[str]:
    return {name.split(":")[0] for name in side.episodes}


@settings(deadline=None, max_examples=60)
@given(attempts=ATTEMPTS, share=SHARES, pairs=st.booleans())
def test_no_task_lies_on_both_sides_and_no_example_is_lost(
    attempts: list[tuple[str, int, int]], share: float, *, pairs: bool
) -> None:
    train, held_out = sides_of(attempts, share, pairs=pairs)
    tasks = {task for task, *_ in attempts}
    assert tasks_of(train).isdisjoint(tasks_of(held_out))
    assert tasks_of(train) | tasks_of(held_out) == tasks
    assert (train.tasks, held_out.tasks) == (len(tasks_of(train)), len(tasks_of(held_out)))
    assert sum(row.times for side in (train, held_out) for row in side.rows) == len(attempts)
    assert bool(held_out.rows) >= (len(tasks) > 1)
    asked = {row.prompt for row in train.rows}
    assert all(row.seen is (row.prompt in asked) for row in held_out.rows)


@settings(deadline=None, max_examples=60)
@given(attempts=ATTEMPTS, share=SHARES, data=st.data())
def test_the_order_of_what_came_in_moves_nothing(
    attempts: list[tuple[str, int, int]], share: float, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(attempts))
    assert sides_of(attempts, share, pairs=False) == sides_of(shuffled, share, pairs=False)


@settings(deadline=None, max_examples=60)
@given(before=ATTEMPTS, more=ATTEMPTS, share=SHARES)
def test_what_was_trained_on_is_never_held_out_when_there_is_more(
    before: list[tuple[str, int, int]], more: list[tuple[str, int, int]], share: float
) -> None:
    after = list(dict.fromkeys([*before, *more]))
    (trained, held_out), (trained_after, held_out_after) = (
        sides_of(attempts, share, pairs=False) for attempts in (before, after)
    )
    if trained.tasks + held_out.tasks > 1:  # one task alone was never judged by
        assert tasks_of(trained) <= tasks_of(trained_after)
    moved = tasks_of(held_out) - tasks_of(held_out_after)
    assert len(moved) <= 1  # the one of few, once there is another
    assert not any(Split("S", share).is_held_out(task) for task in moved)


def test_one_of_two_tasks_is_held_out_and_a_task_alone_is_not() -> None:
    names = [f"task-{n}" for n in range(12) if not Split("S", 0.2).is_held_out(f"task-{n}")]
    for pair in itertools.combinations(names, 2):
        train, held_out = sides_of([(task, 0, 0) for task in pair], 0.2, pairs=False)
        assert (train.tasks, held_out.tasks) == (1, 1)
    train, held_out = sides_of([(names[0], n, 0) for n in range(5)], 0.2, pairs=False)
    assert (train.tasks, held_out.tasks, held_out.rows) == (1, 0, [])


def test_a_pair_of_two_tasks_is_never_torn_by_the_one_of_few() -> None:
    """A learn model of somebody's own may compare what it likes."""
    names = [f"task-{n}" for n in range(12) if not Split("S", 0.2).is_held_out(f"task-{n}")]
    gathered = Gathered(Split("S", 0.2))
    for chosen, rejected in itertools.pairwise(names):
        data = TrainingData.dpo(chosen, "yes", "no")
        gathered.add(
            Told(data, "own", chosen, [], frozenset("p"), chosen, rejected_episode_id=rejected, rejected_task=rejected)
        )
    train, held_out = gathered.sides(1.0)
    assert (len(train.rows), held_out.rows) == (len(names) - 1, [])


def test_a_task_is_what_attempts_share() -> None:
    episode = Episode(
        episode_id="m:t:0:0",
        learn_model="m",
        outcome=Success(1.0),
        actions=[],
        task_id="t",
        session_id="s",
        group_id="g",
    )
    assert attempted(episode) == "g"
    episode.group_id = None
    assert attempted(episode) == "s"
    episode.session_id = None
    assert attempted(episode) == "t"
