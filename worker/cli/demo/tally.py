"""What was measured: how often games were won before and with the model, and without one over the same time.

Compared are the same nodes at the same games: before they had any model, and under one. Since an agent also learns by
itself, one node never takes a model, and what it reaches meanwhile shows how much of the change is not the model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from msgspec import Struct

from worker.cli.demo.reports import Report
from worker.learning.rates import wilson


class Rate(Struct, frozen=True):
    """Games and how many of them were won, with the Wilson interval (95 %) of the share."""

    games: int
    won: int

    @property
    def share(self) -> float | None:
        """0-1; None of no games."""
        return self.won / self.games if self.games else None

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies."""
        return wilson(self.won, self.games)


class Stretch(Struct, frozen=True):
    """Games of one node under one model in about half a second."""

    at_ms: int
    alone: bool
    version: int | None
    games: int
    won: int


class Tally:
    """The games of one scenario."""

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        #: When the nodes were first seen to play under each model version, Unix ms.
        self.taken_up_ms: dict[int, int] = {}
        #: Per node, its last word.
        self._newest: dict[str, Report] = {}

    def add(self, node: str, report: Report, *, alone: bool) -> None:
        """Note what a node reports; `alone`: it goes without a model on purpose."""
        self._newest[node] = report
        for version, games, won in report.results:
            self.stretches.append(Stretch(report.at_ms, alone, version, games, won))
            if version is not None:
                self.taken_up_ms.setdefault(version, report.at_ms)

    @property
    def nodes(self) -> int:
        """Nodes that were heard of."""
        return len(self._newest)

    @property
    def published(self) -> int:
        """Records that were published."""
        return sum(report.records for report in self._newest.values())

    @property
    def games(self) -> int:
        """Games that were played to their end."""
        return sum(report.games for report in self._newest.values())

    @property
    def sessions(self) -> int:
        """Sessions that were ended."""
        return sum(report.sessions for report in self._newest.values())

    @property
    def unconfirmed(self) -> int:
        """Batches that the broker has not confirmed."""
        return sum(report.unconfirmed for report in self._newest.values())

    @property
    def complete(self) -> bool:
        """Whether every node said its last word."""
        return bool(self._newest) and all(report.last for report in self._newest.values())

    @property
    def first_model_ms(self) -> int | None:
        """When nodes were first seen to play under a model."""
        return min(self.taken_up_ms.values(), default=None)

    @property
    def before(self) -> Rate:
        """Nodes that would follow a model, while there was none."""
        return self._rate(lambda s: not s.alone and s.version is None)

    @property
    def after(self) -> Rate:
        """The same nodes, under whichever model was live."""
        return self._rate(lambda s: s.version is not None)

    @property
    def alone_before(self) -> Rate:
        """The node that goes without, up to the first model."""
        first = self.first_model_ms
        return self._rate(lambda s: s.alone and (first is None or s.at_ms < first))

    @property
    def alone_after(self) -> Rate:
        """The node that goes without, since the others have a model."""
        first = self.first_model_ms
        return self._rate(lambda s: s.alone and first is not None and s.at_ms >= first)

    @property
    def by_version(self) -> dict[int, Rate]:
        """Under each model version."""
        return {
            version: total(stretch for stretch in self.stretches if stretch.version == version)
            for version in sorted(self.taken_up_ms)
        }

    def over_time(self, *, since_ms: int, seconds: float, alone: bool) -> list[tuple[float, float]]:
        """(second, share won) of bins of `seconds`; a bin without games is left out."""
        games: Counter[int] = Counter()
        won: Counter[int] = Counter()
        for stretch in self.stretches:
            if stretch.alone == alone:
                number = int((stretch.at_ms - since_ms) / 1000 / seconds)
                games[number] += stretch.games
                won[number] += stretch.won
        return [((number + 0.5) * seconds, won[number] / games[number]) for number in sorted(games) if games[number]]

    def _rate(self, chosen: Callable[[Stretch], bool]) -> Rate:
        return total(stretch for stretch in self.stretches if chosen(stretch))


def total(stretches: Iterable[Stretch]) -> Rate:
    """All of them together."""
    games = won = 0
    for stretch in stretches:
        games += stretch.games
        won += stretch.won
    return Rate(games, won)
