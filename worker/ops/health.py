"""The HTTP face: /health says the process lives, /ready that it works, /metrics and /status what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from worker.errors import ConfigurationError

log = structlog.get_logger(__name__)


class HealthServer:
    """Read-only endpoints. `ready` gives the reasons why not; an empty answer means ready."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        registry: CollectorRegistry,
        refresh: Callable[[], Awaitable[None]],
        ready: Callable[[], Awaitable[list[str]]],
        status: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._host, self._port = host, port
        self._registry = registry
        self._refresh, self._ready, self._status = refresh, ready, status
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen; returns the port, which is a free one where 0 was asked for."""
        app = web.Application()
        app.router.add_get("/health", self._get_health)
        app.router.add_get("/ready", self._get_ready)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/status", self._get_status)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self._port} ({error.strerror}); "
                "set SWARM_HTTP_PORT to a free port, or to 0 for any"
            ) from error
        self._runner = runner
        port = int(runner.addresses[0][1])
        log.info("http_listening", host=self._host, port=port)
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _get_health(self, _request: web.Request) -> web.Response:
        # That this answers at all says it: the loop turns, and a dead task would have ended the process.
        return _verdict([], good="alive")

    async def _get_ready(self, _request: web.Request) -> web.Response:
        return _verdict(await self._ready(), good="ready")

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        await self._refresh()
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _get_status(self, _request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(dict(await self._status())), content_type="application/json")


def _verdict(problems: list[str], *, good: str) -> web.Response:
    body = {"status": f"not {good}" if problems else good, "problems": problems}
    return web.Response(body=orjson.dumps(body), status=503 if problems else 200, content_type="application/json")
