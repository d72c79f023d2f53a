"""Snapshots: statistics by the original's formulas, exact merging, JSON that comes back the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.learning.counts import CountKey, Counts
from worker.learning.evidence import actions_seen, best_source, snapshot_of_counts
from worker.learning.merging import Additive, SuccessWeighted, TimeDecay, merge_snapshots
from worker.learning.scores import ScoreModel
from worker.learning.selection import SelectionPerformance, StrategyStats, StrategySwitchEvent
from worker.learning.snapshot_json import (
    GlobalKey,
    ScenarioKey,
    SessionKey,
    SnapshotKey,
    decode_snapshot,
    encode_snapshot,
    parse_snapshot_key,
)
from worker.learning.snapshots import (
    SNAPSHOT_VERSION,
    LearningPhase,
    LearningSnapshot,
    SnapshotMetadata,
    session_group_id,
    snapshot_of_session,
)
from worker.learning.statistics import ActionStats, EpisodeTransitions, NgramStats, OkBad
from worker.wire.records import Failure, LearnStatsRecord, Success

STATS = {
    "episode_transitions": {
        "success_transitions": [["a", "b", 3], ["a", "c", 1]],
        "failure_transitions": {"a->b": 1},
        "success_episodes": 4,
        "failure_episodes": 1,
    },
    "ngram_stats": {"trigrams": [["a", "b", "c", 2, 1]], "quadgrams": [["a", "b", "c", "d", 1, 0]]},
    "contextual_stats": [
        ["a", "b", {"visits": 4, "successes": 3, "failures": 1}],
        ["c", "b", {"visits": 2, "successes": 2, "failures": 0}],
    ],
    "selection_performance": {
        "strategy_stats": {"ucb1": {"visits": 5, "successes": 4, "failures": 1}},
        "switch_history": [{"from": "ucb1", "to": "thompson", "visits": 5, "success_rate": 0.4}],
        "current_strategy": "thompson",
    },
}


def session_record(session_id: str = "s1", **fields: Any) -> LearnStatsRecord:
    values: dict[str, Any] = {"outcome": Success(1), "total_ticks": 7, "total_actions": 2**40, **fields}
    return LearnStatsRecord(session_id=session_id, stats_json=msgspec.Raw(msgspec.json.encode(STATS)), **values)


def test_a_session_keeps_every_field_the_original_lost() -> None:
    """Fault 27: session id, outcome, ticks, phase, group, 64-bit actions, real episode count."""
    snapshot = snapshot_of_session(session_record(phase="bootstrap", group_id="g1", timestamp_ms=99), 100, "S")
    assert snapshot.version == SNAPSHOT_VERSION == 1
    assert snapshot.metadata == SnapshotMetadata(
        scenario_name="S",
        created_at=99,
        session_count=1,
        total_episodes=5,
        total_actions=2**40,
        total_ticks=7,
        session_id="s1",
        outcome=Success(1),
        phase=LearningPhase.BOOTSTRAP,
        group_id="g1",
    )
    assert snapshot.action_stats == {"b": ActionStats(visits=6, successes=5, failures=1)}
    assert snapshot.selection_performance.switch_history == [
        StrategySwitchEvent(from_="ucb1", to="thompson", visits=5, success_rate=0.4)
    ]


def test_transition_formulas_are_those_of_the_domain() -> None:
    transitions = snapshot_of_session(session_record(), 0, "S").episode_transitions
    assert transitions.success_transition_rate("a", "b") == 0.75
    assert transitions.success_transition_rate("x", "b") == 0.0
    assert transitions.transition_value("a", "b") == 0.5
    assert transitions.transition_value("b", "a") == 0.0
    assert transitions.recommended_next_actions("a") == [("c", 1.0), ("b", 0.5)]


def test_ngram_formulas_are_those_of_the_domain() -> None:
    grams = NgramStats(
        trigrams={("a", "b", "c"): OkBad(3, 1), ("a", "b", "d"): OkBad(2, 0), ("a", "b", "e"): OkBad(1, 0)},
        quadgrams={("a", "b", "c", "d"): OkBad(0, 2)},
    )
    assert grams.trigram_success_rate("a", "b", "c") == 0.75
    assert grams.trigram_success_rate("x", "y", "z") is None
    assert grams.trigram_value("a", "b", "c") == 0.5
    assert grams.recommended_after("a", "b") == [("d", 1.0), ("e", 1.0), ("c", 0.5)]
    assert grams.quadgram_success_rate("a", "b", "c", "d") == 0.0
    assert grams.recommended_after_three("a", "b", "c") == [("d", -1.0)]
    assert (grams.trigram_count(), grams.quadgram_count()) == (3, 1)


def test_action_stats_of_what_was_never_seen() -> None:
    """Contract fact: the success rate of an unvisited action is 0.5."""
    stats = ActionStats()
    assert stats.success_rate() == 0.5
    assert (stats.avg_duration(), stats.avg_discoveries(), stats.kpi_total, stats.avg_kpi()) == (0.0, 0.0, 0.0, None)


def test_the_mean_kpi_counts_only_actions_that_carry_one() -> None:
    stats = ActionStats(visits=10, kpi_micro=1_500_000, kpi_count=3, total_duration_ms=50, discoveries=5)
    assert stats.avg_kpi() == 0.5
    assert (stats.avg_duration(), stats.avg_discoveries()) == (5.0, 0.5)


def test_selection_performance_follows_the_original() -> None:
    selection = SelectionPerformance()
    selection.record_action(ok=True)
    selection.start_strategy("ucb1", 0, 0.0)
    selection.record_action(ok=True)
    selection.record_action(ok=False)
    selection.record_episode_end(ok=True)
    selection.start_strategy("greedy", 2, 0.5)
    selection.record_action(ok=False)
    assert selection.strategy_stats["ucb1"] == StrategyStats(visits=2, successes=1, failures=1, episodes_success=1)
    assert selection.switch_history == [StrategySwitchEvent(from_="ucb1", to="greedy", visits=2, success_rate=0.5)]
    assert selection.strategy_effectiveness("ucb1") == 1.0
    assert selection.strategy_effectiveness("greedy") == 0.0
    assert selection.strategy_effectiveness("thompson") is None
    assert selection.best_strategy() == ("ucb1", 1.0)


@pytest.mark.parametrize(
    ("failure_rate", "visits", "name"), [(0.9, 4, "ucb1"), (0.45, 5, "greedy"), (0.46, 5, "thompson")]
)
def test_the_recommended_strategy_is_the_adaptive_rule(failure_rate: float, visits: int, name: str) -> None:
    assert SelectionPerformance().recommended_strategy(failure_rate, visits) == name


def test_scores_prefer_the_longest_context_that_was_seen() -> None:
    scores = ScoreModel.from_stats(snapshot_of_session(session_record(), 0, "S"))
    assert scores.compute_confidence("c", "b", "a") == pytest.approx(2 / 3)
    assert scores.compute_confidence("b", "a", "x") == 0.75
    assert scores.compute_confidence("c", "a") == 1.0
    assert scores.compute_confidence("b", "never") == pytest.approx(5 / 6)
    assert scores.compute_confidence("nobody") == 0.5


def test_additive_is_the_default_and_a_plain_sum() -> None:
    one, two = (snapshot_of_session(session_record(name), at, "S") for name, at in (("s1", 1), ("s2", 2)))
    merged = merge_snapshots([one, two])
    assert merged == merge_snapshots([one, two], Additive())
    assert merged.episode_transitions.success_transitions == {("a", "b"): 6, ("a", "c"): 2}
    assert merged.ngram_stats.trigrams == {("a", "b", "c"): OkBad(4, 2)}
    assert merged.contextual_stats[("a", "b")] == ActionStats(visits=8, successes=6, failures=2)
    assert len(merged.selection_performance.switch_history) == 2
    assert merged.metadata.session_count == 2
    assert merged.metadata.created_at == 2
    assert merged.metadata.session_id is None


def test_time_decay_halves_every_half_life() -> None:
    """The newest weighs 1, one session older 0.5 at a half life of one session."""
    snapshots = [
        LearningSnapshot(
            metadata=SnapshotMetadata(created_at=at, session_id=str(at), session_count=1),
            action_stats={"a": ActionStats(visits=8)},
        )
        for at in (3, 1, 2)
    ]
    merged = merge_snapshots(snapshots, TimeDecay(half_life_sessions=1))
    assert merged.action_stats["a"].visits == 8 + 4 + 2
    assert merged.metadata.session_count == 3


def test_success_weighted_weighs_a_session_by_its_success_rate() -> None:
    snapshots = [
        LearningSnapshot(
            episode_transitions=EpisodeTransitions(success_episodes=good, failure_episodes=bad),
            action_stats={"a": ActionStats(visits=100)},
        )
        for good, bad in ((4, 0), (1, 3), (0, 0), (0, 5))
    ]
    merged = merge_snapshots(snapshots, SuccessWeighted())
    assert merged.action_stats["a"].visits == 100 + 25 + 50 + 0


def test_a_half_life_below_one_session_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TimeDecay(half_life_sessions=0)


def test_no_snapshots_merge_to_an_empty_one() -> None:
    assert merge_snapshots([]) == LearningSnapshot()


NAMES = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(1, 2**62)
SNAPSHOTS = st.builds(
    lambda pairs, grams, acts, good, at, switches: LearningSnapshot(
        metadata=SnapshotMetadata(
            created_at=at,
            session_count=1,
            total_actions=good,
            session_id=f"s{at}",
            outcome=Failure("no"),
            phase="release",
        ),
        episode_transitions=EpisodeTransitions(success_transitions=pairs, success_starts=acts, success_episodes=good),
        ngram_stats=NgramStats(trigrams={key: OkBad(number, 1) for key, number in grams.items()}),
        selection_performance=SelectionPerformance(
            strategy_stats={"ucb1": StrategyStats(visits=good)},
            switch_history=[StrategySwitchEvent(to=name, visits=at) for name in switches],
            current_strategy=switches[-1] if switches else None,
        ),
        contextual_stats={pair: ActionStats(visits=number, kpi_micro=-number) for pair, number in pairs.items()},
        action_stats={name: ActionStats(visits=number) for name, number in acts.items()},
    ),
    st.dictionaries(st.tuples(NAMES, NAMES), NUMBERS, max_size=3),
    st.dictionaries(st.tuples(NAMES, NAMES, NAMES), NUMBERS, max_size=3),
    st.dictionaries(NAMES, NUMBERS, max_size=3),
    NUMBERS,
    st.integers(0, 100),
    st.lists(NAMES, max_size=2),
)


@given(SNAPSHOTS, SNAPSHOTS, SNAPSHOTS)
def test_additive_merging_is_associative(one: LearningSnapshot, two: LearningSnapshot, three: LearningSnapshot) -> None:
    """To the last digit, also of sums beyond 2 ** 53."""
    left = merge_snapshots([merge_snapshots([one, two]), three])
    right = merge_snapshots([one, merge_snapshots([two, three])])
    assert left == right == merge_snapshots([one, two, three])


@given(SNAPSHOTS)
def test_a_snapshot_comes_back_from_its_json(snapshot: LearningSnapshot) -> None:
    text = encode_snapshot(snapshot)
    assert decode_snapshot(text) == snapshot
    assert encode_snapshot(decode_snapshot(text)) == text


def test_tuple_keys_are_written_as_rows() -> None:
    """Decision (b)."""
    tree = msgspec.json.decode(encode_snapshot(snapshot_of_session(session_record(), 0, "S")))
    assert tree["success_transitions"] == [["a", "b", 3], ["a", "c", 1]]
    assert tree["trigrams"] == [["a", "b", "c", 2, 1]]


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        decode_snapshot(b'{"version": 2}')


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (GlobalKey(), "global"),
        (ScenarioKey("maze"), "scenario:maze"),
        (SessionKey("maze", "17:a"), "session:maze:17:a"),
    ],
)
def test_snapshot_keys_have_the_original_text(key: SnapshotKey, text: str) -> None:
    assert str(key) == text
    assert parse_snapshot_key(text) == key


@pytest.mark.parametrize("text", ["", "scenario:", "session:maze", "session::x", "globally"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no snapshot key"):
        parse_snapshot_key(text)


def test_a_session_group_id_is_g_and_milliseconds() -> None:
    """Contract fact; 0 if the clock fails."""
    assert session_group_id(1_700_000_000_123) == "g1700000000123"
    assert session_group_id(-5) == "g0"


def log(measure: str, *names: str) -> CountKey:
    return CountKey("log", measure, names)


def test_counts_and_learn_stats_end_in_the_same_kind_of_snapshot() -> None:
    counts = Counts(
        {
            log("action.visits", "a"): 2,
            log("action.duration_ms", "a"): 10,
            log("contextual.visits", "a", "b"): 1,
            log("transition.visits", "a", "b"): 3,
            log("transition.success", "a", "b"): 2,
            log("start.failure", "a"): 1,
            log("ngram.success", "a", "b", "c"): 2,
            log("ngram.failure", "a", "b", "c", "d"): 1,
            log("strategy.visits", "ucb1"): 4,
            log("episodes.success"): 2,
            log("episodes.failure"): 1,
            log("episodes.timeout"): 1,
            log("episodes.unknown"): 5,
            CountKey("stats", "sessions.success", ()): 3,
            CountKey("stats", "sessions.ticks", ()): 70,
            CountKey("stats", "transition.success", ("x", "y")): 9,
        }
    )
    assert best_source(counts) == "log"
    snapshot = snapshot_of_counts(counts, "log", scenario="S", created_at=8)
    assert snapshot.metadata == SnapshotMetadata(
        scenario_name="S", created_at=8, session_count=3, total_episodes=9, total_actions=2, total_ticks=70
    )
    transitions = snapshot.episode_transitions
    assert transitions.success_transitions == {("a", "b"): 2}
    assert transitions.failure_starts == {"a": 1}
    assert (transitions.success_episodes, transitions.failure_episodes) == (2, 2)
    assert snapshot.ngram_stats.quadgrams == {("a", "b", "c", "d"): OkBad(0, 1)}
    assert snapshot.action_stats == {"a": ActionStats(visits=2, total_duration_ms=10)}
    assert snapshot.selection_performance.strategy_stats == {"ucb1": StrategyStats(visits=4)}


def test_learn_stats_are_believed_only_where_no_action_was_logged() -> None:
    assert best_source(Counts({CountKey("stats", "sessions.success", ()): 1})) == "stats"
    assert best_source(Counts({log("episodes.success"): 0})) is None


def test_the_actions_of_a_world_are_those_that_were_taken_the_most_frequent_of_many() -> None:
    visits = {"look": 1, "climb": 9, "dig": 5}
    counts = Counts({CountKey("log", "action.visits", (name,)): number for name, number in visits.items()})
    counts[CountKey("log", "start.visits", ("swim",))] = 3
    assert actions_seen(counts) == ["climb", "dig", "look"]
    assert actions_seen(counts, most=2) == ["climb", "dig"]
