"""Learn stats: every part optional, tuple-keyed maps in all their spellings, and a place at fault where one is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from worker.wire.stats import (
    ContextualActionStats,
    EpisodeTransitions,
    LearnStats,
    NgramStats,
    SelectionPerformance,
    StrategyStats,
    StrategySwitch,
    encode_learn_stats,
    parse_learn_stats,
)


def parse(value: Any) -> LearnStats:
    """The statistics in a Python value."""
    return parse_learn_stats(json.dumps(value).encode())


def test_nothing_but_an_object_is_needed() -> None:
    """All parts have defaults, null is like absent, and unknown fields are ignored."""
    empty = LearnStats()
    assert parse({}) == empty
    assert parse({"ngram_stats": None, "episode_transitions": {"success_transitions": None}, "x": [1]}) == empty


def test_text_and_object_are_read_from_every_carrier() -> None:
    """`stats_json` as it lies in a record (raw JSON of a string or an object), or the string's own content."""
    text = '{"episode_transitions": {"success_episodes": 3}}'
    wanted = LearnStats(episode_transitions=EpisodeTransitions(success_episodes=3))
    for carrier in (text, text.encode(), Raw(text.encode()), Raw(json.dumps(text).encode()), json.dumps(text).encode()):
        assert parse_learn_stats(carrier) == wanted


@pytest.mark.parametrize(
    "spelling",
    [
        [["a", "b", 3], ["b", "c", 4]],
        [[["a", "b"], 3], [["b", "c"], 4]],
        {"a->b": 3, "b->c": 4},
        {"a→b": 3, "b→c": 4},
        {"a|b": 3, "b|c": 4},
        {"a,b": 3, "b,c": 4},
        {"a\0b": 3, "b\0c": 4},
    ],
)
def test_a_map_keyed_by_pairs_is_read_in_every_spelling(spelling: Any) -> None:
    """Rows, serde's list of key and value, and keys joined in five ways."""
    stats = parse({"episode_transitions": {"success_transitions": spelling}})
    assert stats.episode_transitions.success_transitions == {("a", "b"): 3, ("b", "c"): 4}


@pytest.mark.parametrize(
    "spelling", [[["a", "b", "c", [3, 1]]], [["a", "b", "c", 3, 1]], [[["a", "b", "c"], [3, 1]]], {"a->b->c": [3, 1]}]
)
def test_ngrams_carry_successes_and_failures(spelling: Any) -> None:
    """Rust writes the tuple (u32, u32) as an array of two."""
    assert parse({"ngram_stats": {"trigrams": spelling}}).ngram_stats.trigrams == {("a", "b", "c"): (3, 1)}


def test_a_name_may_hold_a_weaker_separator() -> None:
    """The separators are tried from the least likely in a name to the likeliest."""
    stats = parse({"contextual_stats": {"read,write->x|y": {"visits": 2, "successes": 1, "failures": 1, "x": 0}}})
    assert stats.contextual_stats == {("read,write", "x|y"): ContextualActionStats(visits=2, successes=1, failures=1)}


def test_strategies_and_switches_are_read() -> None:
    """The first switch comes from nowhere."""
    stats = parse({"selection_performance": {
        "strategy_stats": {"ucb1": {"visits": 10, "successes": 7, "failures": 3, "episodes_success": 1}},
        "switch_history": [{"to": "ucb1"}, {"from": "ucb1", "to": "greedy", "visits": 10, "success_rate": 0.7}],
        "current_strategy": "greedy", "strategy_start_visits": 10, "strategy_start_success_rate": 1,
    }})  # fmt: skip
    assert stats.selection_performance == SelectionPerformance(
        strategy_stats={"ucb1": StrategyStats(visits=10, successes=7, failures=3, episodes_success=1)},
        switch_history=[
            StrategySwitch(to="ucb1"),
            StrategySwitch(from_="ucb1", to="greedy", visits=10, success_rate=0.7),
        ],
        current_strategy="greedy",
        strategy_start_visits=10,
        strategy_start_success_rate=1,
    )


def in_pairs(table: Any) -> Any:
    """Statistics whose success transitions are this."""
    return {"episode_transitions": {"success_transitions": table}}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "$:"),
        ("{", "$:"),
        ({"ngram_stats": 1}, "$.ngram_stats:"),
        ({"episode_transitions": {"success_episodes": -1}}, "$.episode_transitions.success_episodes:"),
        (in_pairs([["a", "b", 1], ["a", 1]]), "$.episode_transitions.success_transitions[1]:"),
        (in_pairs([["a", "b", "1"]]), "$.episode_transitions.success_transitions[0]:"),
        (in_pairs([["a", "", 1]]), "$.episode_transitions.success_transitions[0]:"),
        (in_pairs([["a", "b"]]), "$.episode_transitions.success_transitions[0]:"),
        (in_pairs(["ab"]), "$.episode_transitions.success_transitions[0]:"),
        (in_pairs(3), "$.episode_transitions.success_transitions:"),
        (in_pairs({"ab": 1}), "$.episode_transitions.success_transitions.ab:"),
        (in_pairs({"a->b->c": 1}), "$.episode_transitions.success_transitions[...]:"),
        (in_pairs({"a->b\0": 1}), "$.episode_transitions.success_transitions[...]:"),
        ({"ngram_stats": {"trigrams": [["a", "b", "c", [1]]]}}, "$.ngram_stats.trigrams[0]"),
        ({"contextual_stats": [["a", "b", {"visits": True}]]}, "$.contextual_stats[0].visits:"),
        ({"selection_performance": {"switch_history": [{}]}}, "$.selection_performance.switch_history[0]:"),
        ({"selection_performance": {"strategy_stats": {"\0": {}}}}, "$.selection_performance.strategy_stats:"),
        ({"selection_performance": {"current_strategy": "\0"}}, "$.selection_performance.current_strategy:"),
    ],
)
def test_what_is_wrong_has_a_place(value: Any, place: str) -> None:
    """Half-read statistics would teach something that nobody measured, so one wrong entry refuses all."""
    with pytest.raises(ValueError, match=r"^\$") as caught:
        parse(value)
    assert str(caught.value).startswith(place)


NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
COUNT = st.integers(0, 2**40)
TALLY = st.tuples(COUNT, COUNT)


@given(
    st.dictionaries(st.tuples(NAME, NAME), COUNT, max_size=3),
    st.dictionaries(st.tuples(NAME, NAME, NAME), TALLY, max_size=3),
    st.dictionaries(st.tuples(NAME, NAME, NAME, NAME), TALLY, max_size=3),
    st.dictionaries(st.tuples(NAME, NAME), st.builds(ContextualActionStats, visits=COUNT, successes=COUNT), max_size=3),
)
def test_what_is_written_is_read_back(pairs: Any, trigrams: Any, quadgrams: Any, contexts: Any) -> None:
    """Maps are written as rows, which any name survives."""
    stats = LearnStats(
        episode_transitions=EpisodeTransitions(success_transitions=pairs, failure_episodes=2),
        ngram_stats=NgramStats(trigrams=trigrams, quadgrams=quadgrams),
        selection_performance=SelectionPerformance(switch_history=[StrategySwitch(to="x", from_="y")]),
        contextual_stats=contexts,
    )
    text = encode_learn_stats(stats)
    assert parse_learn_stats(text) == stats
    assert isinstance(json.loads(text)["contextual_stats"], list)
