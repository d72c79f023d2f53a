"""A webhook's receiver that serves adapters: it reads them where the document says, and answers as they do."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from tests.contract.adapter_building import answer_of


class FakeReceiver:
    """Somebody else's deployment; an adapter is served there under its scenario's name."""

    def __init__(self) -> None:
        self.url = ""
        self.refuses = False
        self.names_endpoint = True
        self.wants_key = False
        self.endpoint_url: str | None = None
        self.stuck = False
        self.kinds: set[str] = set()
        #: SHA-256 and answer, by scenario.
        self.served: dict[str, tuple[str, str]] = {}
        self.on_call: Callable[[str], Awaitable[None]] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application()
        app.router.add_get("/hook", self._ask)
        app.router.add_post("/hook", self._take)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """End."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _note(self, request: web.Request) -> None:
        if "X-Swarm-Kind" in request.headers:
            self.kinds.add(request.headers["X-Swarm-Kind"])
        if self.on_call is not None:
            await self.on_call(f"{request.method} {request.path}")

    async def _ask(self, request: web.Request) -> web.Response:
        await self._note(request)
        scenario = request.headers["X-Swarm-Scenario"]
        if scenario not in self.served:
            return web.Response(status=404)
        answer: dict[str, object] = {"sha256": self.served[scenario][0]}
        if self.names_endpoint:
            answer["endpoint"] = {
                "url": self.url if self.endpoint_url is None else self.endpoint_url, "model": scenario,
            }  # fmt: skip
        return web.json_response(answer)

    async def _take(self, request: web.Request) -> web.Response:
        await self._note(request)
        if self.refuses:
            return web.Response(status=503)
        document = json.loads(await request.read())
        scenario = document["scenario"]
        assert document["kind"] == "lora"
        if request.headers["X-Swarm-Event"] == "withdraw":
            self.served.pop(scenario, None)
        elif not self.stuck:
            directory = Path(urlsplit(document["uri"]).path)
            self.served[scenario] = (document["sha256"], answer_of(directory / "adapter/peft"))
        return web.Response(text="thanks")

    async def _complete(self, request: web.Request) -> web.Response:
        await self._note(request)
        if self.wants_key:
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        name = (await request.json())["model"]
        return web.json_response({"choices": [{"text": self.served[name][1]}]})
