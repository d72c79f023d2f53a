"""The learned action order: what may replace what, and for which actions it holds."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from worker.learning.action_order import (
    ActionOrderSource,
    LearnedActionOrder,
    LearnedDependencyProvider,
    LoraConfig,
    PlacedGraph,
    choose_order,
    compute_hash,
)
from worker.wire.records import DependencyGraphRecord


def graph(at: int, discover: list[str], rest: list[str] | None = None, **fields: Any) -> PlacedGraph:
    values: dict[str, Any] = {"available_actions": ["a", "b", "c"], **fields}
    record = DependencyGraphRecord(
        prompt="p",
        response="r",
        discover_order=discover,
        not_discover_order=rest or [],
        model="m",
        endpoint="e",
        latency_ms=1,
        timestamp_ms=at,
        **values,
    )
    return PlacedGraph(record=record, received_at_ms=at)


def test_the_hash_is_that_of_decision_a() -> None:
    """Sorted, joined by NUL, BLAKE2b of 8 bytes, big-endian, 16 hex digits."""
    expected = int.from_bytes(blake2b(b"a\0b", digest_size=8).digest(), "big")
    assert compute_hash(["b", "a"]) == f"{expected:016x}"


@given(st.lists(st.text(min_size=1), max_size=8), st.randoms(use_true_random=False))
def test_the_hash_knows_neither_order_nor_duplicates(actions: list[str], random: Any) -> None:
    shuffled = actions + actions[:3]
    random.shuffle(shuffled)
    assert compute_hash(shuffled) == compute_hash(actions)


@given(
    st.sets(st.text(alphabet="abc", min_size=1), max_size=5), st.sets(st.text(alphabet="abc", min_size=1), max_size=5)
)
def test_other_actions_have_another_hash(one: set[str], other: set[str]) -> None:
    assert (compute_hash(one) == compute_hash(other)) == (one == other)


def test_the_hash_is_over_the_available_actions_and_names_what_the_inference_left_out() -> None:
    """Fault 30: hashed over the orders, it never matched where one was missing."""
    order = choose_order([graph(1, ["b"], ["a"])], None).order
    assert order is not None
    assert order.is_exact_match(["c", "b", "a"])
    assert not order.is_exact_match(["a", "b"])
    assert order.missing == ["c"]


def test_without_available_actions_the_hash_is_over_what_was_ordered() -> None:
    order = choose_order([graph(1, ["b"], ["a"], available_actions=[])], None).order
    assert order is not None
    assert order.is_exact_match(["a", "b"])
    assert order.missing == []


def test_an_action_that_is_not_available_is_not_ordered() -> None:
    order = choose_order([graph(1, ["b", "invented", "b"], ["a", "b"])], None).order
    assert order is not None
    assert (order.discover, order.not_discover) == (["b"], ["a"])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (graph(2, ["c"], error="timeout"), "error"),
        (graph(2, []), "empty"),
        (graph(2, ["x"], ["y"]), "unknown_actions"),
        (graph(2, [str(n) for n in range(300)]), "too_many_actions"),
    ],
)
def test_a_failed_or_empty_inference_never_replaces_a_good_one(bad: PlacedGraph, reason: str) -> None:
    """Fault 29."""
    good = choose_order([graph(1, ["a"])], None).order
    choice = choose_order([bad], good)
    assert choice.order == good
    assert not choice.changed
    assert choice.refused == {reason: 1}
    assert choose_order([bad, graph(1, ["a"])], None).order == good


def test_the_newest_good_inference_wins_in_any_order_of_arrival() -> None:
    graphs = [graph(3, ["c"]), graph(1, ["a"]), graph(2, ["b"])]
    for given_order in (graphs, graphs[::-1]):
        choice = choose_order(given_order, None)
        assert choice.order is not None
        assert choice.order.discover == ["c"]
        assert choice.order.inferred_at_ms == 3
        assert choice.accepted == 3


def test_a_validated_order_is_kept_against_a_newer_one_over_the_same_actions() -> None:
    stored = replace(LearnedActionOrder.new(["a"], [], ["a", "b", "c"]), validated_accuracy=0.9)
    assert choose_order([graph(5, ["b"])], stored).order == stored
    other = choose_order([graph(5, ["b"], available_actions=["a", "b"])], stored)
    assert other.changed
    assert other.order is not None
    assert other.order.discover == ["b"]


def test_the_same_order_again_is_no_change() -> None:
    """Its accuracy and time are not lost to a repetition."""
    stored = choose_order([graph(1, ["a"], ["b"])], None).order
    choice = choose_order([graph(9, ["a"], ["b"])], stored)
    assert not choice.changed
    assert choice.order == stored


def test_the_order_names_its_source_and_adapter() -> None:
    order = choose_order([graph(1, ["a"], lora="adapter-3")], None).order
    assert order is not None
    assert order.source is ActionOrderSource.LLM
    assert order.lora == LoraConfig(id="adapter-3")


def test_the_provider_answers_for_exactly_its_actions() -> None:
    order = LearnedActionOrder.new(["a"], ["b"], ["a", "b"])
    provider = LearnedDependencyProvider(order)
    assert provider.provide(["b", "a", "a"]) == order
    assert provider.provide(["a", "b", "c"]) is None
    assert LearnedDependencyProvider(None).provide(["a"]) is None
