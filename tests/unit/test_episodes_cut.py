"""Cutting tasks into sequences and judging them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from worker.episodes.cut import Cut, cut, holdout, holdout_key, slice_task
from worker.episodes.rules import Rules
from worker.episodes.task import PlacedAction, TaskView
from worker.wire.records import ActionRecord, Failure, LearnStatsRecord, Outcome, Success, Timeout, Unknown

RULES = Rules()


def act(tick: int, action: str, *, batch: int = 1, at: int = 5000, worker: int = 0, **fields: Any) -> PlacedAction:
    record = ActionRecord(task_id="t", tick=tick, worker_id=worker, action=action, **fields)
    return PlacedAction(record, batch, at, ("node", 0, batch, tick))


def view(*actions: PlacedAction, session: LearnStatsRecord | None = None, idle: bool = False) -> TaskView:
    return TaskView(scenario="s", task_id="t", actions=list(actions), session=session, idle=idle)


def ended(outcome: Outcome, **fields: Any) -> LearnStatsRecord:
    return LearnStatsRecord("run-1", Raw(b"{}"), outcome, total_ticks=1, total_actions=1, **fields)


def only(cuts: list[Cut]) -> Cut:
    assert len(cuts) == 1
    return cuts[0]


def names(cuts: list[Cut]) -> list[list[str]]:
    return [[step.action for step in one.steps] for one in cuts]


def test_a_sequence_ends_at_each_terminal_action() -> None:
    cuts = cut(view(act(1, "look"), act(2, "done"), act(3, "look"), act(4, "Submit")), RULES)
    assert names(cuts) == [["look", "done"], ["look", "Submit"]]
    assert [one.ordinal for one in cuts] == [0, 1]


def test_each_worker_has_its_own_sequences() -> None:
    cuts = cut(
        view(act(1, "a", worker=2), act(1, "b", worker=1), act(2, "done", worker=2), act(3, "done", worker=1)), RULES
    )
    assert [(one.worker_id, names([one])[0]) for one in cuts] == [(1, ["b", "done"]), (2, ["a", "done"])]


def test_the_whole_task_is_one_sequence_over_its_workers() -> None:
    cuts = slice_task(
        view(act(1, "a", worker=2), act(2, "b", worker=1), act(3, "done", worker=2)), RULES, whole=True
    ).cuts
    assert names(cuts) == [["a", "b", "done"]]
    assert only(cuts).worker_id is None


def test_system_events_are_no_decisions() -> None:
    """By prefix, in any case, and by the scenario's own set (decision j)."""
    actions = [act(1, "LLM_decide"), act(2, "look"), act(3, "heartbeat"), act(4, "system_x"), act(5, "done")]
    rules = Rules(system_events=frozenset({"heartbeat"}))
    assert names(cut(view(*actions), rules)) == [["look", "done"]]
    assert cut(view(act(1, "manager_advice"), idle=True), rules) == []


@pytest.mark.parametrize(("idle", "session"), [(True, None), (False, ended(Unknown()))])
def test_an_open_tail_is_closed_by_silence_or_by_its_session(*, idle: bool, session: LearnStatsRecord | None) -> None:
    actions = [act(1, "done"), act(2, "look")]
    still_open = slice_task(view(*actions), RULES)
    assert names(still_open.cuts) == [["done"]]
    assert still_open.open_tail
    closed = slice_task(view(*actions, idle=idle, session=session), RULES)
    assert names(closed.cuts) == [["done"], ["look"]]
    assert not closed.open_tail


def test_a_task_without_open_sequence_has_no_open_tail() -> None:
    assert not slice_task(view(act(1, "look"), act(2, "done")), RULES).open_tail


ORDERED = [
    act(1, "a"),
    act(2, "b", timestamp_ms=9),  # no event id comes before any
    act(2, "c", event_id=0, timestamp_ms=7),
    act(2, "d", event_id=4, timestamp_ms=3),
    act(3, "e", timestamp_ms=1),
    act(3, "f", timestamp_ms=2),
    act(4, "g", batch=7),
    act(4, "h", batch=8),
    act(5, "done"),
]


@given(st.permutations(ORDERED))
def test_order_is_by_tick_worker_event_id_time_and_place_and_never_by_arrival(arrived: list[PlacedAction]) -> None:
    assert names(cut(view(*arrived), RULES)) == [["a", "b", "c", "d", "e", "f", "g", "h", "done"]]


def test_without_an_explicit_outcome_the_terminal_action_decides() -> None:
    assert only(cut(view(act(1, "a"), act(2, "done")), RULES)).outcome == Success(1.0)
    assert only(cut(view(act(1, "a", success=False), act(2, "done")), RULES)).outcome == Success(0.5)
    failed = cut(view(act(1, "a"), act(2, "done", success=False, error="no route")), RULES)
    assert only(failed).outcome == Failure("no route")


def test_giving_up_is_a_failure_even_where_it_says_success() -> None:
    outcome = only(cut(view(act(1, "Give_Up", success=True, error="stuck")), RULES)).outcome
    assert outcome == Failure("stuck")
    assert isinstance(only(cut(view(act(1, "give_up")), RULES)).outcome, Failure)


def test_a_tail_that_only_silence_closed_is_unknown() -> None:
    assert only(cut(view(act(1, "a"), idle=True), RULES)).outcome == Unknown()


@pytest.mark.parametrize("stated", [Success(0.25), Failure("lost"), Timeout(0.75)])
def test_an_explicit_outcome_of_the_session_wins_with_its_own_score(stated: Outcome) -> None:
    assert only(cut(view(act(1, "a"), act(2, "done"), session=ended(stated)), RULES)).outcome == stated


def test_an_unknown_session_leaves_the_word_to_the_terminal_action() -> None:
    cuts = cut(view(act(1, "a"), act(2, "done"), act(3, "b"), session=ended(Unknown())), RULES)
    assert [one.outcome for one in cuts] == [Success(1.0), Unknown()]


def test_a_timeout_without_a_score_gets_the_sequences() -> None:
    """Decision (d) fills `Timeout.partial_score` (domain 4.5)."""
    session = ended(Timeout())
    assert only(cut(view(act(1, "a"), act(2, "b", success=False), session=session), RULES)).outcome == Timeout(0.5)


def test_the_score_is_the_mean_of_the_kpis_that_were_reported() -> None:
    one = only(cut(view(act(1, "a", kpi=0.5, success=False), act(2, "b", kpi=1), act(3, "done")), RULES))
    assert one.outcome == Success(0.75)
    assert one.mean_kpi == 0.75


def test_the_mean_kpi_of_a_failure_is_kept() -> None:
    one = only(cut(view(act(1, "a", kpi=-1), act(2, "give_up", kpi=0)), RULES))
    assert isinstance(one.outcome, Failure)
    assert one.mean_kpi == -0.5


def test_absurd_kpis_give_a_finite_score() -> None:
    one = only(cut(view(act(1, "a", kpi=1e308), act(2, "done", kpi=1e308)), RULES))
    assert one.outcome == Success(1e308)


def test_a_step_keeps_what_learning_looks_at() -> None:
    fields: dict[str, Any] = {"duration_ms": 7, "discoveries": 3, "kpi": 1, "selection_logic": "UCB1", "success": False}
    step = only(cut(view(act(1, "done", **fields)), RULES)).steps[0]
    assert (step.ok, step.duration_ms, step.discoveries, step.kpi, step.selection_logic) == (False, 7, 3, 1.0, "UCB1")


def test_a_sequence_ends_when_its_last_action_says_else_when_that_came_in() -> None:
    assert only(cut(view(act(1, "a", timestamp_ms=99), act(2, "done", at=7)), RULES)).ended_at_ms == 7
    assert only(cut(view(act(1, "a", at=99), act(2, "done", timestamp_ms=0)), RULES)).ended_at_ms == 0


def test_session_and_group_come_from_the_stats_else_from_the_first_action_that_names_them() -> None:
    actions = [act(1, "a"), act(2, "b", session_id="s2", group_id="g2"), act(3, "done", session_id="s3", group_id="g3")]
    one = only(cut(view(*reversed(actions)), RULES))
    assert (one.session_id, one.group_id) == ("s2", "g2")
    one = only(cut(view(act(1, "done"), session=ended(Unknown(), group_id="g1")), RULES))
    assert (one.session_id, one.group_id) == ("run-1", "g1")


def test_holding_out_is_stable_across_versions_and_machines() -> None:
    """Spelled out, since a changed hash would silently mix what was trained on into what is judged."""
    held = [n for n in range(20) if holdout(holdout_key("s", f"run-{n}"), 0.2)]
    assert held == [3, 10, 17, 18, 19]


def test_about_the_share_is_held_out() -> None:
    held = sum(holdout(holdout_key("s", str(n)), 0.2) for n in range(10_000))
    assert 1800 < held < 2200
    assert not holdout("x", 0.0)
    assert holdout("x", 1.0)


def test_a_session_is_held_out_as_one() -> None:
    """Its tasks never lie on both sides of the gate."""
    rules = Rules(holdout=0.5)
    sides = set()
    for number in range(20):
        one = TaskView(scenario="s", task_id=f"t{number}", actions=[act(1, "done", session_id="run-1")])
        sides |= {part.holdout for part in cut(one, rules)}
    assert len(sides) == 1


DRAWN = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 2), st.sampled_from(["a", "b", "llm_x", "done", "GIVE_UP"])),
    max_size=30,
)


@given(drawn=DRAWN, shuffle=st.randoms(use_true_random=False), idle=st.booleans())
def test_no_action_is_lost_or_doubled_and_order_of_arrival_is_nothing(
    *, drawn: list[tuple[int, int, str]], shuffle: random.Random, idle: bool
) -> None:
    actions = [act(tick, name, worker=worker, event_id=n) for n, (tick, worker, name) in enumerate(drawn)]
    slices = slice_task(view(*actions, idle=idle), RULES)
    taken = [placed.record.event_id for one in slices.cuts for placed in one.actions]
    assert len(taken) == len(set(taken))
    decisions = {placed.record.event_id for placed in actions if placed.record.action != "llm_x"}
    assert set(taken) <= decisions
    assert slices.open_tail == (set(taken) != decisions)
    shuffled = list(actions)
    shuffle.shuffle(shuffled)
    assert slice_task(view(*shuffled, idle=idle), RULES) == slices
