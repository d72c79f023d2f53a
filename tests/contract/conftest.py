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
Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]


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


@pytest.fixture
def reopen(clock: ManualClock) -> Reopen:
    """Closes a store and opens it again, as a restart does; the store in memory lives as long as its object."""

    @asynccontextmanager
    async def close_and_open(store: Store) -> AsyncIterator[Store]:
        path = (await store.describe())["path"]
        await store.close()
        again = store if path is None else open_store(f"sqlite://{path}", clock)
        await again.open()
        try:
            yield again
        finally:
            await again.close()

    return close_and_open
