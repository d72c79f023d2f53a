"""Which actions examples offer: the most frequent of the scenario's own, whatever else is stored."""

from __future__ import annotations

from pathlib import Path

from tests.unit.training_world import opened, worker_over
from worker.training.exports import actions_taken


async def test_examples_offer_the_scenarios_own_actions(tmp_path: Path) -> None:
    """Learnt from and held out alike."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        assert await actions_taken(store, "S") == []
        await world.feed(30)
        assert await actions_taken(store, "S") == ["done", "give_up", "guess", "look", "open"]
