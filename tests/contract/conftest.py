"""Every store that must keep the port's contract, as one parametrised fixture.

A further engine joins by an entry in `STORES` that gives the URL of an empty store of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pytest

from worker.clock import ManualClock
from worker.store import open_store
from worker.store.port import Store

#: URL of a fresh store, given a folder of the test's own.
STORES: dict[str, Callable[[Path], str]] = {
    "memory": lambda _folder: "memory:",
    "sqlite": lambda folder: f"sqlite://{folder}/{uuid4().hex}.db",
}

NewStore: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture
def clock() -> ManualClock:
    """Time that stands still until the test moves it."""
    return ManualClock()


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    """Which implementation this run is about."""
    return str(request.param)


@pytest.fixture
def new_store(store_kind: str, tmp_path: Path, clock: ManualClock) -> NewStore:
    """Makes fresh open stores; for tests that need more than one, as a hypothesis example does."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Store]:
        store = open_store(STORES[store_kind](tmp_path), clock)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    return make


@pytest.fixture
async def store(new_store: NewStore) -> AsyncIterator[Store]:
    """One fresh open store."""
    async with new_store() as opened:
        yield opened
