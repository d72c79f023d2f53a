"""What a task and a session count."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.episodes.rules import Rules
from worker.episodes.task import PlacedAction, TaskView
from worker.learning.contribution import DAY_MS, session_counts, task_counts
from worker.learning.counts import MICRO, BucketedCounts, CountBucket, CountKey, Counts
from worker.learning.tally import LARGEST_ADDEND
from worker.wire.records import ActionRecord, Failure, LearnStatsRecord, Outcome, Success, Timeout, Unknown

AT = 20_000 * DAY_MS + 5
RULES = Rules(holdout=0.0)


def action(name: str, tick: int, **fields: Any) -> PlacedAction:
    record = ActionRecord(task_id="t", tick=tick, worker_id=fields.pop("worker_id", 1), action=name, **fields)
    return PlacedAction(record, batch_no=1, received_at_ms=AT, place=("p", 0, 0, tick))


def view(*actions: PlacedAction, session: LearnStatsRecord | None = None, idle: bool = False) -> TaskView:
    return TaskView(scenario="S", task_id="t", actions=list(actions), session=session, idle=idle)


def stats_record(outcome: Outcome, stats: object = None, **fields: Any) -> LearnStatsRecord:
    body = msgspec.Raw(msgspec.json.encode({} if stats is None else stats))
    values: dict[str, Any] = {"total_ticks": 7, "total_actions": 9, **fields}
    return LearnStatsRecord(session_id="s1", stats_json=body, outcome=outcome, **values)


def merged(buckets: BucketedCounts) -> Counts:
    total: Counts = Counter()
    for counts in buckets.values():
        total.update(counts)
    return total


def of(counts: Counts, measure: str, *names: str) -> int:
    return counts[CountKey("log", measure, names)]


def test_a_successful_sequence_counts_actions_steps_and_ngrams() -> None:
    counts = merged(
        task_counts(view(action("a", 1), action("b", 2, success=False), action("c", 3), action("done", 4)), RULES)
    )
    assert of(counts, "action.visits", "b") == 1
    assert of(counts, "action.failures", "b") == 1
    assert of(counts, "action.successes", "a") == 1
    assert of(counts, "contextual.visits", "a", "b") == 1
    assert of(counts, "contextual.failures", "a", "b") == 1
    assert of(counts, "start.success", "a") == 1
    assert of(counts, "transition.success", "b", "c") == 1
    assert of(counts, "transition.visits", "b", "c") == 1
    assert of(counts, "ngram.success", "a", "b", "c") == 1
    assert of(counts, "ngram.success", "a", "b", "c", "done") == 1
    assert of(counts, "episodes.success") == 1
    assert not any(key.measure.endswith(".failure") for key in counts)


def test_an_unknown_outcome_counts_as_exposure_and_in_no_rate() -> None:
    """Domain 4.0: unknown outcomes count for exposure, never for rates."""
    counts = merged(task_counts(view(action("a", 1), action("b", 2), action("c", 3), idle=True), RULES))
    assert of(counts, "episodes.unknown") == 1
    assert of(counts, "transition.visits", "a", "b") == 1
    assert of(counts, "start.visits", "a") == 1
    measures = {key.measure for key in counts}
    assert (
        not {"transition.success", "transition.failure", "ngram.success", "ngram.failure", "start.failure"} & measures
    )


def test_a_timeout_is_a_failed_episode_with_a_count_of_its_own() -> None:
    session = stats_record(Timeout())
    counts = merged(task_counts(view(action("a", 1), action("b", 2), session=session), RULES))
    assert of(counts, "episodes.timeout") == 1
    assert of(counts, "episodes.failure") == 0
    assert of(counts, "transition.failure", "a", "b") == 1


def test_the_context_an_action_names_goes_before_the_action_that_came_before() -> None:
    counts = merged(task_counts(view(action("a", 1), action("done", 2, previous_action="room 4")), RULES))
    assert of(counts, "contextual.visits", "room 4", "done") == 1
    assert of(counts, "contextual.visits", "a", "done") == 0
    assert of(counts, "transition.success", "a", "done") == 1


def test_a_context_too_long_to_be_a_name_is_not_counted() -> None:
    counts = merged(task_counts(view(action("a", 1), action("done", 2, previous_action="x" * 257)), RULES))
    assert of(counts, "contextual.visits", "a", "done") == 1


def test_system_events_count_nowhere() -> None:
    counts = merged(task_counts(view(action("a", 1), action("llm_decide", 2), action("done", 3)), RULES))
    assert of(counts, "transition.success", "a", "done") == 1
    assert not any("llm_decide" in key.names for key in counts)


def test_kpi_discoveries_and_duration_are_kept() -> None:
    """Fault 37: the original lost them."""
    counts = merged(
        task_counts(view(action("a", 1, kpi=0.25, discoveries=2, duration_ms=30), action("done", 2, kpi=-1)), RULES)
    )
    assert of(counts, "action.kpi_micro", "a") == MICRO // 4
    assert of(counts, "action.kpi_count", "a") == 1
    assert of(counts, "action.kpi_micro", "done") == -MICRO
    assert of(counts, "action.discoveries", "a") == 2
    assert of(counts, "action.duration_ms", "a") == 30


def test_the_strategy_in_use_at_the_end_takes_the_credit() -> None:
    actions = [
        action("a", 1, selection_logic="UCB1"),
        action("b", 2, selection_logic="Greedy", success=False),
        action("done", 3),
    ]
    counts = merged(task_counts(view(*actions), RULES))
    assert of(counts, "strategy.visits", "UCB1") == 1
    assert of(counts, "strategy.failures", "Greedy") == 1
    assert of(counts, "strategy.episodes_success", "Greedy") == 1
    assert of(counts, "strategy.episodes_success", "UCB1") == 0


def test_absurd_values_cannot_overflow_the_sums() -> None:
    absurd = action("done", 1, kpi=1e308, duration_ms=2**63 - 1, discoveries=2**63 - 1)
    counts = merged(task_counts(view(absurd), RULES))
    assert of(counts, "action.kpi_micro", "done") == LARGEST_ADDEND
    assert of(counts, "action.duration_ms", "done") == LARGEST_ADDEND


def test_a_sequence_is_counted_on_the_utc_day_it_ended() -> None:
    buckets = task_counts(view(action("a", 1), action("done", 2, timestamp_ms=3 * DAY_MS - 1)), RULES)
    assert set(buckets) == {CountBucket(2, holdout=False)}


def test_held_out_sequences_lie_in_buckets_of_their_own() -> None:
    buckets = task_counts(view(action("done", 1)), Rules(holdout=1.0))
    assert set(buckets) == {CountBucket(20_000, holdout=True)}


STATS = {
    "episode_transitions": {
        "success_transitions": [["a", "b", 3]],
        "failure_transitions": [["a", "c", 1]],
        "success_episodes": 3,
        "failure_episodes": 1,
    },
    "ngram_stats": {"trigrams": [["a", "b", "c", 2, 1]]},
    "contextual_stats": [["a", "b", {"visits": 4, "successes": 3, "failures": 1}]],
    "selection_performance": {"strategy_stats": {"ucb1": {"visits": 5, "episodes_success": 2}}},
}


def test_learn_stats_count_under_their_own_source() -> None:
    counts = merged(session_counts(stats_record(Success(1), STATS), AT))
    assert counts == {
        CountKey("stats", "sessions.success", ()): 1,
        CountKey("stats", "sessions.ticks", ()): 7,
        CountKey("stats", "sessions.actions", ()): 9,
        CountKey("stats", "episodes.success", ()): 3,
        CountKey("stats", "episodes.failure", ()): 1,
        CountKey("stats", "transition.visits", ("a", "b")): 3,
        CountKey("stats", "transition.success", ("a", "b")): 3,
        CountKey("stats", "transition.visits", ("a", "c")): 1,
        CountKey("stats", "transition.failure", ("a", "c")): 1,
        CountKey("stats", "ngram.success", ("a", "b", "c")): 2,
        CountKey("stats", "ngram.failure", ("a", "b", "c")): 1,
        CountKey("stats", "contextual.visits", ("a", "b")): 4,
        CountKey("stats", "contextual.successes", ("a", "b")): 3,
        CountKey("stats", "contextual.failures", ("a", "b")): 1,
        CountKey("stats", "strategy.visits", ("ucb1",)): 5,
        CountKey("stats", "strategy.episodes_success", ("ucb1",)): 2,
    }


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(Success(1), "success"), (Failure("x"), "failure"), (Timeout(), "timeout"), (Unknown(), "unknown")],
)
def test_a_session_counts_by_its_outcome(outcome: Outcome, kind: str) -> None:
    counts = merged(session_counts(stats_record(outcome), AT))
    assert counts[CountKey("stats", f"sessions.{kind}", ())] == 1


def test_a_session_is_held_out_with_its_tasks() -> None:
    """Both are chosen by the session's id, so the gate's side sees all of it or nothing."""
    for number in range(40):
        record = stats_record(Success(1))
        record.session_id = f"s{number}"
        one = task_counts(view(action("a", 1, session_id=record.session_id), session=record), Rules(holdout=0.5))
        other = session_counts(record, AT, scenario="S", holdout_share=0.5)
        assert {bucket.holdout for bucket in one} == {bucket.holdout for bucket in other}


NAMES = st.sampled_from(["a", "b", "c", "done", "give_up", "llm_x"])
ACTIONS = st.lists(
    st.builds(
        lambda name, tick, worker, ok, kpi: action(name, tick, worker_id=worker, event_id=tick, success=ok, kpi=kpi),
        NAMES,
        st.integers(0, 30),
        st.integers(0, 2),
        st.sampled_from([None, True, False]),
        st.none() | st.floats(-5, 5),
    ),
    max_size=12,
    unique_by=lambda placed: (placed.record.tick, placed.record.worker_id),
)


@given(ACTIONS, st.randoms(use_true_random=False), st.booleans())
def test_counts_do_not_depend_on_the_order_of_arrival(actions: list[PlacedAction], random: Any, idle: bool) -> None:
    shuffled = list(actions)
    random.shuffle(shuffled)
    assert task_counts(view(*shuffled, idle=idle), RULES) == task_counts(view(*actions, idle=idle), RULES)


@given(ACTIONS, st.data())
def test_counts_form_a_group_under_revision(actions: list[PlacedAction], data: st.DataObject) -> None:
    """Adding new minus old at each late arrival ends at the counts of the whole."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(actions)), max_size=4)))
    running: Counts = Counter()
    old: Counts = Counter()
    for end in (*cuts, len(actions)):
        new = merged(task_counts(view(*actions[:end], idle=True), RULES))
        running.update(new)
        running.subtract(old)
        old = new
    assert {key: number for key, number in running.items() if number} == dict(
        merged(task_counts(view(*actions, idle=True), RULES))
    )


@given(ACTIONS)
def test_each_action_ends_or_goes_on(actions: list[PlacedAction]) -> None:
    """Starts and arrivals less departures are ends: one an episode."""
    counts = merged(task_counts(view(*actions, idle=True), RULES))
    kinds = ("success", "failure", "timeout", "unknown")
    episodes = sum(of(counts, f"episodes.{kind}") for kind in kinds)
    starts = sum(number for key, number in counts.items() if key.measure == "start.visits")
    steps = sum(number for key, number in counts.items() if key.measure == "transition.visits")
    visits = sum(number for key, number in counts.items() if key.measure == "action.visits")
    assert starts == episodes
    assert starts + steps == visits
