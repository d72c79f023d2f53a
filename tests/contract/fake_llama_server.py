"""A llama-server of one adapter, and the process that runs it, as far as the applicators that start servers see them.

b11434's traps are in it: whatever name is asked for, the one adapter answers; POST /lora-adapters with an id that is
not there says success and takes the adapter out of force; requests that are under way when the process is stopped are
lost; it answers before its model is loaded, with 503; an adapter that cannot be loaded ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from aiohttp import web

from tests.contract.adapter_building import BASE_ANSWER
from tests.contract.fake_server import FakeServer, Handler, refusal
from worker.errors import ApplyFailed
from worker.models.applicators.server_process import Running, ServerProcess

#: Seconds that a process takes to load its model.
_STEP = 0.02


class FakeLlamaServer(FakeServer):
    """What runs on one port, and goes on when the worker that started it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.command: list[str] | None = None
        self.environment: dict[str, str] = {}
        self.starts = 0
        self.refuse_new = False  # an adapter that never ran here cannot be loaded
        self.go_on = asyncio.Event()  # completions wait for it
        self.go_on.set()
        self._ran: set[str] = set()
        self._ready = False
        self._answer = BASE_ANSWER
        self._scale = 1.0
        self._tasks = -1
        self._requests: set[asyncio.Task[object]] = set()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/lora-adapters", self._adapters),
            web.post("/lora-adapters", self._scale_adapters),
            web.get("/slots", self._slots),
            web.post("/v1/completions", self._complete),
        ]

    def wants_key(self, path: str) -> bool:
        return path != "/health"

    def option(self, name: str) -> str:
        """Of its command line."""
        assert self.command is not None
        return next(value for key, value in pairwise(self.command) if key == name)

    async def run(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """The process is there; its model is loaded in a moment, or the process ends."""
        assert self.command is None
        self.command, self.environment, self._ready, self._scale = [*command], dict(environment), False, 1.0
        self.api_key = self.environment.get("LLAMA_API_KEY")
        self.starts += 1
        await self.listen(self.option("--host"), int(self.option("--port")))
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        await asyncio.sleep(_STEP)
        adapter = self.option("--lora")
        if self.refuse_new and adapter not in self._ran:
            await self.stop()
        else:
            self._ran.add(adapter)
            self._answer = self._with(Path(adapter))
            self._ready = True

    def _with(self, adapter: Path) -> str:
        """A stranger's may be nowhere."""
        return self.answer_with(adapter) if adapter.exists() else BASE_ANSWER

    async def stop(self) -> None:
        """The end of the process, by whoever."""
        self.command = None
        for request in self._requests:
            request.cancel()
        await super().stop()

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request) if self._ready else refusal(503, "Loading model")

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _adapters(self, request: web.Request) -> web.Response:
        return web.json_response(
            [{"id": 0, "path": self.option("--lora"), "scale": self._scale, "task_name": "", "prompt_prefix": ""}]
        )

    async def _scale_adapters(self, request: web.Request) -> web.Response:
        rows = await request.json()
        if not isinstance(rows, list):
            return refusal(400, "Request body must be an array")
        self._scale = sum(row.get("scale", 0.0) for row in rows if row.get("id") == 0)
        return web.json_response({"success": True})

    async def _slots(self, request: web.Request) -> web.Response:
        slots = [
            {"id": 0, "is_processing": bool(self._requests), **({"id_task": self._tasks} if self._tasks >= 0 else {})}
        ]
        return web.json_response(slots)

    async def _complete(self, request: web.Request) -> web.Response:
        self._tasks += 1
        work: asyncio.Task[object] = asyncio.create_task(self.go_on.wait())
        self._requests.add(work)
        try:
            await asyncio.wait((work,))
        finally:
            self._requests.discard(work)
        if work.cancelled():
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        text = self._answer if self._scale else BASE_ANSWER
        return web.json_response({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]})


class FakeServerProcess(ServerProcess):
    """A worker's hold on it, by the pid file in reality."""

    def __init__(self, server: FakeLlamaServer) -> None:
        super().__init__(pid_file=Path("server.pid"), log_file=Path("server.log"))
        self._server = server

    async def running(self) -> Running | None:
        return None if self._server.command is None else Running(1, self._server.command)

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        if self._server.command is not None:
            raise ApplyFailed("a server runs already")
        await self._server.run(command, environment)
        await self._server.call("start")

    async def stop(self, *, grace: float) -> None:
        if self._server.command is not None:
            await self._server.call("stop")
            await self._server.stop()

    def said(self) -> str:
        return "failed to load lora adapter"
