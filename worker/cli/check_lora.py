"""What `swarm-worker check` finds of LoRA: what is trained on and with what, and whether the inference server is there.

The settings themselves are looked at by the builder, as at every start.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from worker.cli.findings import Finding
from worker.configuration import base_model
from worker.errors import ApplyFailed
from worker.models.applicators.chosen import lora_applicator
from worker.models.applicators.llama_client import LlamaClient
from worker.models.applicators.vllm_client import VllmClient
from worker.settings import Settings
from worker.training.lora.requirements import PACKAGES
from worker.training.modes import parse_mode

_PREFIXES = ("lora_", "llama_", "vllm_")


async def lora_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Nothing where LoRA is neither trained nor configured."""
    if "lora" not in parse_mode(settings.processor_mode).kinds:
        idle = sorted(name for name in settings.model_fields_set if name.startswith(_PREFIXES))
        if idle:
            names = ", ".join(f"SWARM_{name.upper()}" for name in idle)
            yield Finding(what="lora", good=True, detail=f"SWARM_PROCESSOR_MODE is offline, so without effect: {names}")
        return
    yield _training(settings)
    yield await _serving(settings)


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
