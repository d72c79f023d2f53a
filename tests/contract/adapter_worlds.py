"""Every way to serve adapters, as the contract's tests see it: an applicator over a server, or over what plays one.

A further applicator joins by an entry in `WORLDS`: its traits, and a context manager that gives its world for a data
directory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from pydantic import SecretStr

from tests.contract.fake_vllm import FakeVllm
from worker.client.adapters import AdapterPointer
from worker.errors import ApplyFailed
from worker.models.applicators.port import Applicator
from worker.models.applicators.vllm import VllmApplicator
from worker.models.applicators.vllm_client import VllmClient

Hook: TypeAlias = Callable[[str], Awaitable[None]]
SECRET = "canary-key"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How applicators differ, and how to make the world of one."""

    make: Callable[[Path], AbstractAsyncContextManager[AdapterWorld]]
    #: Answers are compared, so an adapter that answers otherwise than its probes say is refused.
    probes: bool = True
    #: Several scenarios may be served beside each other.
    many_scenarios: bool = True
    #: What is served outlives the worker's process.
    outlives: bool = True


class AdapterWorld(Protocol):
    """One way to serve adapters."""

    def applicator(self) -> Applicator:
        """A new one, as a worker makes it at its start; over the same server and directory as those before."""
        ...

    async def answer(self, scenario: str) -> str | None:
        """What a node gets that goes by what the applicator left for it; None where nothing is served."""
        ...

    def trouble(self, *, on: bool) -> None:
        """The next applies fail at the server (or at the disk), or do no more. What is served goes on."""
        ...

    async def restart_server(self) -> None:
        """What serves starts anew; adapters that it only held in memory are gone."""
        ...

    def on_call(self, hook: Hook | None) -> None:
        """Call this with each step that reaches the server. Worlds without a server never do."""
        ...


class VllmWorld:
    """vLLM, played."""

    def __init__(self, data_dir: Path, server: FakeVllm) -> None:
        self.data_dir = data_dir
        self.server = server
        self.client = VllmClient(server.url, SecretStr(SECRET))

    def applicator(self) -> Applicator:
        return VllmApplicator(
            VllmClient(self.server.url, SecretStr(SECRET)), self.data_dir, drain_timeout=0.2, models_dir=None
        )

    async def answer(self, scenario: str) -> str | None:
        current = AdapterPointer(self.data_dir, scenario).current()
        if current is None or current.endpoint is None:
            return None
        assert current.endpoint.url == self.server.url
        try:
            return await self.client.complete(current.endpoint.model, "what next?", max_tokens=8)
        except ApplyFailed:
            return None

    def trouble(self, *, on: bool) -> None:
        self.server.refuse_loads = on

    async def restart_server(self) -> None:
        self.server.restart()

    def on_call(self, hook: Hook | None) -> None:
        self.server.on_call = hook


@asynccontextmanager
async def vllm_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """vLLM, played by `FakeVllm`."""
    server = FakeVllm(api_key=SECRET)
    await server.start()
    world = VllmWorld(data_dir, server)
    try:
        yield world
    finally:
        await world.client.close()
        await server.stop()


WORLDS: dict[str, Kind] = {"vllm": Kind(make=vllm_world)}
