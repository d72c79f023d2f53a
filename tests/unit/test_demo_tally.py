"""What the demo measures: like is compared with like, and nothing is counted twice."""

from __future__ import annotations

import pytest

from worker.cli.demo.outcome import Outcome, ScenarioOutcome, in_words, measured
from worker.cli.demo.reports import Report, Result
from worker.cli.demo.tally import Rate, Tally


def report(at_ms: int, *results: tuple[int | None, int, int], **totals: int) -> Report:
    return Report(game="g", at_ms=at_ms, results=[Result(*result) for result in results], **totals)  # type: ignore[arg-type]  # `last` is no total


@pytest.fixture
def tally() -> Tally:
    """A follower has its first model at 2 s and its second at 4 s; another node goes without."""
    tally = Tally()
    tally.add("one", report(1_000, (None, 10, 1)), alone=False)
    tally.add("free", report(1_500, (None, 8, 2)), alone=True)
    tally.add("one", report(2_000, (None, 2, 1), (1, 5, 3)), alone=False)
    tally.add("free", report(2_500, (None, 4, 1)), alone=True)
    tally.add("one", report(4_000, (2, 6, 6), records=70, games=23, sessions=2, last=1), alone=False)
    tally.add("free", report(4_500, records=40, games=12, sessions=1, last=1), alone=True)
    return tally


def test_before_and_after_are_the_same_nodes_games_without_and_under_a_model(tally: Tally) -> None:
    """A game counts under the model that it was played with, not by the clock."""
    assert tally.before == Rate(12, 2)
    assert tally.after == Rate(11, 9)
    assert tally.by_version == {1: Rate(5, 3), 2: Rate(6, 6)}


def test_the_node_that_goes_without_is_compared_over_the_same_time(tally: Tally) -> None:
    assert tally.alone_before == Rate(8, 2)
    assert tally.alone_after == Rate(4, 1)
    assert tally.taken_up_ms == {1: 2_000, 2: 4_000}


def test_totals_are_each_nodes_last_word(tally: Tally) -> None:
    assert (tally.nodes, tally.published, tally.games, tally.sessions, tally.unconfirmed) == (2, 110, 35, 3, 0)


def test_without_a_model_there_is_no_after() -> None:
    tally = Tally()
    tally.add("one", report(1_000, (None, 10, 1)), alone=False)
    tally.add("free", report(1_000, (None, 10, 1)), alone=True)
    assert (tally.first_model_ms, tally.after, tally.alone_after) == (None, Rate(0, 0), Rate(0, 0))
    assert tally.alone_before == Rate(10, 1)


def test_over_time_is_the_share_won_in_each_bin_that_has_games(tally: Tally) -> None:
    assert tally.over_time(since_ms=0, seconds=2.0, alone=False) == [(1.0, 0.1), (3.0, 4 / 7), (5.0, 1.0)]
    assert tally.over_time(since_ms=0, seconds=2.0, alone=True) == [(1.0, 0.25), (3.0, 0.25)]


def test_a_rate_is_told_with_its_interval_and_number() -> None:
    """Source: `learning.rates.wilson`."""
    assert in_words(measured(Rate(100, 25))) == "25.0 % [17.5, 34.3] of 100"
    assert in_words(measured(Rate(0, 0))) == "no game"


def scenario(**changes: object) -> ScenarioOutcome:
    none = measured(Rate(0, 0))
    fields: dict[str, object] = {
        "game": "g", "scenario": "g-1", "records": 5, "records_published": 5, "episodes": 2, "games_played": 2,
        "sessions": 1, "sessions_ended": 1, "runs": 1, "models_applied": 1, "events": {}, "first_model_after": 1.0,
        "before": none, "after": none, "by_version": {}, "alone_before": none, "alone_after": none,
    }  # fmt: skip
    return ScenarioOutcome(**{**fields, **changes})  # type: ignore[arg-type]  # the fields above


def outcome(*scenarios: ScenarioOutcome, unconfirmed: int = 0) -> Outcome:
    return Outcome(
        seconds=1.0,
        nodes=1,
        published=sum(one.records_published for one in scenarios),
        stored=sum(one.records for one in scenarios),
        unconfirmed=unconfirmed,
        scenarios=list(scenarios),
    )


def test_what_is_published_and_what_is_stored_must_be_equal_in_each_scenario() -> None:
    """Two errors that cancel out are two errors."""
    assert outcome(scenario()).complaints == []
    assert (
        outcome(scenario()).stored_line
        == "5 records were published and confirmed, 5 are stored: equal, in every scenario."
    )
    wrong = outcome(scenario(records=4), scenario(game="h", records=6))
    assert wrong.complaints == [
        "g: 5 records were published and 4 are stored",
        "h: 5 records were published and 6 are stored",
    ]
    assert "equal" not in wrong.stored_line
    assert len(outcome(scenario(episodes=1), scenario(sessions=3), unconfirmed=2).complaints) == 3


def test_a_scenario_without_a_model_is_a_failure_that_says_so() -> None:
    (complaint,) = outcome(scenario(first_model_after=None, events={"learning.failed": 2})).complaints
    assert complaint == "g: no model came in time (learning events: {'learning.failed': 2})"


def test_a_gate_that_blesses_no_model_of_one_game_is_no_failure_but_of_all_games_it_is() -> None:
    rejected = scenario(first_model_after=None, models_applied=0, events={"learning.trained": 2})
    assert outcome(rejected, scenario()).complaints == []
    (complaint,) = outcome(rejected, rejected).complaints
    assert "none was live" in complaint
