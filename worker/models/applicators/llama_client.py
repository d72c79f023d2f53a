"""The HTTP interface of llama.cpp's llama-server, alone and as a router (written against b11434)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal
from urllib.parse import quote

from msgspec import Struct
from pydantic import SecretStr

from worker.errors import ApplyFailed
from worker.models.applicators.inference_client import InferenceClient, ServerRefused

#: Seconds for a reload: it waits until sections that were changed by hand have stopped (stop-timeout, 10 s by default).
_RELOAD_SECONDS = 60.0


class ModelStatus(Struct):
    """A section of the router's preset, as it runs."""

    value: str  # unloaded | loading | loaded | sleeping
    args: list[str] = []  # of its process
    exit_code: int | None = None


class ListedModel(Struct):
    """A model that the server lists; `status` is there in router mode only."""

    id: str
    status: ModelStatus | None = None

    @property
    def running(self) -> bool:
        """Whether it has a process; a sleeping one wakes up with the next request."""
        return self.status is not None and self.status.value in {"loading", "loaded", "sleeping"}

    @property
    def ready(self) -> bool:
        """Whether it answers at once."""
        return self.status is not None and self.status.value in {"loaded", "sleeping"}

    def option(self, name: str) -> str | None:
        """The value that its process got for a command-line option, such as `--lora`."""
        args = [] if self.status is None else self.status.args
        return next((value for key, value in pairwise(args) if key == name), None)


class ServedAdapter(Struct):
    """An adapter that a server was started with, and how strongly it is in force."""

    id: int
    path: str
    scale: float


class RouterProps(Struct):
    """What the router says of itself."""

    role: Literal["router"]
    max_instances: int  # 0: no limit
    models_autoload: bool = True


class _Models(Struct):
    data: list[ListedModel]


class Slot(Struct):
    """Room for one request."""

    is_processing: bool
    id_task: int = -1  # of the request that it works on, or that it worked on last


class LlamaClient(InferenceClient):
    """llama-server, asked for one thing at a time."""

    def __init__(self, url: str, api_key: SecretStr | None, *, setting: str = "SWARM_LLAMA_URL") -> None:
        super().__init__(url, api_key, setting=setting)

    async def adapters(self) -> list[ServedAdapter]:
        """The adapters of a server that is no router."""
        return self.parse(await self.ask("GET", "/lora-adapters"), list[ServedAdapter])

    async def slots(self) -> list[Slot]:
        """What a server that is no router works on."""
        return self.parse(await self.ask("GET", "/slots"), list[Slot])

    async def busy(self, model: str) -> bool | None:
        """Whether this section of the router works on a request; None where it keeps that to itself.

        Nothing is loaded by asking: a section without a process is not busy.
        """
        path = f"/slots?model={quote(model, safe='')}&autoload=0"
        try:
            slots = self.parse(await self.ask("GET", path), list[Slot])
        except ServerRefused as error:
            if error.status == 400:  # noqa: PLR2004 - "model is not loaded", "not found"
                return False
            if error.status == 501:  # noqa: PLR2004 - started with --no-slots
                return None
            raise
        return any(slot.is_processing for slot in slots)

    async def props(self) -> RouterProps:
        """Of a router. Raises `ApplyFailed` where the server is none."""
        text = await self.ask("GET", "/props")
        try:
            return self.parse(text, RouterProps)
        except ApplyFailed as error:
            raise ApplyFailed(
                f"{self.shown} is no llama-server in router mode; start it without -m and with "
                "--models-preset on the file of SWARM_LLAMA_PRESET, or take another SWARM_LORA_APPLICATOR"
            ) from error

    async def models(self, *, reload: bool = False) -> list[ListedModel]:
        """What there is; `reload` has the router read its preset again first.

        A section that runs and was changed is stopped by that, in the middle of its answers: change only those that
        do not run.
        """
        path, seconds = ("/models?reload=1", _RELOAD_SECONDS) if reload else ("/models", None)
        return self.parse(await self.ask("GET", path, seconds=seconds), _Models).data

    async def load(self, model: str) -> None:
        """Start a section's process; no error where it runs. It answers at once: look at `models` for when it is up."""
        await self._command("/models/load", model, done="already running")

    async def unload(self, model: str) -> None:
        """Stop a section's process; no error where none runs. It answers at once, as `load` does."""
        await self._command("/models/unload", model, done="not running")

    async def _command(self, path: str, model: str, *, done: str) -> None:
        try:
            await self.ask("POST", path, {"model": model})
        except ServerRefused as error:
            if done not in str(error):
                raise
