"""Event ids with their overflows, and the record that each event becomes."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.client.actions import ActionContext, ActionEventBuilder, ActionEventResult, LoraConfig
from worker.client.checking import checked_json
from worker.client.event_ids import MAX_SEQUENCE, MAX_TICK, MAX_WORKER, EventSequences, event_id, split_event_id
from worker.client.learning_events import DependencyGraphInference, LearnStatsSnapshot, StrategyAdvice
from worker.errors import InvalidRecord
from worker.wire.records import INT64_MAX, ActionRecord, Success
from worker.wire.stats import LearnStats, NgramStats, parse_learn_stats


def test_the_layout_is_the_originals() -> None:
    assert event_id(5, 3, 7) == (5 << 24) | (3 << 8) | 7


@given(st.integers(0, MAX_TICK), st.integers(0, MAX_WORKER), st.integers(0, MAX_SEQUENCE))
def test_an_id_can_be_taken_apart_and_fits_a_signed_64_bit_integer(tick: int, worker: int, sequence: int) -> None:
    made = event_id(tick, worker, sequence)
    assert split_event_id(made) == (tick, worker, sequence)
    assert 0 <= made <= INT64_MAX


@pytest.mark.parametrize(
    ("tick", "worker", "sequence", "named"),
    [
        (0, 65_536, 0, "worker_id"),
        (0, -1, 0, "worker_id"),
        (0, 0, 256, "sequence"),
        (1 << 39, 0, 0, "tick"),
        (-1, 0, 0, "tick"),
    ],
)
def test_what_does_not_fit_is_an_error_and_never_another_id(tick: int, worker: int, sequence: int, named: str) -> None:
    with pytest.raises(InvalidRecord, match=named):
        event_id(tick, worker, sequence)


def test_the_257th_event_of_a_worker_in_a_tick_is_an_error() -> None:
    sequences = EventSequences()
    made = {sequences.next_id("t", 9, 1) for _ in range(256)}
    assert len(made) == 256
    with pytest.raises(InvalidRecord, match="256 events in tick 9"):
        sequences.next_id("t", 9, 1)
    assert split_event_id(sequences.next_id("t", 10, 1)) == (10, 1, 0)
    assert split_event_id(sequences.next_id("t", 9, 2)) == (9, 2, 0)
    assert split_event_id(sequences.next_id("other", 9, 1)) == (9, 1, 0)


def test_ticks_in_any_order_never_give_an_id_twice() -> None:
    sequences = EventSequences()
    made = [sequences.next_id("t", tick, 0) for tick in (1, 2, 1, 3, 2, 1)]
    assert len(set(made)) == len(made)


def test_an_action_event_keeps_everything_in_its_record() -> None:
    """The original dropped event id, KPI, discoveries and output on the way."""
    context = ActionContext(
        selection_logic="UCB1",
        from_guidance=True,
        previous_action="look",
        lora=LoraConfig(id="7", name="fast"),
        propensity=0.25,
        candidates=("move", "look"),
        policy_version="m1",
    )
    event = (
        ActionEventBuilder(4, 2, "move", sequences=EventSequences())
        .task_id("t").group_id("g").session_id("s").target("door").duration(12).timestamp(99).context(context)
        .result(ActionEventResult.succeeded("opened").with_discoveries(3).with_kpi(-0.5))
        .build()
    )  # fmt: skip
    assert event.to_record() == ActionRecord(
        task_id="t", tick=4, worker_id=2, action="move", event_id=event_id(4, 2, 0), session_id="s", group_id="g",
        target="door", success=True, duration_ms=12, timestamp_ms=99, kpi=-0.5, discoveries=3, output="opened",
        selection_logic="UCB1", from_guidance=True, previous_action="look", lora="fast", propensity=0.25,
        candidates=["move", "look"], policy_version="m1",
    )  # fmt: skip
    assert checked_json(event.to_record(), "S")


def test_a_failed_action_says_so() -> None:
    event = ActionEventBuilder(0, 0, "move").result(ActionEventResult.failure("locked")).build()
    record = event.to_record()
    assert (record.success, record.error) == (False, "locked")


def test_an_action_without_a_task_gets_a_fresh_one() -> None:
    one, other = (ActionEventBuilder(0, 0, "look").build() for _ in range(2))
    assert UUID(one.task_id).version == 4
    assert one.task_id != other.task_id


def test_builders_of_one_process_share_their_sequence() -> None:
    one, other = (ActionEventBuilder(0, 0, "look").task_id("shared-sequence").build() for _ in range(2))
    assert (split_event_id(one.id)[2], split_event_id(other.id)[2]) == (0, 1)


def test_strategy_advice_becomes_its_record_with_the_same_fields() -> None:
    advice = StrategyAdvice(
        timestamp_ms=1, tick=2, advisor="llm", current_strategy="ucb1", recommended="greedy", should_change=True,
        confidence=0.5, reason="r", frontier_count=3, total_visits=4, failure_rate=0.1, latency_ms=5,
    )  # fmt: skip
    assert msgspec.structs.asdict(advice).items() <= msgspec.structs.asdict(advice.to_record()).items()
    assert checked_json(advice.to_record(), "S")


@pytest.mark.parametrize(
    ("success", "error", "expected"),
    [(True, None, None), (False, None, "the inference failed"), (False, "timeout", "timeout"), (True, "odd", "odd")],
)
def test_a_failed_inference_always_carries_an_error(success: bool, error: str | None, expected: str | None) -> None:
    """The record has no `success`, and an order without an error may replace a good one."""
    inference = DependencyGraphInference(
        timestamp_ms=1, prompt="p", response="r", available_actions=("a", "b"), discover_order=("a",),
        not_discover_order=("b",), model="m", endpoint="e", latency_ms=2, success=success, error=error,
    )  # fmt: skip
    assert inference.to_record().error == expected
    assert checked_json(inference.to_record(), "S")


@pytest.mark.parametrize("form", ["typed", "object", "text", "bytes", "none"])
def test_session_statistics_may_be_given_in_any_form(form: str) -> None:
    typed = LearnStats(ngram_stats=NgramStats(trigrams={("a", "b", "c"): (1, 2)}))
    text = '{"ngram_stats": {"trigrams": [["a", "b", "c", [1, 2]]]}}'
    forms = {"typed": typed, "object": msgspec.json.decode(text), "text": text, "bytes": text.encode(), "none": None}
    snapshot = LearnStatsSnapshot(
        session_id="s", outcome=Success(1.0), total_ticks=1, total_actions=1, stats=forms[form]
    )
    record = snapshot.to_record()
    assert checked_json(record, "S")
    assert parse_learn_stats(record.stats_json) == (LearnStats() if form == "none" else typed)
