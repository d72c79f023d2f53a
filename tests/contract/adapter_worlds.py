"""Every way to serve adapters, as the contract's tests see it: an applicator over a server, or over what plays one.

A further applicator joins by an entry in `WORLDS`: its traits, and a context manager that gives its world for a data
directory.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from pydantic import SecretStr

from tests.contract.adapter_building import answer_of
from tests.contract.fake_llama_router import FakeLlamaRouter
from tests.contract.fake_llama_server import FakeLlamaServer, FakeServerProcess
from tests.contract.fake_receiver import FakeReceiver
from tests.contract.fake_vllm import FakeVllm
from tests.held_port import held_port
from worker.client.adapters import AdapterPointer
from worker.errors import ApplyFailed
from worker.models.applicators.adapter_webhook import AdapterWebhookApplicator
from worker.models.applicators.blue_green import BlueGreenApplicator
from worker.models.applicators.files import FilesApplicator
from worker.models.applicators.inference_client import InferenceClient
from worker.models.applicators.llama_client import LlamaClient
from worker.models.applicators.llama_router import LlamaRouterApplicator
from worker.models.applicators.llama_server import LlamaServerApplicator
from worker.models.applicators.noop import NoopApplicator
from worker.models.applicators.own_server import OwnServer
from worker.models.applicators.port import Applicator
from worker.models.applicators.router_preset import PresetFile
from worker.models.applicators.server_command import ServerOptions
from worker.models.applicators.vllm import VllmApplicator
from worker.models.applicators.vllm_client import VllmClient
from worker.models.applicators.webhook import WebhookApplicator

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
    #: An adapter that turns out bad never takes the place of the one before; else the applier has to put that back.
    keeps: bool = True
    #: There is something that can fail.
    fails: bool = True
    #: Nodes get an answer all through a swap, and whatever happens to the worker then.
    seamless: bool = True


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

    def go_on_answering(self, answer: str | None) -> None:
        """Whatever the server is told to load from now on, it goes on answering so; None: no more."""
        ...

    async def restart_server(self) -> None:
        """What serves starts anew; adapters that it only held in memory are gone."""
        ...

    def on_call(self, hook: Hook | None) -> None:
        """Call this with each step that reaches the server. Worlds without a server never do."""
        ...


async def answer_to_a_node(data_dir: Path, scenario: str) -> str | None:
    """What the server says that the pointer names, under the name that the pointer gives."""
    current = AdapterPointer(data_dir, scenario).current()
    if current is None or current.endpoint is None:
        return None
    client = InferenceClient(current.endpoint.url, SecretStr(SECRET), setting="-")
    try:
        return await client.complete(current.endpoint.model, "what next?", max_tokens=8)
    except ApplyFailed:
        return None
    finally:
        await client.close()


class ServerWorld:
    """A server of somebody else's, played, into which adapters are loaded while it runs."""

    def __init__(
        self, data_dir: Path, server: FakeVllm | FakeLlamaRouter, applicator: Callable[[], Applicator]
    ) -> None:
        self.data_dir = data_dir
        self.server = server
        self.applicator = applicator

    async def answer(self, scenario: str) -> str | None:
        return await answer_to_a_node(self.data_dir, scenario)

    def trouble(self, *, on: bool) -> None:
        self.server.refuse_loads = on

    def go_on_answering(self, answer: str | None) -> None:
        self.server.goes_on_answering = answer

    async def restart_server(self) -> None:
        self.server.restart()

    def on_call(self, hook: Hook | None) -> None:
        self.server.on_call = hook


@asynccontextmanager
async def vllm_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """vLLM, played by `FakeVllm`."""
    async with FakeVllm(api_key=SECRET) as server:
        yield ServerWorld(
            data_dir,
            server,
            lambda: VllmApplicator(VllmClient(server.url, SecretStr(SECRET)), data_dir, drain_timeout=0.2),
        )


@asynccontextmanager
async def router_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """A router, played by `FakeLlamaRouter`."""
    preset = PresetFile(data_dir / "preset.ini")
    preset.create(data_dir / "base.gguf")
    async with FakeLlamaRouter(preset.path, api_key=SECRET) as server:
        yield ServerWorld(
            data_dir,
            server,
            lambda: LlamaRouterApplicator(
                LlamaClient(server.url, SecretStr(SECRET)),
                preset=preset,
                data_dir=data_dir,
                serving_base=data_dir / "base.gguf",
                drain_seconds=2,
                quiet_seconds=0.1,
            ),
        )


class OwnServersWorld:
    """llama-servers that the applicator starts, played: two that take turns, or one that is restarted."""

    def __init__(self, data_dir: Path, *ports: int) -> None:
        self.data_dir = data_dir
        self.ports = ports
        self.servers = [FakeLlamaServer() for _ in ports]
        (data_dir / "base.gguf").touch()

    def applicator(self) -> Applicator:
        options = ServerOptions(
            program=Path(sys.executable), base=self.data_dir / "base.gguf", host="127.0.0.1", gpu_layers=0,
            context_size=512, parallel=2, api_key=SecretStr(SECRET),
        )  # fmt: skip
        servers = [
            OwnServer(options, port=port, process=FakeServerProcess(server))
            for server, port in zip(self.servers, self.ports, strict=True)
        ]
        if len(servers) == 1:
            return LlamaServerApplicator(servers[0], data_dir=self.data_dir, drain_seconds=0.2)
        return BlueGreenApplicator(
            # Without a quiet moment a node that has read the pointer just before would come too late.
            {"blue": servers[0], "green": servers[1]},
            data_dir=self.data_dir,
            drain_seconds=2,
            quiet_seconds=0.1,
        )

    async def answer(self, scenario: str) -> str | None:
        return await answer_to_a_node(self.data_dir, scenario)

    def trouble(self, *, on: bool) -> None:
        for server in self.servers:
            server.refuse_new = on

    def go_on_answering(self, answer: str | None) -> None:
        for server in self.servers:
            server.goes_on_answering = answer

    async def restart_server(self) -> None:
        for server in self.servers:
            await server.stop()

    def on_call(self, hook: Hook | None) -> None:
        for server in self.servers:
            server.on_call = hook


@asynccontextmanager
async def llama_server_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """One, played by `FakeLlamaServer`."""
    with held_port() as port:
        world = OwnServersWorld(data_dir, port)
        try:
            yield world
        finally:
            await world.restart_server()


@asynccontextmanager
async def blue_green_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """Two, played by `FakeLlamaServer`."""
    with held_port() as blue, held_port() as green:
        world = OwnServersWorld(data_dir, blue, green)
        try:
            yield world
        finally:
            await world.restart_server()


class FilesWorld:
    """No server: a node takes the files that the document names."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._folder = data_dir / "current"

    def applicator(self) -> Applicator:
        return FilesApplicator(self.data_dir, "lora")

    async def answer(self, scenario: str) -> str | None:
        current = AdapterPointer(self.data_dir, scenario).current()
        return None if current is None or current.directory is None else answer_of(current.directory / "peft")

    def trouble(self, *, on: bool) -> None:
        """A link in the folder's place: it can be read through, and is never written through."""
        aside = self._folder.with_name("aside")
        if on:
            self._folder.mkdir(exist_ok=True)
            self._folder.rename(aside)
            self._folder.symlink_to(aside)
        else:
            self._folder.unlink()
            aside.rename(self._folder)

    def go_on_answering(self, answer: str | None) -> None:
        pass

    async def restart_server(self) -> None:
        pass

    def on_call(self, hook: Hook | None) -> None:
        pass


class NoopWorld(FilesWorld):
    """Nobody is served; what the applicator says is all there is."""

    def applicator(self) -> Applicator:
        self._newest = NoopApplicator()
        return self._newest

    async def answer(self, scenario: str) -> str | None:
        served = await self._newest.served(scenario)
        for document in self.data_dir.glob(f"models/{scenario}/*/model.json"):
            if hashlib.sha256(document.read_bytes()).hexdigest() == served:
                return answer_of(document.parent / "adapter/peft")
        return None


class WebhookWorld:
    """Somebody's deployment behind a webhook: it takes the files, serves them, and says where."""

    def __init__(self, data_dir: Path, receiver: FakeReceiver) -> None:
        self.data_dir = data_dir
        self.receiver = receiver
        self.client = InferenceClient(receiver.url, None, setting="-")

    def applicator(self) -> Applicator:
        webhook = WebhookApplicator(
            SecretStr(f"{self.receiver.url}/hook?token={SECRET}"),
            key=SecretStr(SECRET), kind="lora", attempts=2, first_wait=0.01,
        )  # fmt: skip
        return AdapterWebhookApplicator(webhook, self.data_dir)

    async def answer(self, scenario: str) -> str | None:
        """Of what the receiver serves: a node may ask it before the document says so."""
        if scenario not in self.receiver.served:
            return None
        return await self.client.complete(scenario, "what next?", max_tokens=8)

    def trouble(self, *, on: bool) -> None:
        self.receiver.refuses = on

    def go_on_answering(self, answer: str | None) -> None:
        self.receiver.goes_on_answering = answer

    async def restart_server(self) -> None:
        self.receiver.served.clear()

    def on_call(self, hook: Hook | None) -> None:
        self.receiver.on_call = hook


@asynccontextmanager
async def webhook_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """A receiver, played by `FakeReceiver`."""
    async with FakeReceiver() as receiver:
        world = WebhookWorld(data_dir, receiver)
        yield world
        await world.client.close()


@asynccontextmanager
async def files_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """A directory."""
    yield FilesWorld(data_dir)


@asynccontextmanager
async def noop_world(data_dir: Path) -> AsyncIterator[AdapterWorld]:
    """Nothing."""
    yield NoopWorld(data_dir)


WORLDS: dict[str, Kind] = {
    "blue_green": Kind(make=blue_green_world, many_scenarios=False),
    "files": Kind(make=files_world, probes=False),
    "llama_router": Kind(make=router_world),
    "llama_server": Kind(make=llama_server_world, many_scenarios=False, seamless=False),
    "noop": Kind(make=noop_world, probes=False, outlives=False, fails=False, seamless=False),
    "vllm": Kind(make=vllm_world),
    "webhook": Kind(make=webhook_world, keeps=False),
}
