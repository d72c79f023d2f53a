"""Shares: one producer cannot outweigh the others, whatever it sends and in whatever order (S20)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.learning.shares import ALWAYS, WHOLE, ProducerTotals, producer_weights, sessions_of_one


def totals(**episodes: int) -> dict[str, ProducerTotals]:
    """Producers with so many episodes of ten actions each."""
    return {name: ProducerTotals(episodes=n, actions=10 * n, sessions=n) for name, n in episodes.items()}


def test_a_producer_alone_is_never_capped() -> None:
    """A cap may only bind where there are others."""
    assert producer_weights(totals(one=10**9), 0.01) == {}
    assert producer_weights({}, 0.5) == {}
    assert producer_weights(totals(one=10**9, silent=0), 0.01) == {}


def test_equal_producers_count_whole() -> None:
    assert producer_weights(totals(a=500, b=500, c=500), 1 / 3) == {}
    assert producer_weights(totals(a=500, b=500, c=500), 0.1) == {}


def test_too_few_to_tell_who_is_right_are_not_capped() -> None:
    """Two or three nodes, one of them new: no reason to forget what the old one has told."""
    assert producer_weights(totals(old=100_000, new=5), 0.33) == {}
    assert producer_weights(totals(old=100_000, b=5, c=5), 0.33) == {}
    assert set(producer_weights(totals(old=100_000, b=5, c=5, d=5), 0.33)) == {"old"}


def test_a_flood_weighs_its_share_and_no_more() -> None:
    """100 times the episodes of each of nine others: a third of the whole, half as much as the nine together."""
    swarm = totals(flood=100_000, **{f"n{i}": 1_000 for i in range(9)})
    weights = producer_weights(swarm, 1 / 3)
    assert set(weights) == {"flood"}
    assert weights["flood"] * 100_000 / WHOLE == pytest.approx(4_500, rel=0.01)


def test_an_action_counts_too_so_long_episodes_are_no_way_round() -> None:
    """As few episodes as the others, a hundred times as long."""
    swarm = totals(a=1_000, b=1_000, c=1_000)
    swarm["long"] = ProducerTotals(episodes=1_000, actions=1_000_000)
    assert producer_weights(swarm, 0.25) == {"long": WHOLE // 100}


def test_a_node_that_has_just_joined_does_not_silence_an_old_one() -> None:
    """What every producer may always bring."""
    assert producer_weights(totals(old=1_000, new=1), 0.5) == {"old": WHOLE * ALWAYS // 1_000}
    assert producer_weights(totals(old=ALWAYS, new=1), 0.5) == {}


def test_no_limit_is_no_limit() -> None:
    assert producer_weights(totals(flood=10**6, a=1, b=1), 1.0) == {}


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 10**7), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
)
def test_whatever_they_bring_nobody_brings_more_than_the_share(episodes: dict[str, int], share: float) -> None:
    """But for what each may always bring; whoever is not above it counts whole; names and their order do not matter."""
    swarm = totals(**episodes)
    weights = producer_weights(swarm, share)
    after = {name: n * weights.get(name, WHOLE) / WHOLE for name, n in episodes.items()}
    present = sum(n > 0 for n in episodes.values())
    if present:
        if present > 1 and present * share >= 1:
            assert max(after.values()) <= max(share * sum(after.values()), ALWAYS) * 1.001 + 1
        else:
            assert weights == {}
        assert all(episodes[name] > min(after.values()) for name in weights)
        assert all(after[name] >= min(n, ALWAYS) - 1 for name, n in episodes.items())
    backwards = dict(reversed(swarm.items()))
    assert producer_weights(backwards, share) == weights


def test_whoever_brings_alone_what_others_could_have_brought_is_above_its_share() -> None:
    alone = {"flood": ProducerTotals(episodes=1_000)}
    assert producer_weights(alone, 0.3) == {}
    assert producer_weights(alone, 0.3, among=3) == {}
    assert producer_weights(alone, 0.3, among=4) == {"flood": WHOLE * ALWAYS // 1_000}
    assert producer_weights({}, 0.3, among=4) == {}


def test_sessions_have_their_share_too() -> None:
    """Of the newest ones that an analysis reads."""
    assert sessions_of_one(totals(a=5), 0.33, 20) is None
    assert sessions_of_one(totals(a=5, b=1), 0.33, 20) is None
    assert sessions_of_one(totals(a=5, b=1), 0.5, 20) == 10
    assert sessions_of_one(totals(a=5, b=1, c=1, d=1), 0.33, 20) == 7
    assert sessions_of_one(totals(a=5, b=1, c=1, d=1), 1.0, 20) is None
    assert sessions_of_one(totals(a=5, b=1, c=1), 0.4, 1) == 1
