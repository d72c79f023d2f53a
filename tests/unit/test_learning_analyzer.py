"""The offline analysis by the simple rule, and the model it gives."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.unit.training_world import count_rows
from worker.learning.action_order import LearnedActionOrder, PlacedGraph
from worker.learning.advice import Advice
from worker.learning.analyzer import AnalysisInput, EndedSession, NothingToLearn, OfflineAnalyzer
from worker.learning.counts import CountKey, Counts
from worker.learning.offline_model import (
    MOST_TRANSITIONS,
    ModelUnreadable,
    OfflineModel,
    OptimalParameters,
    StrategyConfig,
    Window,
    decode,
    encode,
)
from worker.learning.rates import wilson
from worker.wire.records import DependencyGraphRecord, Failure, LearnStatsRecord, Success


def log(measure: str, *names: str) -> CountKey:
    return CountKey("log", measure, names)


def evidence(*, successes: int = 8, failures: int = 2) -> Counts:
    """Episodes a, b, done that succeed `successes` times, and a, c, done that fail `failures` times."""
    both = successes + failures
    return Counts(
        {
            log("action.visits", "a"): both,
            log("action.successes", "a"): both,
            log("action.visits", "b"): successes,
            log("action.successes", "b"): successes,
            log("action.visits", "c"): failures,
            log("action.failures", "c"): failures,
            log("contextual.visits", "a", "b"): successes,
            log("contextual.successes", "a", "b"): successes,
            log("contextual.visits", "a", "c"): failures,
            log("contextual.failures", "a", "c"): failures,
            log("start.success", "a"): successes,
            log("start.failure", "a"): failures,
            log("transition.success", "a", "b"): successes,
            log("transition.failure", "a", "c"): failures,
            log("transition.success", "b", "done"): successes,
            log("transition.failure", "c", "done"): failures,
            log("ngram.success", "a", "b", "done"): successes,
            log("ngram.failure", "a", "c", "done"): failures,
            log("episodes.success"): successes,
            log("episodes.failure"): failures,
        }
    )


def given_counts(counts: Counts, **fields: Any) -> AnalysisInput:
    return AnalysisInput(scenario="S", counts=count_rows(counts), **fields)


def session(name: str, stats: object, at: int = 1, **fields: Any) -> EndedSession:
    body = msgspec.Raw(msgspec.json.encode(stats))
    values: dict[str, Any] = {"outcome": Success(1), "total_ticks": 1, "total_actions": 1, **fields}
    return EndedSession(record=LearnStatsRecord(session_id=name, stats_json=body, **values), received_at_ms=at)


def graph(at: int, discover: list[str], **fields: Any) -> PlacedGraph:
    record = DependencyGraphRecord(
        prompt="",
        response="",
        available_actions=["a", "b"],
        discover_order=discover,
        not_discover_order=[],
        model="m",
        endpoint="e",
        latency_ms=1,
        **fields,
    )
    return PlacedGraph(record=record, received_at_ms=at)


def learnt(given: AnalysisInput) -> OfflineModel:
    model = OfflineAnalyzer(given).analyze()
    assert isinstance(model, OfflineModel)
    return model


def test_no_evidence_is_nothing_to_learn_and_no_error() -> None:
    """Analyzer step 5, with the figures in the reason."""
    outcome = OfflineAnalyzer(AnalysisInput(scenario="S", graphs=[graph(1, [], error="x")])).analyze()
    assert isinstance(outcome, NothingToLearn)
    assert "0 counts, 0 sessions, 1 dependency graphs (refused: 1 error)" in outcome.reason


def test_actions_in_the_log_are_enough_to_learn_from() -> None:
    """Fault 41: triggers counted episodes, the analysis read sessions."""
    model = learnt(given_counts(evidence(), window=Window(lo=3, hi=9), updated_at_ms=77))
    assert (model.evidence, model.analyzed_sessions, model.analyzed_episodes) == ("log", 0, 10)
    assert model.window == Window(lo=3, hi=9)
    assert model.updated_at_ms == 77


@pytest.mark.parametrize(("successes", "failures", "c"), [(90, 10, 1.0), (60, 40, 1.41), (80, 20, 1.41), (40, 60, 2.0)])
def test_it_explores_less_the_more_succeeds(successes: int, failures: int, c: float) -> None:
    """Success over 0.8 gives 1.0, under 0.5 gives 2.0, else 1.41."""
    assert learnt(given_counts(evidence(successes=successes, failures=failures))).parameters.ucb1_c == c


def test_without_contexts_the_episodes_tell_how_things_go() -> None:
    counts = Counts({log("action.visits", "a"): 1, log("episodes.success"): 1, log("episodes.failure"): 9})
    assert learnt(given_counts(counts)).parameters == OptimalParameters(
        ucb1_c=2.0, learning_weight=0.302, ngram_weight=0.3
    )


def test_the_weights_grow_with_evidence_up_to_a_limit() -> None:
    some = learnt(given_counts(evidence(successes=50))).parameters
    assert (some.learning_weight, some.ngram_weight) == (0.4, 0.307)  # one trigram with three observations
    counts = evidence(successes=500)
    counts.update({log("ngram.success", "x", "y", str(n)): 3 for n in range(200)})
    much = learnt(given_counts(counts)).parameters
    assert (much.learning_weight, much.ngram_weight) == (0.5, 1.0)


def test_paths_follow_what_led_to_success() -> None:
    paths = learnt(given_counts(evidence())).recommended_paths
    assert [path.actions for path in paths] == [["a", "b", "done"]]
    low, high = wilson(8, 8)
    assert (paths[0].success_rate, paths[0].occurrences, paths[0].successes) == (1.0, 8, 8)
    assert (paths[0].low, paths[0].high) == (round(low, 6), round(high, 6))


def test_a_step_seen_once_or_failing_often_is_on_no_path() -> None:
    once = evidence(successes=1, failures=0)
    assert learnt(given_counts(once)).recommended_paths == []
    often = evidence()
    often[log("transition.failure", "a", "b")] = 6  # 8 of 14 is below 0.6
    often[log("ngram.failure", "a", "b", "done")] = 6
    assert [path.actions for path in learnt(given_counts(often)).recommended_paths] == [["b", "done"]]


def test_the_longer_context_decides_over_the_pair() -> None:
    """b, done is good on the whole, and bad after a."""
    counts = evidence()
    counts[log("ngram.failure", "a", "b", "done")] = 50
    assert [path.actions for path in learnt(given_counts(counts)).recommended_paths] == [["a", "b"]]


def test_a_path_repeats_nothing_and_ends_at_ten() -> None:
    counts = Counts({log("action.visits", "0"): 1, log("start.success", "0"): 5, log("episodes.success"): 5})
    for number in range(12):
        counts[log("transition.success", str(number), str(number + 1))] = 5
        counts[log("transition.success", str(number), "0")] = 9
    (path,) = learnt(given_counts(counts)).recommended_paths
    assert path.actions == [str(number) for number in range(10)]


def test_at_most_ten_paths_are_kept_the_best_first() -> None:
    counts = Counts({log("action.visits", "x"): 1, log("episodes.success"): 5})
    for number in range(15):
        counts[log("transition.success", f"from {number:02}", f"to {number:02}")] = number + 2
    paths = learnt(given_counts(counts)).recommended_paths
    assert [path.occurrences for path in paths] == list(range(16, 6, -1))


def test_the_most_effective_strategy_comes_first() -> None:
    counts = evidence()
    counts.update(
        {
            log("strategy.visits", "UCB1"): 10,
            log("strategy.successes", "UCB1"): 5,
            log("strategy.episodes_success", "UCB1"): 5,
            log("strategy.episodes_failure", "UCB1"): 5,
            log("strategy.episodes_success", "Greedy"): 1,
            log("strategy.episodes_success", "greedy"): 2,
            log("strategy.episodes_success", "lucky"): 1,
        }
    )
    config = learnt(given_counts(counts)).strategy_config
    assert config == StrategyConfig(initial_strategy="greedy", maturity_threshold=5, error_rate_threshold=0.45)


def test_switches_that_sessions_made_give_the_thresholds() -> None:
    sessions = [
        session(
            f"s{number}",
            {
                "episode_transitions": {"success_episodes": 1},
                "selection_performance": {
                    "switch_history": [
                        {"to": "greedy", "visits": visits, "success_rate": 0.9},
                        {"from": "greedy", "to": "Thompson", "visits": 50, "success_rate": rate},
                    ]
                },
            },
        )
        for number, (visits, rate) in enumerate([(4, 0.4), (10, 0.6), (30, 0.5)])
    ]
    config = learnt(AnalysisInput(scenario="S", sessions=sessions)).strategy_config
    assert config == StrategyConfig(initial_strategy="ucb1", maturity_threshold=10, error_rate_threshold=0.5)


def test_without_actions_the_sessions_are_the_evidence() -> None:
    stats = {
        "episode_transitions": {"success_transitions": [["a", "b", 2]], "success_episodes": 2},
        "contextual_stats": [["a", "b", {"visits": 2, "successes": 2}]],
    }
    given = AnalysisInput(
        scenario="S", sessions=[session("s1", stats, 1), session("s2", stats, 2, outcome=Failure("x"))]
    )
    model = learnt(given)
    assert (model.evidence, model.analyzed_sessions, model.analyzed_episodes) == ("stats", 2, 4)
    assert [(row.action, row.visits, row.success_rate) for row in model.actions] == [("b", 4, 1.0)]
    assert [path.actions for path in model.recommended_paths] == [["a", "b"]]


def test_every_row_carries_counts_and_an_interval() -> None:
    model = learnt(given_counts(evidence()))
    first = model.transitions[0]
    assert (first.previous, first.action, first.successes, first.failures, first.success_rate) == (None, "a", 8, 2, 0.8)
    assert (first.low, first.high) == tuple(round(bound, 6) for bound in wilson(8, 10))
    step = next(row for row in model.transitions if (row.previous, row.action) == ("a", "c"))
    assert (step.failures, step.step_failures) == (2, 2)
    assert [(row.action, row.visits) for row in model.actions] == [("a", 10), ("b", 8), ("c", 2)]


def test_full_lists_keep_the_best_supported_and_say_what_they_left_out() -> None:
    counts = evidence(successes=100)
    counts.update({log("transition.success", f"from {n}", f"to {n}"): 1 for n in range(MOST_TRANSITIONS)})
    model = learnt(given_counts(counts))
    assert len(model.transitions) == MOST_TRANSITIONS
    assert model.transitions[0].successes == 100
    assert model.omitted == {"transitions": 5}


def test_the_stored_action_order_survives_a_training() -> None:
    """Fault 31: an analyzer that wrote a fresh model erased it."""
    order = LearnedActionOrder.new(["a"], ["b"], ["a", "b"])
    previous = OfflineModel(scenario="S", action_order=order)
    assert learnt(given_counts(evidence(), previous=previous)).action_order == order
    assert (
        learnt(given_counts(evidence(), previous=previous, graphs=[graph(1, ["b"], error="x")])).action_order == order
    )
    newer = learnt(given_counts(evidence(), previous=previous, graphs=[graph(1, ["b"])])).action_order
    assert newer is not None
    assert newer.discover == ["b"]


def test_a_new_order_alone_changes_nothing_else() -> None:
    previous = learnt(given_counts(evidence()))
    model = learnt(AnalysisInput(scenario="S", previous=previous, graphs=[graph(1, ["a"])], updated_at_ms=5))
    assert model.action_order is not None
    assert replace(model, action_order=None, updated_at_ms=0) == previous
    fresh = learnt(AnalysisInput(scenario="S", graphs=[graph(1, ["a"])]))
    assert fresh.parameters == OptimalParameters()


def test_the_defaults_are_those_of_the_domain() -> None:
    assert OptimalParameters() == OptimalParameters(ucb1_c=1.41, learning_weight=0.3, ngram_weight=1.0)
    assert OptimalParameters.__struct_fields__ == ("ucb1_c", "learning_weight", "ngram_weight")


def test_equal_evidence_gives_the_same_bytes() -> None:
    counts = evidence()
    sessions = [session(f"s{n}", {"episode_transitions": {"success_episodes": n}}, n) for n in range(5)]
    rows = count_rows(counts)
    texts = set()
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        random.Random(seed).shuffle(sessions)
        texts.add(encode(learnt(AnalysisInput(scenario="S", counts=rows, sessions=sessions))))
    assert len(texts) == 1


def test_an_input_travels_as_json() -> None:
    """Into the training process, and means the same there."""
    given = given_counts(
        evidence(),
        sessions=[session("s1", {"episode_transitions": {"success_episodes": 1}})],
        graphs=[graph(1, ["a"])],
        previous=OfflineModel(scenario="S"),
    )
    there = msgspec.json.decode(msgspec.json.encode(given), type=AnalysisInput)
    assert learnt(there) == learnt(given)


def test_a_model_comes_back_from_its_bytes() -> None:
    model = learnt(given_counts(evidence(), graphs=[graph(1, ["a"])]))
    assert decode(encode(model)) == model
    assert encode(decode(encode(model))) == encode(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no offline model"),
        (b"\xff", "no offline model"),
        (b"[1]", "no offline model"),
        (b'{"version": 2, "scenario": "S"}', "version 2"),
        (b'{"version": 1}', "scenario"),
        (b'{"version": 1, "scenario": "S", "extra": 1}', "extra"),
        (b'{"version": 1, "scenario": "S", "parameters": {"ucb1_c": -1}}', r"\$.parameters.ucb1_c"),
        (b'{"version": 1, "scenario": "S", "parameters": {"ucb1_c": 1e999}}', "no offline model"),
        (b" " * 8_000_001, "8000001 bytes"),
    ],
)
def test_what_is_no_model_is_refused_with_the_place(text: bytes, message: str) -> None:
    with pytest.raises(ModelUnreadable, match=message):
        decode(text)


def test_advice_ranks_by_the_lower_bound_not_the_mean() -> None:
    counts = Counts(
        {
            log("action.visits", "a"): 1,
            log("transition.success", "a", "lucky"): 3,
            log("transition.success", "a", "solid"): 80,
            log("transition.failure", "a", "solid"): 20,
        }
    )
    advice = Advice(learnt(given_counts(counts)))
    assert advice.next_actions("a") == ["solid", "lucky"]
    assert advice.best("elsewhere") is None


def test_advice_goes_by_the_actions_where_no_outcome_is_known() -> None:
    counts = Counts(
        {
            log("action.visits", "a"): 9,
            log("contextual.visits", "a", "b"): 9,
            log("contextual.successes", "a", "b"): 9,
            log("contextual.visits", "a", "c"): 9,
            log("contextual.failures", "a", "c"): 9,
        }
    )
    assert Advice(learnt(given_counts(counts))).next_actions("a") == ["b", "c"]
