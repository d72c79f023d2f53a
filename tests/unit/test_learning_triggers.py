"""Triggers: when they fire, what they say of it, and their text."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.learning.firing import evaluate
from worker.learning.trigger_text import TriggerSyntaxError, parse_trigger
from worker.learning.triggers import (
    AlwaysTrigger,
    AndTrigger,
    CountTrigger,
    DriftTrigger,
    ManualTrigger,
    NeverTrigger,
    OrTrigger,
    QualityTrigger,
    TimeTrigger,
    TrainTrigger,
    TriggerBuilder,
    TriggerContext,
    TriggerError,
    TriggerMetrics,
)

HOUR = 3_600_000
NOW = 1_700_000_000_000


def context(**fields: Any) -> TriggerContext:
    values: dict[str, Any] = {"event_count": 1, "now_ms": NOW, **fields}
    return TriggerContext(**values)


def test_default_watch_is_100_episodes_or_1_hour() -> None:
    """Contract fact, and the setting's default text."""
    trigger = TriggerBuilder.default_watch()
    assert trigger == parse_trigger("count(100) or every(1h)")
    assert not trigger.should_train(context(event_count=99, first_record_at_ms=NOW - HOUR + 1))
    assert trigger.should_train(context(event_count=100, first_record_at_ms=NOW))
    assert trigger.should_train(context(event_count=1, first_record_at_ms=NOW - HOUR))


@pytest.mark.parametrize("trigger", [ManualTrigger(), NeverTrigger()])
def test_manual_and_never_do_not_fire_by_themselves(trigger: TrainTrigger) -> None:
    assert evaluate(trigger, context(event_count=10**6)) is None


@pytest.mark.parametrize(
    "trigger",
    [
        TriggerBuilder.always(),
        TriggerBuilder.every_hours(1),
        TriggerBuilder.on_quality_drop(0.9),
        parse_trigger("always and every(1ms)"),
    ],
)
def test_nothing_fires_without_something_the_last_training_did_not_see(trigger: TrainTrigger) -> None:
    """Decision (f), faults 9, 16, 41."""
    seen = {
        "event_count": 50,
        "last_train_count": 50,
        "session_count": 3,
        "last_train_sessions": 3,
        "last_train_at_ms": NOW - 5 * HOUR,
        "metrics": TriggerMetrics(sample_count=9, success_rate=0.1),
    }
    assert evaluate(trigger, context(**seen)) is None
    assert evaluate(trigger, context(**{**seen, "event_count": 51})) is not None
    assert evaluate(trigger, context(**{**seen, "session_count": 4})) is not None


def test_nothing_fires_at_a_start_without_data() -> None:
    """Fault 9: never trained is None, not 1970, and there is no record to count from."""
    assert evaluate(TriggerBuilder.default_watch(), context(event_count=0)) is None


def test_counts_are_of_new_episodes_and_never_negative() -> None:
    """A rebuild may leave fewer episodes than the last training saw."""
    trigger = CountTrigger(10)
    assert trigger.should_train(context(event_count=110, last_train_count=100))
    assert not trigger.should_train(context(event_count=109, last_train_count=100))
    assert not trigger.should_train(context(event_count=5, last_train_count=100))
    assert context(event_count=5, last_train_count=100).new_episodes == 0


def test_time_counts_from_the_last_training_else_from_the_first_record() -> None:
    trigger = TimeTrigger.minutes(1)
    assert trigger.should_train(context(first_record_at_ms=NOW - 60_000))
    assert not trigger.should_train(context(first_record_at_ms=NOW - 90_000, last_train_at_ms=NOW - 30_000))
    assert not trigger.should_train(context())


def test_a_clock_that_went_back_makes_no_negative_time() -> None:
    """Fault 20."""
    ctx = context(last_train_at_ms=NOW + HOUR)
    assert ctx.elapsed_ms == 0
    assert not TimeTrigger.hours(1).should_train(ctx)


def test_quality_fires_below_its_threshold_and_never_without_metrics() -> None:
    trigger = QualityTrigger(0.6)
    assert trigger.should_train(context(metrics=TriggerMetrics(sample_count=50, success_rate=0.59)))
    assert not trigger.should_train(context(metrics=TriggerMetrics(sample_count=50, success_rate=0.6)))
    assert not trigger.should_train(context(metrics=TriggerMetrics(sample_count=0, success_rate=0.0)))
    assert not trigger.should_train(context())


def metrics(successes: int, of: int) -> TriggerMetrics:
    return TriggerMetrics(sample_count=of, success_rate=successes / of)


def test_drift_fires_on_a_fall_and_not_on_a_rise() -> None:
    trigger = DriftTrigger()
    assert trigger.should_train(context(metrics=metrics(50, 100), earlier=metrics(400, 500)))
    assert not trigger.should_train(context(metrics=metrics(95, 100), earlier=metrics(300, 500)))
    assert not trigger.should_train(context(metrics=metrics(78, 100), earlier=metrics(400, 500)))


def test_drift_needs_enough_outcomes_on_both_sides() -> None:
    trigger = DriftTrigger()
    assert not trigger.should_train(context(metrics=metrics(0, 29), earlier=metrics(400, 500)))
    assert not trigger.should_train(context(metrics=metrics(0, 100), earlier=metrics(29, 29)))
    assert not trigger.should_train(context(metrics=metrics(0, 100)))


def test_drift_raises_few_false_alarms_and_sees_a_real_fall() -> None:
    """One look at 200 streams each: success 0.8 throughout, or 0.6 for the newest 100."""
    rng = random.Random(7)

    def draw(rate: float, of: int) -> TriggerMetrics:
        return metrics(sum(rng.random() < rate for _ in range(of)), of)

    trigger = DriftTrigger()
    false = sum(trigger.should_train(context(metrics=draw(0.8, 100), earlier=draw(0.8, 500))) for _ in range(200))
    true = sum(trigger.should_train(context(metrics=draw(0.6, 100), earlier=draw(0.8, 500))) for _ in range(200))
    assert false <= 6
    assert true >= 180


def test_the_outcomes_before_the_newest_are_a_difference() -> None:
    """The store gives the newest 20 and the newest 100; the 80 before come by subtraction."""
    every = TriggerMetrics(sample_count=100, success_rate=0.7, avg_score=0.5)
    newest = TriggerMetrics(sample_count=20, success_rate=0.3, avg_score=0.1)
    before = every.before(newest)
    assert before is not None
    assert before.sample_count == 80
    assert before.success_rate == pytest.approx(0.8)
    assert before.avg_score == pytest.approx(0.6)
    assert newest.before(newest) is None


def test_combinations_of_none() -> None:
    """Empty And is true, empty Or is false; And still needs new data."""
    assert AndTrigger(()).should_train(context())
    assert not OrTrigger(()).should_train(context())
    assert evaluate(AndTrigger(()), context()) is not None
    assert (AndTrigger(()).describe(), OrTrigger(()).describe()) == ("always", "never")


class Broken:
    """A user's trigger with a bug."""

    def should_train(self, ctx: TriggerContext) -> bool:
        raise ZeroDivisionError("by zero")

    def name(self) -> str:
        return "broken"

    def describe(self) -> str:
        return "broken"


def test_an_error_in_a_member_is_raised_as_a_trigger_error() -> None:
    """Fault 12: the original took it for "no" without a line of log."""
    with pytest.raises(TriggerError, match="AndTrigger raised ZeroDivisionError: by zero"):
        evaluate(AndTrigger((AlwaysTrigger(), Broken())), context())


def test_who_fired_is_told_with_values_and_thresholds() -> None:
    trigger = parse_trigger("count(10) or every(1h) or quality(0.5)")
    firing = evaluate(
        trigger,
        context(
            event_count=30,
            last_train_count=5,
            last_train_at_ms=NOW - HOUR // 2,
            session_count=2,
            metrics=TriggerMetrics(sample_count=20, success_rate=0.25),
        ),
    )
    assert firing is not None
    assert firing.kind == "count+quality"
    assert firing.rule == "count(10) or every(1h) or quality(0.5)"
    assert firing.values == {"new_episodes": 25, "new_sessions": 2, "success_rate": 0.25, "sample_count": 20}
    assert firing.thresholds == {"new_episodes": 10, "success_rate": 0.5}


def test_drift_tells_its_p_value() -> None:
    firing = evaluate(DriftTrigger(), context(metrics=metrics(50, 100), earlier=metrics(400, 500)))
    assert firing is not None
    assert firing.thresholds == {"p_value": 0.01}
    assert 0.0 < firing.values["p_value"] < 1e-6


def test_ones_own_trigger_fires_under_its_own_name() -> None:
    class Tuesday:
        def should_train(self, ctx: TriggerContext) -> bool:
            return True

        def name(self) -> str:
            return "tuesday"

        def describe(self) -> str:
            return "on tuesdays"

    firing = evaluate(OrTrigger((NeverTrigger(), Tuesday())), context())
    assert firing is not None
    assert (firing.kind, firing.rule) == ("tuesday", "never or on tuesdays")


@pytest.mark.parametrize(
    ("text", "trigger"),
    [
        ("count(100)", CountTrigger(100)),
        ("every(1h30m)", TimeTrigger(90 * 60_000)),
        ("every(250ms)", TimeTrigger(250)),
        ("every(1.5h)", TimeTrigger.minutes(90)),
        ("quality(.6)", QualityTrigger(0.6)),
        ("drift", DriftTrigger()),
        ("drift(0.05)", DriftTrigger(0.05)),
        ("manual", ManualTrigger()),
        ("never", NeverTrigger()),
        (" ALWAYS ", AlwaysTrigger()),
        (
            "count(1) and count(2) or count(3)",
            OrTrigger((AndTrigger((CountTrigger(1), CountTrigger(2))), CountTrigger(3))),
        ),
        (
            "count( 1 )AND(count(2) Or\ncount(3))",
            AndTrigger((CountTrigger(1), OrTrigger((CountTrigger(2), CountTrigger(3))))),
        ),
        ("((manual))", ManualTrigger()),
    ],
)
def test_texts_mean_triggers(text: str, trigger: TrainTrigger) -> None:
    assert parse_trigger(text) == trigger


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "a trigger is missing"),
        ("count", 6, "count needs its value"),
        ("count()", 7, "a value is missing"),
        ("count(ten)", 7, "'ten' is no whole number"),
        ("count(0)", 7, "at least 1"),
        ("count(1.5)", 7, "no whole number"),
        ("every(1x)", 7, "'1x' is no duration"),
        ("every(0s)", 7, "at least 1ms"),
        ("every(99999999d)", 7, "hundred years"),
        (f"every({'9' * 400}d)", 7, "is no duration"),
        ("quality(2)", 9, "above 0 and at most 1"),
        ("drift(0.7)", 7, "below 0.5"),
        ("manual(1)", 1, "manual takes no value"),
        ("count(1) or", 12, "a trigger is missing"),
        ("count(1) count(2)", 10, "'count' is not expected here"),
        ("count(1) or sometimes", 13, "'sometimes' is no trigger"),
        ("(count(1)", 10, "')' is missing"),
        ("count(1))", 9, "')' is not expected"),
        ("count(1 or 2)", 9, "')' is missing before 'or'"),
        ("count(1) & manual", 10, "'&' is not expected"),
        ("(" * 30 + "manual" + ")" * 30, 22, "more than 20 deep"),
    ],
)
def test_errors_point_at_the_column_and_say_what_is_possible(text: str, column: int, message: str) -> None:
    with pytest.raises(TriggerSyntaxError) as caught:
        parse_trigger(text)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"column {column}: ")
    assert message in lines[0]
    assert lines[2].index("^") == column + 1  # two of indent, one-based
    assert "possible are count(100), every(1h)" in lines[3]


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(TriggerSyntaxError, match="too long"):
        parse_trigger("(" * 100_000)


SIMPLE: st.SearchStrategy[TrainTrigger] = st.one_of(
    st.integers(1, 10**15 - 1).map(CountTrigger),
    st.integers(1, 10**12).map(TimeTrigger),
    st.floats(0, 1, exclude_min=True).map(QualityTrigger),
    st.floats(0, 0.5, exclude_min=True, exclude_max=True).map(DriftTrigger),
    st.sampled_from([DriftTrigger(), ManualTrigger(), NeverTrigger(), AlwaysTrigger()]),
)
TRIGGERS: st.SearchStrategy[TrainTrigger] = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda members: AndTrigger(tuple(members))),
        st.lists(inner, min_size=2, max_size=3).map(lambda members: OrTrigger(tuple(members))),
    ),
    max_leaves=8,
)


@given(TRIGGERS)
def test_what_a_trigger_describes_parses_back_to_it(trigger: TrainTrigger) -> None:
    assert parse_trigger(trigger.describe()) == trigger


@given(st.text(alphabet="counteveryqualitydriftmanual()0123456789.smh orand", max_size=60))
def test_any_text_is_a_trigger_or_an_error_of_ours(text: str) -> None:
    try:
        trigger = parse_trigger(text)
    except TriggerSyntaxError:
        return
    assert parse_trigger(trigger.describe()) == trigger
