"""What servers that tests play have in common: they listen, note what they are asked, and may want a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Self, TypeAlias

from aiohttp import web

from tests.contract.adapter_building import answer_of

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeServer:
    """On a loopback port; as a context manager it listens on a free one."""

    def __init__(self, *, api_key: str | None = None) -> None:
        self.api_key = api_key
        self.url = ""
        self.calls: list[str] = []
        #: Called with each call before it is answered.
        self.on_call: Callable[[str], Awaitable[None]] | None = None
        #: What it goes on answering, whatever adapter it is told to load from now on.
        self.goes_on_answering: str | None = None
        self._runner: web.AppRunner | None = None

    def routes(self) -> Iterable[web.RouteDef]:
        """What it answers."""
        raise NotImplementedError

    def wants_key(self, path: str) -> bool:
        """Whether this path is for those who have the key."""
        return True

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer somebody who is let in."""
        return await handler(request)

    def answer_with(self, path: Path) -> str:
        """What it answers that was told to load this file or directory."""
        answer = answer_of(path)
        return answer if self.goes_on_answering is None else self.goes_on_answering

    async def start(self) -> None:
        """Listen on a free port."""
        await self.listen("127.0.0.1", 0)

    async def listen(self, host: str, port: int) -> None:
        """Listen there."""
        app = web.Application(middlewares=[self._outer])
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """End; harmless where it has ended."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def call(self, what: str) -> None:
        """A step of the worker reaches it."""
        self.calls.append(what)
        if self.on_call is not None:
            await self.on_call(what)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @web.middleware
    async def _outer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await self.call(f"{request.method} {request.path_qs}")
        key = request.headers.get("Authorization")
        if self.api_key and self.wants_key(request.path) and key != f"Bearer {self.api_key}":
            return refusal(401, "Invalid API Key")
        return await self.handle(request, handler)


def refusal(status: int, message: str, kind: str = "invalid_request_error") -> web.Response:
    """An error as servers of the OpenAI kind write it."""
    return web.json_response({"error": {"code": status, "message": message, "type": kind}}, status=status)
