"""Rates and intervals against published figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.learning.rates import normal_tail, p_words, success_rate, two_proportion_z, value, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_wilson_interval_is_that_of_the_literature(successes: int, trials: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    interval = wilson(successes, trials)
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_three_of_three_ranks_behind_eighty_of_a_hundred() -> None:
    """Ranking by the lower bound is what the mean gets wrong."""
    assert wilson(3, 3).low == pytest.approx(0.44, abs=0.005)
    assert wilson(80, 100).low == pytest.approx(0.71, abs=0.005)


def test_no_trials_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_interval_holds_the_rate_and_stays_in_bounds(successes: int, failures: int) -> None:
    low, high = wilson(successes, successes + failures)
    assert 0.0 <= low <= high <= 1.0
    if successes + failures:
        assert low <= successes / (successes + failures) <= high


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_more_of_the_same_narrows_the_interval(successes: int, failures: int) -> None:
    trials = successes + failures
    once, twice = wilson(successes, trials), wilson(2 * successes, 2 * trials)
    assert twice.high - twice.low < once.high - once.low


def test_the_success_rate_of_an_unvisited_action_is_one_half() -> None:
    """Contract fact of the original."""
    assert success_rate(0, 0) == 0.5
    assert success_rate(3, 4) == 0.75


def test_a_value_lies_between_minus_one_and_one() -> None:
    assert value(3, 1) == 0.5
    assert value(0, 2) == -1.0
    assert value(0, 0) == 0.0


def test_the_z_statistic_of_two_rates_is_that_of_the_textbook() -> None:
    """60 of 100 against 45 of 100: pooled 0.525, z = 0.15 / 0.070622 = 2.1240, p = 0.0168 one-sided."""
    z = two_proportion_z(60, 100, 45, 100)
    assert z == pytest.approx(2.1240, abs=1e-4)
    assert normal_tail(z) == pytest.approx(0.0168, abs=1e-4)


@pytest.mark.parametrize(
    ("p_value", "words"),
    [(0.0, "p < 0.001"), (2e-06, "p < 0.001"), (0.001, "p 0.001"), (0.0168, "p 0.0168")],
)
def test_no_chance_is_told_as_none_at_all(p_value: float, words: str) -> None:
    assert p_words(p_value) == words


def test_rates_that_cannot_differ_give_no_signal() -> None:
    assert two_proportion_z(10, 10, 5, 5) == 0.0
    assert two_proportion_z(0, 0, 5, 5) == 0.0
