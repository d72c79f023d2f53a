"""A webhook's receiver that serves adapters: it reads them where the document says, and answers as they do."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from tests.contract.fake_server import FakeServer


class FakeReceiver(FakeServer):
    """Somebody else's deployment; an adapter is served there under its scenario's name."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False
        self.names_endpoint = True
        self.endpoint_url: str | None = None
        self.endpoint_down = False
        self.stuck = False
        self.kinds: set[str] = set()
        #: SHA-256 and answer, by scenario.
        self.served: dict[str, tuple[str, str]] = {}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/hook", self._ask),
            web.post("/hook", self._take),
            web.post("/v1/completions", self._complete),
        ]

    def wants_key(self, path: str) -> bool:
        return path == "/v1/completions"

    async def _ask(self, request: web.Request) -> web.Response:
        self.kinds.add(request.headers["X-Swarm-Kind"])
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
        self.kinds.add(request.headers["X-Swarm-Kind"])
        if self.refuses:
            return web.Response(status=503)
        document = json.loads(await request.read())
        scenario = document["scenario"]
        assert document["kind"] == "lora"
        if request.headers["X-Swarm-Event"] == "withdraw":
            self.served.pop(scenario, None)
        elif not self.stuck:
            directory = Path(urlsplit(document["uri"]).path)
            self.served[scenario] = (document["sha256"], self.answer_with(directory / "adapter/peft"))
        return web.Response(text="thanks")

    async def _complete(self, request: web.Request) -> web.Response:
        if self.endpoint_down:
            return web.Response(status=503)
        name = (await request.json())["model"]
        return web.json_response({"choices": [{"text": self.served[name][1]}]})
