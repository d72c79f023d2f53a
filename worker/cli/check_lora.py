"""What `swarm-worker check` finds of LoRA: what is trained on and with what, and whether the inference server is there.

The settings themselves are looked at by the builder, as at every start.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from worker.cli.common import reading_store
from worker.cli.findings import Finding
from worker.configuration import base_model
from worker.errors import ApplyFailed, WorkerError
from worker.models.adapter import require_base
from worker.models.applicators.chosen import lora_applicator, server_processes
from worker.models.applicators.llama_client import LlamaClient
from worker.models.applicators.versions import decoded
from worker.models.applicators.vllm_client import VllmClient
from worker.models.files import ModelFiles
from worker.settings import Settings
from worker.store.port import Model, alias_of
from worker.training.lora.base_check import gpu_faults
from worker.training.lora.base_identity import ConfiguredBase
from worker.training.lora.requirements import PACKAGES
from worker.training.modes import parse_mode

_PREFIXES = ("lora_", "llama_", "vllm_")


async def lora_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Nothing where LoRA is neither trained nor configured."""
    if "lora" not in parse_mode(settings.processor_mode).kinds:
        idle = sorted(name for name in settings.model_fields_set if name.startswith(_PREFIXES))
        if idle:
            names = ", ".join(f"SWARM_{name.upper()}" for name in idle)
            yield Finding(
                what="lora",
                good=True,
                detail=f"SWARM_PROCESSOR_MODE is offline, so without effect: {names}; lora or full trains adapters",
            )
        return
    yield _training(settings)
    for fault in await asyncio.to_thread(lambda: list(gpu_faults(settings))):
        yield Finding(what="lora", good=False, detail=fault)
    yield await _serving(settings)
    async for finding in _live(settings):
        yield finding
    async for finding in _left_running(settings):
        yield finding


def _training(settings: Settings) -> Finding:
    if settings.lora_launcher is not None:
        by = f"by {settings.lora_launcher}"
    elif settings.lora_train_script is not None:
        by = f"by {settings.lora_train_script}"
    elif settings.lora_python_path is not None:
        by = f"in {settings.lora_python_path}"
    else:
        by = f"in {sys.executable} with {', '.join(f'{name} {found}' for name, found in lora_versions().items())}"
    return Finding(what="lora", good=True, detail=f"{settings.lora_objective} on {base_model(settings)}, {by}")


async def _serving(settings: Settings) -> Finding:
    what = f"lora served by {settings.lora_applicator}"
    try:
        return Finding(what=what, good=True, detail=await _looked_at(settings))
    except ApplyFailed as error:
        return Finding(what=what, good=False, detail=str(error))


async def _live(settings: Settings) -> AsyncIterator[Finding]:
    """Whether live adapters are served; nothing where none is live, or no store is there to say so."""
    live = await _live_adapters(settings)
    if not live:
        return
    applicator = lora_applicator(settings)
    files, base = ModelFiles(settings.data_dir), ConfiguredBase(base_model(settings))
    try:
        for model in live:
            what = f"adapter version {model.version} of {model.scenario}"
            try:
                content = await asyncio.to_thread(files.read, files.located(model))
                require_base(model, decoded(model, content), await asyncio.to_thread(base.sha256))
            except ApplyFailed as error:
                yield Finding(what=what, good=False, detail=f"it is live, but not to be brought anew: {error}")
                continue
            try:
                served = await applicator.served(model.scenario)
            except ApplyFailed as error:
                yield Finding(what=what, good=False, detail=f"it is live but not served: {error}")
                continue
            if served == model.sha256:
                yield Finding(what=what, good=True, detail="it is live, and served")
            elif served is None and settings.lora_applicator == "webhook":
                # One without GET says what it serves to the worker alone, when that brings it.
                detail = "it is live; what the receiver serves it did not tell us: `swarm-worker status` may know"
                yield Finding(what=what, good=True, detail=detail)
            else:
                yield Finding(
                    what=what,
                    good=False,
                    detail=f"it is live but not served: {applicator.target(model.scenario)} serves "
                    f"{served or 'no model'}; a worker that runs brings it there within a minute, or its status says "
                    "why it cannot",
                )
    finally:
        await applicator.close()


async def _live_adapters(settings: Settings) -> list[Model]:
    try:
        async with reading_store(settings) as store:
            named = [(await store.aliases(name)).get(alias_of("champion", "lora")) for name in settings.scenarios]
            models = [await store.model(model_id) for model_id in named if model_id is not None]
    except WorkerError:  # check looks at the store itself
        return []
    return [model for model in models if model is not None]


async def _left_running(settings: Settings) -> AsyncIterator[Finding]:
    """Servers of ours that outlived the setting under which they were started: nobody ends them, nobody asks them."""
    current = {"llama_server": ["one"], "blue_green": ["blue", "green"]}.get(settings.lora_applicator, [])
    for name, process in server_processes(settings).items():
        try:
            running = None if name in current else await process.running()
        except ApplyFailed:
            continue
        if running is not None:
            yield Finding(
                what="lora",
                good=True,
                detail=f"a llama-server of an earlier SWARM_LORA_APPLICATOR runs; end it with: kill {running.pid}",
            )


async def _looked_at(settings: Settings) -> str:
    """What answers; raises `ApplyFailed` where nothing of use does."""
    match settings.lora_applicator:
        case "llama_router":
            client = LlamaClient(settings.llama_url, settings.llama_api_key)
            return await _router(client, len(settings.scenarios)) + _readable(settings.data_dir)
        case "vllm":
            vllm = VllmClient(settings.vllm_url, settings.vllm_api_key)
            try:
                loaded = await vllm.adapters()
                await vllm.unload("swarm-worker-check")  # no such adapter: only looks whether it may be asked at all
                found = f"{vllm.shown} serves {len(loaded)} adapters, and takes others while it runs"
                return found + _readable(settings.data_dir)
            finally:
                await vllm.close()
        case _:
            applicator = lora_applicator(settings)
            try:
                return ", ".join(applicator.target(scenario) for scenario in settings.scenarios)
            finally:
                await applicator.close()


async def _router(client: LlamaClient, scenarios: int) -> str:
    try:
        props = await client.props()
    finally:
        await client.close()
    if props.max_instances and props.max_instances <= scenarios:
        raise ApplyFailed(
            f"{client.shown} runs {props.max_instances} models at most, and a swap needs one more than there are "
            f"scenarios; start it with --models-max {scenarios + 1}"
        )
    return f"{client.shown} is a router"


def _readable(data_dir: Path) -> str:
    """What a server of somebody else needs to read the adapters; nothing where others are let in."""
    models = data_dir.absolute() / "models"  # whose user the server has, nobody tells us
    closed = [folder for folder in (models, *models.parents) if folder.exists() and not folder.stat().st_mode & 0o011]
    if models.exists() and not closed:
        return ""
    return f"; it must run as the worker's user, since {closed[0] if closed else models} is closed to others"


def lora_versions() -> dict[str, str]:
    """Of the extra's packages that are installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
