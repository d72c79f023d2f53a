"""Which examples a step sees, and what is said of the steps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.training.lora.progress import StepProgress, in_words
from worker.training.lora.schedule import Schedule

SCHEDULES = st.builds(
    Schedule,
    examples=st.integers(1, 50),
    epochs=st.integers(1, 4),
    batch_size=st.integers(1, 7),
    accumulation=st.integers(1, 4),
    seed=st.integers(0, 9),
)


@given(SCHEDULES)
def test_every_example_is_seen_once_an_epoch(schedule: Schedule) -> None:
    seen = Counter(place for step in range(schedule.steps) for batch in schedule.batches(step) for place in batch)
    assert seen == dict.fromkeys(range(schedule.examples), schedule.epochs)


@given(SCHEDULES)
def test_no_step_is_empty_or_larger_than_the_settings_say(schedule: Schedule) -> None:
    for step in range(schedule.steps):
        batches = schedule.batches(step)
        assert 1 <= len(batches) <= schedule.accumulation
        assert all(1 <= len(batch) <= schedule.batch_size for batch in batches)


def test_a_step_is_the_same_whichever_steps_came_before() -> None:
    """So that a checkpoint holds no state of the order."""
    schedule = Schedule(examples=30, epochs=3, batch_size=4, accumulation=2, seed=1)
    assert [schedule.batches(step) for step in (5, 0, 5)] == [
        schedule.batches(5), Schedule(examples=30, epochs=3, batch_size=4, accumulation=2, seed=1).batches(0),
        schedule.batches(5),
    ]  # fmt: skip
    assert schedule.batches(0) != schedule.batches(schedule.per_epoch)  # another order each epoch
    seeds = {schedule.seed_of(step, batch) for step in range(schedule.steps) for batch in range(2)}
    assert len(seeds) == schedule.steps * 2


def test_steps_are_told_once_a_second_and_at_the_end() -> None:
    said: list[tuple[float, str, object]] = []
    now = 100.0
    progress = StepProgress(lambda *one: said.append(one), steps=40, clock=lambda: now)
    for done in range(11, 41):  # ten were made by an earlier attempt
        now += 0.25
        progress(done, 2.0 / done)
    assert [text for _, text, _ in said] == [
        "step 14 of 40, loss 0.143, 6 s left", "step 18 of 40, loss 0.111, 6 s left",
        "step 22 of 40, loss 0.091, 4 s left", "step 26 of 40, loss 0.077, 4 s left",
        "step 30 of 40, loss 0.067, 2 s left", "step 34 of 40, loss 0.059, 2 s left",
        "step 38 of 40, loss 0.053, 1 s left", "step 40 of 40, loss 0.050",
    ]  # fmt: skip
    assert said[-1][0] == pytest.approx(0.8)
    assert said[0][2] == (14, 40, 0.142857, 6.5)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (119, "119 s"), (130, "2 min"), (5400, "90 min"), (9000, "2.5 h")]
)
def test_times_are_rough(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
