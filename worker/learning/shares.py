"""How much each producer counts in one training, so that a flood of one does not decide what all learn. Pure.

A producer may bring at most a share of the episodes that a training learns from. What is above is not thrown away: all
of its counts are multiplied by the same weight, so its rates stay what they are and only weigh less. Weights depend on
sums alone, so neither the order in which records came nor duplicates change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from msgspec import Struct

#: Weights are whole billionths, since counts are whole numbers: their sums do not depend on an order.
WHOLE = 1_000_000_000
#: A producer always brings this many episodes. Otherwise the first episode of a new node would take the weight from
#: all that an older one has told.
ALWAYS = 100


class ProducerTotals(Struct, frozen=True, kw_only=True):
    """What the projections hold of one producer, held out or not."""

    episodes: int = 0
    actions: int = 0
    sessions: int = 0  # whose end it told


def producer_weights(totals: Mapping[str, ProducerTotals], share: float, *, among: int = 0) -> dict[str, int]:
    """The weight of each producer that is capped, in billionths; the others count whole.

    None brings more than `share` (0-1) of what all together bring after the cap, but for `ALWAYS`. Fewer producers
    than 1 / share are not capped: that could not be reached, and no majority could tell who is right. A producer's size
    is its episodes; where they are longer than usual (the median over the producers), as many episodes of the usual
    length as it has actions, since each action counts too. `among`: how many producers there are, where those that
    brought none of this could have. Then whoever brings it alone is above its share too.
    """
    present = {name: one for name, one in sorted(totals.items()) if one.episodes > 0}
    if not present or not _applies(share, max(among, len(present))):
        return {}
    usual = median(one.actions / one.episodes for one in present.values())
    sizes = {name: max(float(one.episodes), one.actions / usual if usual else 0.0) for name, one in present.items()}
    none = [0.0] * (among - len(present))
    most = max(_level([*sizes.values(), *none], share), float(ALWAYS))
    return {name: int(WHOLE * most / size) for name, size in sizes.items() if size > most}


def sessions_of_one(totals: Mapping[str, ProducerTotals], share: float, most: int) -> int | None:
    """How many of the `most` newest sessions may be of one producer; None where there is no cap."""
    present = sum(one.sessions > 0 for one in totals.values())
    return max(1, -int(-share * most // 1)) if _applies(share, present) else None


def _applies(share: float, producers: int) -> bool:
    return share < 1 and producers > 1 and producers * share >= 1


def _level(sizes: list[float], share: float) -> float:
    """The greatest size that is at most `share` of the sum of all sizes cut to it."""
    largest_first = sorted(sizes, reverse=True)
    rest = sum(largest_first)
    if largest_first[0] <= share * rest:
        return largest_first[0]
    for cut, size in enumerate(largest_first, start=1):
        rest -= size
        if cut * share >= 1 or cut == len(largest_first):
            return size
        level = share * rest / (1 - cut * share)
        if largest_first[cut] <= level:
            return level
    return largest_first[-1]
