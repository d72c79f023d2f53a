"""Sessions and helpers for tests with a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nursery import Nursery
from tests.integration.worker_process import CommandLine, NewWorker, WorkerProcess
from worker.broker.session import Role, Session
from worker.broker.url import parse_amqp_url

NewSession = Callable[..., Awaitable[Session]]


@pytest.fixture
async def new_session(amqp_url: str) -> AsyncIterator[NewSession]:
    """Makes started sessions, on `amqp_url` unless told otherwise, and closes them."""
    async with AsyncExitStack() as stack:

        async def make(role: Role = "consume", *, url: str = amqp_url, call_timeout: float = 5.0) -> Session:
            session = Session(role, parse_amqp_url(url), start_timeout=10, call_timeout=call_timeout)
            await session.start()
            stack.push_async_callback(session.close)
            return session

        yield make


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition holds; fails after `within` seconds."""

    async def wait(condition: Callable[[], bool], *, within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """`swarm-worker COMMAND`, for all tests of this process."""
    commands = CommandLine(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts workers quickly, where a test starts many: `new_worker(..., launch=nursery.launch)`."""
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture
async def new_worker(amqp_url: str, tmp_path: Path, command_line: CommandLine) -> AsyncIterator[NewWorker]:
    """Makes workers on `amqp_url`, not started, each with a directory of its own unless told otherwise."""
    made: list[WorkerProcess] = []

    def make(*scenarios: str, directory: Path | None = None, **settings: Any) -> WorkerProcess:
        place = directory or tmp_path / f"worker-{len(made)}"
        worker = WorkerProcess(place, *scenarios, command_line=command_line, **{"amqp_url": amqp_url, **settings})
        made.append(worker)
        return worker

    yield make
    for worker in made:
        await worker.discard()
