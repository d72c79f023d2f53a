"""Serves adapters by one llama-server that we start: a swap restarts it with the new adapter, a short downtime.

Stop (once it has no request, or the time for that is over), start with the adapter, wait until it is healthy, probe,
name it in the pointer. Where the new one is no good, the one before is started again. The server is no child of the
worker and outlives it; the next worker finds it by its pid file. One server serves one scenario.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from worker import crash
from worker.errors import ApplyFailed
from worker.models.adapter import GGUF_FILE, AdapterUnreadable, adapter_directory
from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.models.applicators.own_server import OwnServer, PortTaken
from worker.models.applicators.probe import ProbeResult, Probes
from worker.models.applicators.strangers import withdraw_from_strangers
from worker.models.applicators.versions import served_name
from worker.store.port import Model
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)


class LlamaServerApplicator:
    """The original's `LlamaServerApplicator`."""

    name = "llama_server"

    def __init__(self, server: OwnServer, *, data_dir: Path, drain_seconds: float) -> None:
        """`drain_seconds` bound the wait for requests that are under way before a restart."""
        self._server = server
        self._documents = CurrentDocuments(data_dir, "lora")
        self._drain_seconds = drain_seconds

    def target(self, scenario: str) -> str:
        return f"{self._server.url} ({scenario})"

    async def apply(self, model: Model, content: bytes) -> str:
        name = served_name(model.scenario, model.version)
        probes = await asyncio.to_thread(self._documents.probes, model, content)
        command = self._server.command(name, adapter_directory(model) / GGUF_FILE)
        known = await asyncio.to_thread(self._documents.knows, model)
        answers = await self._server.holds(command, probes) if known else None
        if answers is None:
            try:
                answers = await self._exchange(command, probes)
            except PortTaken:
                await withdraw_from_strangers(self._documents, model.scenario, [self._server])
                raise
        endpoint = Endpoint(url=self._server.url, model=name)
        await asyncio.to_thread(self._documents.write, model, content, endpoint)
        crash.point("pointer_moved")
        log.info("adapter_switched", scenario=model.scenario, model=name, detail=answers.detail)
        return answers.detail

    async def served(self, scenario: str) -> str | None:
        try:
            document = await asyncio.to_thread(self._documents.read, scenario)
            return await self._server.served(document, self._documents.adapter_file(document) if document else None)
        except (DocumentDamaged, AdapterUnreadable):
            return "unreadable"  # no hash equals it

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._documents.remove, scenario)
        await self._stop()

    async def close(self) -> None:
        await self._server.close()

    async def _exchange(self, command: list[str], probes: Probes) -> ProbeResult:
        """From what runs to what should; back again where that fails, and then `ApplyFailed`."""
        before = await self._server.runs()
        await self._stop()
        crash.point("adapter_unloaded")
        try:
            return await self._server.bring(command, probes)
        except ApplyFailed as error:
            await self._server.stop()
            if before is None or before == command:
                raise
            try:
                await self._server.bring_back(before)
            except ApplyFailed as other:
                raise ApplyFailed(f"{error}; and what ran before does not start again: {other}") from error
            raise

    async def _stop(self) -> None:
        if await self._server.runs() is not None:
            # A moment without requests is enough: those that come now would be refused in the next one anyway.
            await self._server.drain(self._drain_seconds, quiet_seconds=0)
            await self._server.stop()
