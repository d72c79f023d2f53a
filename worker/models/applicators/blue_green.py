"""Serves adapters by two llama-servers that take turns: nobody is interrupted, and a bad adapter never gets a request.

The new adapter is started on the other server and probed, then the pointer names that one, and the old server ends once
no node asks it any more. What holds is read from outside, the pointer and the two pid files, so a worker that was
killed at any step, or is started anew, goes on from what is there. The servers are no children of the worker and
outlive it. One pair serves one scenario.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import structlog

from worker import crash
from worker.errors import ApplyFailed
from worker.models.adapter import GGUF_FILE, AdapterUnreadable, adapter_directory
from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.models.applicators.own_server import OwnServer, PortTaken
from worker.models.applicators.probe import ProbeResult, Probes
from worker.models.applicators.server_state import Colour, Pair, ServerState
from worker.models.applicators.strangers import withdraw_from_strangers
from worker.models.applicators.versions import served_name
from worker.store.port import Model
from worker.wire.served import Endpoint, ServedModel

log = structlog.get_logger(__name__)

#: Seconds without a request after which the old server ends. A node reads the pointer and asks then: in between it has
#: the old address. Nodes that keep an address for longer keep the old server busy, and so alive, with their requests.
_QUIET_SECONDS = 2.0


class BlueGreenApplicator:
    """The original's `BlueGreenManager`, as an applicator."""

    name = "blue_green"

    def __init__(
        self,
        servers: Mapping[Colour, OwnServer],
        *,
        data_dir: Path,
        drain_seconds: float,
        quiet_seconds: float = _QUIET_SECONDS,
    ) -> None:
        """`drain_seconds` bound the wait for the requests of an old adapter."""
        self._servers = servers
        self._documents = CurrentDocuments(data_dir, "lora")
        self._drain_seconds = drain_seconds
        self._quiet_seconds = quiet_seconds
        self._pair: Pair | None = None  # while a switch is under way

    def target(self, scenario: str) -> str:
        return f"{self._servers['blue'].url}, {self._servers['green'].url} ({scenario})"

    async def state(self, scenario: str) -> Pair:
        """What goes on, and which server is the one to ask."""
        return self._pair or await self._found(self._colour(await self._document(scenario)))

    async def apply(self, model: Model, content: bytes) -> str:
        name = served_name(model.scenario, model.version)
        probes = await asyncio.to_thread(self._documents.probes, model, content)
        file = adapter_directory(model) / GGUF_FILE
        try:
            pair = await self.state(model.scenario)
            active = self._servers[pair.active]
            known = await asyncio.to_thread(self._documents.knows, model)
            answers = await active.holds(active.command(name, file), probes) if known else None
            if answers is None:
                self._pair = pair.starting()
                answers = await self._start(pair.standby, name, file, probes)
                pair = self._pair = self._pair.switched()
            else:
                pair = Pair(ServerState.ACTIVE, pair.active)  # seen to serve, also where the pointer to it was lost
            endpoint = Endpoint(url=self._servers[pair.active].url, model=name)
            await asyncio.to_thread(self._documents.write, model, content, endpoint)
            crash.point("pointer_moved")
            log.info("adapter_switched", scenario=model.scenario, model=name, server=pair.active, detail=answers.detail)
            self._pair = pair.releasing()
            await self._release(pair.standby)
        except PortTaken:
            await withdraw_from_strangers(self._documents, model.scenario, self._servers.values())
            raise
        finally:
            self._pair = None
        return answers.detail

    async def served(self, scenario: str) -> str | None:
        try:
            document = await asyncio.to_thread(self._documents.read, scenario)
            colour = self._colour(document)
            if document is None or colour is None:
                return None
            return await self._servers[colour].served(document, self._documents.adapter_file(document))
        except (DocumentDamaged, AdapterUnreadable):
            return "unreadable"  # no hash equals it

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._documents.remove, scenario)
        for colour in self._servers:
            await self._end(colour)

    async def close(self) -> None:
        for server in self._servers.values():
            await server.close()

    async def _start(self, colour: Colour, name: str, file: Path, probes: Probes) -> ProbeResult:
        """Raises `ApplyFailed` where the adapter is no good; its server is stopped then."""
        server = self._servers[colour]
        command = server.command(name, file)
        await self._end(colour)
        try:
            return await server.bring(command, probes)
        except ApplyFailed:
            await server.stop()
            raise

    async def _release(self, colour: Colour) -> None:
        try:
            await self._end(colour)
        except ApplyFailed as error:  # the new one is served: the next switch ends what is left
            log.warning("old_server_still_runs", server=colour, error=str(error))
        crash.point("adapter_unloaded")

    async def _end(self, colour: Colour) -> None:
        server = self._servers[colour]
        if await server.runs() is not None:
            await server.drain(self._drain_seconds, quiet_seconds=self._quiet_seconds)
            await server.stop()

    async def _document(self, scenario: str) -> ServedModel | None:
        try:
            return await asyncio.to_thread(self._documents.read, scenario)
        except DocumentDamaged:
            return None

    def _colour(self, document: ServedModel | None) -> Colour | None:
        """Which of our servers the pointer names."""
        endpoint = None if document is None else document.endpoint
        if not isinstance(endpoint, Endpoint):
            return None
        return next((colour for colour, server in self._servers.items() if server.url == endpoint.url), None)

    async def _found(self, colour: Colour | None) -> Pair:
        """Where nobody is named it is blue that runs, or green, if only as one that is down: blue is started first."""
        if colour is None:
            colour = "green" if await self._servers["blue"].runs() is None else "blue"
        runs = await self._servers[colour].runs() is not None
        return Pair(ServerState.ACTIVE if runs else ServerState.DOWN, colour)
