"""A soak of ten seconds, so that the long one cannot rot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.oracle import chosen_seed
from tests.faults.soak.soak import Place, soak
from tests.integration.nursery import Nursery
from tests.integration.worker_process import CommandLine

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(150)]


async def test_a_short_soak_holds_what_the_long_one_promises(
    amqp_url: str, tmp_path: Path, command_line: CommandLine, nursery: Nursery
) -> None:
    said: list[str] = []
    report, watch, faults = await soak(
        # Nothing is done to the broker: other tests are using it.
        Place(amqp_url, tmp_path, command_line, nursery.launch),
        seconds=10,
        seed=chosen_seed(),
        say=said.append,
        every=2,
        rate=30,
    )
    assert faults.total() >= 2
    assert len(said) == 1 + faults.total()
    assert report.confirmed > 100
    assert watch.rss_mb > 0
