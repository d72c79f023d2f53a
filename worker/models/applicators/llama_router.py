"""Serves adapters through one llama-server in router mode: a model of its own for each version, `<scenario>@<version>`.

The router is started by its owner, without -m: `llama-server --models-preset FILE --models-max N`, where FILE is
SWARM_LLAMA_PRESET. Nobody is interrupted: the new version is loaded beside the old one and probed, then the pointer
names it, and only when the old one has no request left is it unloaded. Its section stays in the preset until the next
swap, so that the router loads it again for somebody who read the pointer just before. Every step may be the last one
before a crash; the same apply again finds what is done and does the rest.

One process runs for each version in use, and two for a scenario during a swap: N must be at least the number of
scenarios plus one. The base alone, `base`, has a process once somebody asks for it; with N one larger it keeps that.
With --no-models-autoload, whoever asks late for the version before is refused.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path

import structlog
from msgspec import UNSET

from worker import crash
from worker.errors import ApplyFailed
from worker.models import adapter
from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.models.applicators.inference_client import ServerRefused
from worker.models.applicators.llama_client import ListedModel, LlamaClient
from worker.models.applicators.probe import Probes, probe
from worker.models.applicators.router_preset import BASE, PresetFile, Section, changed, section_text, with_base
from worker.models.applicators.versions import belongs_to, require_gguf, served_name
from worker.store.port import Model
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)

#: How the router refuses a request for a section that has no process: it may not load one, or could not.
_NOT_RUNNING = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR})
#: Seconds between two looks at the router.
_LOOK_SECONDS = 0.1
#: Seconds until a large base is in memory.
_LOAD_SECONDS = 600.0
#: Seconds until a process that was told to stop has ended; the router kills it after `stop-timeout`, 10 s by default.
_STOP_SECONDS = 30.0
#: Seconds without a request after which a version counts as drained: a request just behind a look is not in a slot yet.
_QUIET_SECONDS = 1.0


class LlamaRouterApplicator:
    """One router for all scenarios; the preset file is written by this worker alone."""

    name = "llama_router"

    def __init__(
        self,
        client: LlamaClient,
        *,
        preset: PresetFile,
        data_dir: Path,
        serving_base: Path,
        drain_seconds: float,
        load_seconds: float = _LOAD_SECONDS,
        quiet_seconds: float = _QUIET_SECONDS,
    ) -> None:
        """`serving_base` is the GGUF file under the adapters; `drain_seconds` bound the wait for an old one's users."""
        self._client = client
        self._preset = preset
        self._documents = CurrentDocuments(data_dir, "lora")
        self._base = serving_base.absolute()
        self._drain_seconds = drain_seconds
        self._load_seconds = load_seconds
        self._quiet_seconds = quiet_seconds
        self._preset_turn = asyncio.Lock()

    def target(self, scenario: str) -> str:
        return f"{self._client.shown} ({scenario})"

    async def create_preset(self) -> None:
        """Have one that names the base: without it no router starts, nor is there whom to ask. Raises `ApplyFailed`."""
        await asyncio.to_thread(self._preset.create, self._base)

    async def apply(self, model: Model, content: bytes) -> str:
        probes = await asyncio.to_thread(self._documents.probes, model, content)
        file = adapter.adapter_directory(model) / adapter.GGUF_FILE
        require_gguf(file)
        name = served_name(model.scenario, model.version)
        props = await self._client.props()
        before = await asyncio.to_thread(self._documents.named, model.scenario)
        await self._release_others(model.scenario, but={name, before})
        if not await asyncio.to_thread(self._documents.knows, model):
            await self._release([each for each in await self._running(model.scenario, but=()) if each == name])
        await self._put(model.scenario, Section(name, self._base, file), keep={before})
        crash.point("adapter_listed")
        if props.models_autoload:
            await self._make_room(name, limit=props.max_instances)
        await self._load(name, file, limit=props.max_instances)
        crash.point("adapter_loaded")
        answers = await probe(self._client, probes, name)
        if not answers.served:
            if name != before:  # whoever tries again gets it loaded anew
                await self._release_others(model.scenario, but={before})
            raise ApplyFailed(f"{name} at {self._client.shown} does not answer as the adapter does: {answers.detail}")
        crash.point("adapter_probed")
        endpoint = Endpoint(url=self._client.url, model=name)
        await asyncio.to_thread(self._documents.write, model, content, endpoint)
        crash.point("pointer_moved")
        log.info("adapter_switched", scenario=model.scenario, model=name, before=before, detail=answers.detail)
        await self._release_others(model.scenario, but={name})
        return answers.detail

    async def served(self, scenario: str) -> str | None:
        """A version without a process is served too where the router loads what is asked for."""
        try:
            document = await asyncio.to_thread(self._documents.read, scenario)
            if document is None or document.endpoint == UNSET or document.endpoint.url != self._client.url:
                return None
            name = document.endpoint.model
            content = bytes(document.model)
            expected = Probes(adapter.decode(content).probes)
        except (DocumentDamaged, adapter.AdapterUnreadable):
            return "unreadable"  # no hash equals it
        listed = await self._look(name)
        if listed is None or listed.option("--model") != str(self._base):
            return None
        # In a copy of the data directory it may be another by now.
        if listed.option("--lora") != str(self._documents.adapter_file(document)):
            return f"something else ({listed.option('--lora')})"
        try:
            answers = await probe(self._client, expected, name)
        except ServerRefused as error:
            if error.status in _NOT_RUNNING:
                return None
            raise
        if not answers.asked and not listed.ready:
            return None
        return hashlib.sha256(content).hexdigest() if answers.served else f"something else ({answers.detail})"

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._documents.remove, scenario)
        await self._release(await self._running(scenario, but=()))
        await self._put(scenario, None, keep=())

    async def close(self) -> None:
        await self._client.close()

    async def _running(self, scenario: str, *, but: Collection[str | None]) -> list[str]:
        """This scenario's versions that have a process."""
        return [
            each.id
            for each in await self._client.models()
            if each.running and belongs_to(scenario, each.id) and each.id not in but
        ]

    async def _put(self, scenario: str, section: Section | None, *, keep: Collection[str | None]) -> None:
        """Have the router know this section, the base, and of the scenario's others those in `keep` or that run."""
        async with self._preset_turn:
            running = await self._running(scenario, but=())
            preset = await asyncio.to_thread(self._preset.read)
            if section is not None and section.name in running and section_text(preset, section.name) != section.text():
                await self._release([section.name])  # a reload would stop it in the middle of its answers
            text = with_base(changed(preset, scenario, keep={*keep, *running}, put=section), self._base)
            if text != preset:
                await asyncio.to_thread(self._preset.write, text)
            listed = await self._client.models(reload=True)
        if section is not None and section.name not in {each.id for each in listed}:
            raise ApplyFailed(
                f"{self._client.shown} does not list {section.name}; "
                f"is {self._preset.path} (SWARM_LLAMA_PRESET) its --models-preset?"
            )

    async def _make_room(self, name: str, *, limit: int) -> None:
        """Unload the base alone where there is no room beside it: who asks for it gets it loaded again."""
        running = [each.id for each in await self._client.models() if each.running and each.id != name]
        if 0 < limit <= len(running) and BASE in running:
            preset = await asyncio.to_thread(self._preset.read)
            if section_text(preset, BASE) == Section(BASE, self._base).text():  # else it is its owner's
                await self._release([BASE])

    async def _load(self, name: str, file: Path, *, limit: int) -> None:
        """Have the router run `name`, with `file`; its own way to make room would stop somebody else's model."""
        others = [each.id for each in await self._client.models() if each.running and each.id != name]
        if 0 < limit <= len(others):
            raise ApplyFailed(
                f"{self._client.shown} runs {len(others)} models, which is its --models-max; start it with a larger "
                f"one: {name} takes a place beside {', '.join(sorted(others))}"
            )
        await self._client.load(name)
        listed = await self._until(name, lambda each: each.ready or not each.running, seconds=self._load_seconds)
        if not listed.ready:
            code = None if listed.status is None else listed.status.exit_code
            raise ApplyFailed(
                f"{self._client.shown} could not load {name} (exit code {code}); its log says why. "
                f"Is {self._base} the base that the adapter was trained on, and may its user read {file}?"
            )
        loaded = listed.option("--lora")
        if loaded != str(file):
            raise ApplyFailed(
                f"{self._client.shown} runs {name} with {loaded or 'no adapter'}, not with {file}; "
                f"is {self._preset.path} (SWARM_LLAMA_PRESET) its --models-preset?"
            )

    async def _release_others(self, scenario: str, *, but: Collection[str | None]) -> None:
        """Unload what is no longer served; what cannot be unloaded now is left to the next apply."""
        try:
            await self._release(await self._running(scenario, but=but))
        except ApplyFailed as error:
            log.warning("old_adapter_still_loaded", scenario=scenario, error=str(error))

    async def _release(self, names: Collection[str]) -> None:
        """Unload versions once nobody uses them, or the time for that is over."""
        for name in names:
            await self._drain(name)
            await self._client.unload(name)
            await self._until(name, lambda each: not each.running, seconds=_STOP_SECONDS)
            crash.point("adapter_unloaded")

    async def _drain(self, name: str) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + self._drain_seconds
        quiet_since: float | None = None
        while (now := clock()) < end:
            if await self._client.busy(name) is not False:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            if quiet_since is not None and now - quiet_since >= self._quiet_seconds:
                return
            await asyncio.sleep(_LOOK_SECONDS)
        if quiet_since is None:
            log.warning("adapter_still_in_use", model=name, after_s=self._drain_seconds)

    async def _until(self, name: str, is_so: Callable[[ListedModel], bool], *, seconds: float) -> ListedModel:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    listed = await self._look(name)
                    if listed is None:
                        raise ApplyFailed(f"{self._client.shown} lists {name} no more; who else writes its preset?")
                    if is_so(listed):
                        return listed
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError as error:
            raise ApplyFailed(f"{self._client.shown} did not get {name} ready or stopped in {seconds:g} s") from error

    async def _look(self, name: str) -> ListedModel | None:
        return next((each for each in await self._client.models() if each.id == name), None)
