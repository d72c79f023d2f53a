"""The simulation is silent: a flight logs some hundred lines, and thousands are flown."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """The collector looks at the simulation's objects alone, not at all of pytest's each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Nothing below `critical` is logged."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
