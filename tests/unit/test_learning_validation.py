"""The gate: value on held-out decisions, and the strategies that judge it."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.training_world import count_rows
from worker.learning.analyzer import AnalysisInput, OfflineAnalyzer
from worker.learning.counts import CountKey, Counts
from worker.learning.heldout import HeldOut, evaluate_on_holdout, logged_on_holdout
from worker.learning.offline_model import OfflineModel
from worker.learning.validation import (
    Absolute,
    Improvement,
    NoRegression,
    Strategy,
    ValidationResult,
    Validator,
    judge,
    strategy_of,
)


def log(measure: str, *names: str) -> CountKey:
    return CountKey("log", measure, names)


def counted(rows: dict[tuple[str | None, str], tuple[int, int]]) -> Counts:
    """Counts of decisions (context, action) by episode outcome; None is the start."""
    counts = Counts({log("action.visits", "x"): 1})
    for (previous, action), (ok, bad) in rows.items():
        names = (action,) if previous is None else (previous, action)
        family = "start" if previous is None else "transition"
        counts[log(f"{family}.success", *names)] += ok
        counts[log(f"{family}.failure", *names)] += bad
        if previous is None:
            counts[log("episodes.success")] += ok
            counts[log("episodes.failure")] += bad
    return counts


def model_of(counts: Counts) -> OfflineModel:
    model = OfflineAnalyzer(AnalysisInput(scenario="S", counts=count_rows(counts))).analyze()
    assert isinstance(model, OfflineModel)
    return model


def test_the_value_of_one_decision_is_the_success_of_those_who_took_it() -> None:
    rows: dict[tuple[str | None, str], tuple[int, int]] = {(None, "good"): (45, 5), (None, "bad"): (10, 40)}
    counts = counted(rows)
    value = evaluate_on_holdout(model_of(counts), counts)
    assert (value.value, value.samples, value.decisions, value.coverage) == (0.9, 50, 100, 1.0)
    assert value.effective_samples == 50.0
    logged = logged_on_holdout(counts)
    assert (logged.value, logged.samples, logged.coverage) == (0.55, 100, 1.0)


def test_a_context_weighs_what_it_came_up_not_how_often_the_advice_was_followed() -> None:
    """Pooled matches would say (9 + 5) / (10 + 100); each context is half of the decisions."""
    counts = counted(
        {
            (None, "rare"): (9, 1),
            (None, "usual"): (0, 90),
            ("usual", "common"): (5, 95),
        }
    )
    value = evaluate_on_holdout(model_of(counts), counts)
    assert value.value == pytest.approx((100 * 0.9 + 100 * 0.05) / 200)
    assert value.effective_samples == pytest.approx(200**2 / (100**2 / 10 + 100**2 / 100), abs=0.05)


def test_where_the_model_has_no_advice_the_logged_behaviour_stands() -> None:
    train = counted({(None, "a"): (9, 1)})
    held_out = counted({(None, "a"): (8, 2), ("a", "b"): (1, 9)})
    value = evaluate_on_holdout(model_of(train), held_out)
    assert value.value == pytest.approx((8 + 1) / 20)
    assert value.coverage == 0.5
    assert value.value == logged_on_holdout(held_out).value


def test_the_interval_counts_an_episode_once() -> None:
    """20 episodes of 50 decisions each are 20 observations, not 1000."""
    rows: dict[tuple[str | None, str], tuple[int, int]] = {(None, "a"): (16, 4)}
    rows.update({(f"s{n}", "go"): (16, 4) for n in range(49)})
    value = logged_on_holdout(counted(rows))
    assert (value.decisions, value.episodes, value.value) == (1000, 20, 0.8)
    assert value.high - value.low > 0.3


def test_without_any_known_outcome_the_actions_themselves_are_judged() -> None:
    counts = Counts(
        {
            log("action.visits", "x"): 1,
            log("contextual.successes", "a", "b"): 40,
            log("contextual.visits", "a", "b"): 40,
            log("contextual.failures", "a", "c"): 40,
            log("contextual.visits", "a", "c"): 40,
            log("episodes.unknown"): 9,
        }
    )
    value = evaluate_on_holdout(model_of(counts), counts)
    assert (value.measure, value.value, value.episodes) == ("actions", 1.0, 0)
    assert logged_on_holdout(counts).value == 0.5


def test_nothing_held_out_has_no_value() -> None:
    value = logged_on_holdout(Counts())
    assert (value.decisions, value.samples, value.low, value.high) == (0, 0, 0.0, 1.0)


@given(
    st.dictionaries(
        st.tuples(st.none() | st.sampled_from("ab"), st.sampled_from("abc")),
        st.tuples(st.integers(0, 50), st.integers(0, 50)),
        min_size=1,
    ),
    st.randoms(use_true_random=False),
)
def test_a_value_is_a_rate_and_no_order_changes_it(rows: Any, rng: Any) -> None:
    counts = counted(rows)
    items = list(counts.items())
    rng.shuffle(items)
    model = model_of(counts)
    value = evaluate_on_holdout(model, counts)
    assert value == evaluate_on_holdout(model, Counts(dict(items)))
    assert 0.0 <= value.low <= value.high <= 1.0
    assert 0.0 <= value.value <= 1.0
    assert value.effective_samples <= value.samples + 0.05
    assert value.samples <= value.decisions


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Over 200 worlds of 500 decisions; the better action is logged in 1 of 5. Truth 0.7; at 95 %, 190 +- 3 cover."""
    rng = random.Random(11)
    covered = 0
    for _ in range(200):
        rows: dict[tuple[str | None, str], tuple[int, int]] = {}
        for _ in range(500):
            action = "good" if rng.random() < 0.2 else "poor"
            ok = rng.random() < (0.7 if action == "good" else 0.3)
            good, bad = rows.get((None, action), (0, 0))
            rows[(None, action)] = (good + ok, bad + (not ok))
        value = evaluate_on_holdout(model_of(counted({(None, "good"): (7, 3)})), counted(rows))
        covered += value.low <= 0.7 <= value.high
    assert covered >= 180


def held(value: float, *, samples: int = 100, effective: float | None = None, decisions: int = 200) -> HeldOut:
    return HeldOut(
        value=value,
        low=0.0,
        high=1.0,
        samples=samples,
        effective_samples=float(samples) if effective is None else effective,
        decisions=decisions,
        coverage=0.5,
        episodes=50,
        measure="episodes",
    )


@pytest.mark.parametrize(
    ("strategy", "value", "verdict"),
    [
        (NoRegression(), 0.5, "blessed"),
        (NoRegression(), 0.499, "rejected"),
        (Improvement(), 0.55, "blessed"),
        (Improvement(), 0.549, "rejected"),
        (Absolute(), 0.8, "blessed"),
        (Absolute(), 0.799, "rejected"),
    ],
)
def test_strategies_judge_against_the_logged_behaviour(strategy: Strategy, value: float, verdict: str) -> None:
    """A first model: no champion yet."""
    judged = judge(strategy, held(value), held(0.5))
    assert judged.verdict == verdict
    assert f"{value:.4f}" in judged.reasons[0]


def test_a_verdict_says_where_chance_may_be_all() -> None:
    """Point values decide; the interval tells how much that is worth."""
    close = judge(NoRegression(), replace(held(0.55), low=0.45, high=0.65), held(0.5))
    clear = judge(NoRegression(), replace(held(0.55), low=0.52, high=0.58), held(0.5))
    assert close.verdict == clear.verdict == "blessed"
    assert close.reasons[1].startswith("not significant: 0.5000")
    assert len(clear.reasons) == 1


def test_a_champion_is_the_one_to_beat() -> None:
    judged = judge(NoRegression(), held(0.6), held(0.5), held(0.7))
    assert judged.verdict == "rejected"
    assert "the champion: 0.7000" in judged.reasons[0]


def test_a_champion_nobody_follows_any_more_gives_way_to_the_logged_behaviour() -> None:
    judged = judge(NoRegression(), held(0.6), held(0.5), held(0.7, samples=3))
    assert judged.verdict == "blessed"
    assert "the logged behaviour: 0.5000" in judged.reasons[0]


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (held(0.0, samples=0, decisions=0), "no decision with a known result was held out"),
        (held(0.9, samples=0, decisions=200), "none of the 200 held-out decisions agrees"),
        (held(0.9, samples=29), "29 of 200 held-out decisions agree with the model, worth 29 after"),
        (held(0.9, samples=60, effective=12.5), "worth 12.5 after weighting; at least 30 are needed"),
        (held(0.9, samples=60, decisions=10_000), "at least 200 are needed"),
    ],
)
def test_too_few_samples_are_not_evaluable_and_the_reason_has_the_numbers(candidate: HeldOut, reason: str) -> None:
    judged = judge(Absolute(0.1), candidate, held(0.5))
    assert judged.verdict == "not_evaluable"
    assert reason in judged.reasons[0]


def test_the_least_number_of_samples_can_be_set() -> None:
    assert judge(NoRegression(), held(0.9, samples=10), held(0.5), min_samples=10).verdict == "blessed"


def test_settings_name_the_strategies() -> None:
    assert strategy_of("no_regression") == NoRegression()
    assert strategy_of("improvement") == Improvement(1.1)
    assert strategy_of("improvement", 1.5) == Improvement(1.5)
    assert strategy_of("absolute") == Absolute(0.8)
    assert strategy_of("absolute", 0.3) == Absolute(0.3)


def mean(data: Any) -> float:
    return float(sum(data)) / len(data)


def test_the_validator_splits_80_to_20_or_70_to_30() -> None:
    data = [0.5] * 8 + [1.0] * 2
    result = Validator.with_80_20_split().validate(data, mean, mean)
    assert result == ValidationResult(passed=True, baseline=0.5, current=1.0, strategy=NoRegression(), sample_count=2)
    assert Validator.with_70_30_split().validate(data, mean, mean).sample_count == 3
    assert result.improvement() == 100.0


def test_a_failed_validation_says_why() -> None:
    result = Validator.with_80_20_split(Improvement()).validate([1.0] * 8 + [0.5] * 2, mean, mean)
    assert not result.passed
    assert result.failure_reason == "0.5000 is below the required 1.1000"
    assert result.improvement() == -50.0


def test_the_improvement_over_nothing_is_guarded() -> None:
    assert Validator.with_80_20_split().validate_with_baseline([1.0], 0.0, mean).improvement() == 0.0


@pytest.mark.parametrize("data", [[], [1.0]])
def test_too_little_data_to_split_does_not_pass(data: list[float]) -> None:
    result = Validator.with_80_20_split(Absolute(0.1)).validate(data, mean, mean)
    assert not result.passed
    assert result.failure_reason is not None


def test_no_samples_against_a_baseline_do_not_pass() -> None:
    result = Validator.with_80_20_split().validate_with_baseline([], 0.0, mean)
    assert (result.passed, result.failure_reason) == (False, "there are no samples")


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1, 2])
def test_a_split_outside_zero_and_one_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Validator(ratio)


def test_the_reason_is_left_out_of_the_json_of_what_passed() -> None:
    """As the original writes it."""
    tree = msgspec.json.decode(msgspec.json.encode(Validator(0.5).validate([1.0, 1.0], mean, mean)))
    assert tree == {
        "passed": True, "baseline": 1.0, "current": 1.0, "strategy": {"kind": "no_regression"}, "sample_count": 1,
    }  # fmt: skip
