"""Rates and how sure we are of them: the Wilson score interval, and the original's rate of what was never tried."""

from __future__ import annotations

import math
from typing import NamedTuple

#: Two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959963984540054

#: The original's success rate of an action that was never visited.
UNVISITED_RATE = 0.5

#: Decimals of a rate that leaves the worker: finer than any count supports, and the JSON stays short.
RATE_DIGITS = 6

#: Smaller chances are told as that: no count of ours supports them.
_LEAST_TOLD = 0.001


class Interval(NamedTuple):
    """A closed interval of rates, 0 <= low <= high <= 1."""

    low: float
    high: float


def wilson(successes: float, trials: float, z: float = Z_95) -> Interval:
    """The Wilson score interval of a binomial rate; no trials give (0, 1).

    Source: Wilson 1927 (JASA 22, 209-212); recommended for small samples by Brown, Cai & DasGupta 2001. Both
    arguments may be effective (fractional) sample sizes, with 0 <= successes <= trials.
    """
    if trials <= 0:
        return Interval(0.0, 1.0)
    rate = successes / trials
    z2 = z * z
    denominator = 1.0 + z2 / trials
    centre = (rate + z2 / (2.0 * trials)) / denominator
    half = z / denominator * math.sqrt(rate * (1.0 - rate) / trials + z2 / (4.0 * trials * trials))
    # At the ends the bound is exactly 0 or 1; in floats it misses by a rounding error, which readers then trip over.
    low = 0.0 if successes <= 0 else max(0.0, centre - half)
    high = 1.0 if successes >= trials else min(1.0, centre + half)
    return Interval(low, high)


def success_rate(successes: int, visits: int) -> float:
    """Share of visits that succeeded; 0.5 with no visits (the original's rule)."""
    return successes / visits if visits > 0 else UNVISITED_RATE


def value(successes: int, failures: int) -> float:
    """(ok - bad) / (ok + bad) in [-1, 1]; 0 where nothing was seen (the original's)."""
    seen = successes + failures
    return (successes - failures) / seen if seen > 0 else 0.0


def rounded(number: float) -> float:
    """A rate as it is written into a model."""
    return round(number, RATE_DIGITS)


def two_proportion_z(successes_a: float, trials_a: float, successes_b: float, trials_b: float) -> float:
    """The pooled z statistic of rate a minus rate b; 0 where the pooled rate is 0 or 1 or a side is empty."""
    if trials_a <= 0 or trials_b <= 0:
        return 0.0
    pooled = (successes_a + successes_b) / (trials_a + trials_b)
    variance = pooled * (1.0 - pooled) * (1.0 / trials_a + 1.0 / trials_b)
    if variance <= 0.0:
        return 0.0
    return (successes_a / trials_a - successes_b / trials_b) / math.sqrt(variance)


def normal_tail(z: float) -> float:
    """P(Z >= z) of the standard normal distribution."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def p_words(p_value: float) -> str:
    """A chance as people read it: `p 0.0168`, `p < 0.001`; never `p 0`."""
    return f"p < {_LEAST_TOLD}" if p_value < _LEAST_TOLD else f"p {p_value:.3g}"
