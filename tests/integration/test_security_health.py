"""S18: health and status are for this machine unless told otherwise, and nothing can be changed through them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from worker.ops.health import HealthServer
from worker.settings import Settings, load_settings

PATHS = ("/health", "/ready", "/metrics", "/status")


@pytest.fixture
async def at() -> AsyncIterator[str]:
    """A server on the default address."""

    async def nothing() -> None:
        return None

    async def no_problems() -> list[str]:
        return []

    async def status() -> Mapping[str, Any]:
        return {"ready": True}

    server = HealthServer(
        host=load_settings().http_host, port=0, registry=CollectorRegistry(), refresh=nothing, ready=no_problems,
        status=status,
    )  # fmt: skip
    port = await server.start()
    yield f"http://127.0.0.1:{port}"
    await server.stop()


def test_nobody_outside_this_machine_is_answered_by_default() -> None:
    assert Settings.model_fields["http_host"].default == "127.0.0.1"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"])
async def test_only_looking_is_possible(at: str, method: str) -> None:
    async with aiohttp.ClientSession() as http:
        for path in PATHS:
            async with http.request(method, at + path, data=b"{}") as answer:
                assert answer.status == 405, (method, path)
                assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}


async def test_looking_works_with_and_without_the_body(at: str) -> None:
    async with aiohttp.ClientSession() as http:
        for path in PATHS:
            async with http.get(at + path) as answer, http.head(at + path) as head:
                assert (answer.status, head.status) == (200, 200)
                assert await head.read() == b""


async def test_nothing_else_is_there(at: str) -> None:
    """No file of the machine, no page that lists what there is."""
    async with aiohttp.ClientSession() as http:
        for path in ("/", "/shutdown", "/status/", "/../etc/passwd", "/%2e%2e/etc/passwd", "/static/x"):
            async with http.get(at + path) as answer:
                assert answer.status == 404, path
