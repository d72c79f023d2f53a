"""The aggregates as a training takes them, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.learning.bounds import FAMILIES, Family, Take, bounded_rows
from worker.learning.shares import ProducerTotals
from worker.learning.totals import MEASURES, totals_of
from worker.store.memory.scenario_log import ScenarioLog
from worker.store.memory.state import Role


class Learnable(Role):
    """The part of `worker.store.port.Projections` that a training reads, in memory."""

    async def producers(self, scenario: str) -> dict[str, ProducerTotals]:
        """Sums over the counts."""
        return totals_of(
            (key.source, bucket.producer, key.measure, number)
            for bucket, counts in self._of(scenario).counts.items()
            for key, number in counts.items()
            if key.measure in MEASURES and number
        )

    async def learnable_counts(
        self,
        scenario: str,
        take: Take,
        *,
        holdout: bool,
        weights: Mapping[str, int],
        families: Sequence[Family] = FAMILIES,
    ) -> None:
        """The counts of one side."""
        buckets = [one for one in self._of(scenario).counts.items() if one[0].holdout == holdout]
        bounded_rows(buckets, take, weights=weights, families=families)

    def _of(self, scenario: str) -> ScenarioLog:
        self._state.require_open()
        return self._state.log(scenario) if scenario in self._state.scenarios else ScenarioLog()
