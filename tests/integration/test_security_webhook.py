"""S3: what a webhook gets becomes the model that agents follow; it goes to nobody whose certificate is not trusted."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.integration.tls_door import Certificates

#: A process of its own, since the HTTP client reads its authorities when it is imported.
_APPLY = """
import asyncio, hashlib, sys
from pydantic import SecretStr
from worker.errors import ApplyFailed
from worker.models.applicators.webhook import WebhookApplicator
from worker.store.port import Model

CONTENT = b"{}"
MODEL = Model(
    model_id="m" * 32, scenario="S", version=3, kind="offline", run_id="r", created_at_ms=1, uri="file:///x",
    sha256=hashlib.sha256(CONTENT).hexdigest(), lineage={}, metrics={}, gate_verdict="blessed", gate_reasons=[],
)

async def main():
    webhook = WebhookApplicator(SecretStr(sys.argv[1]), key=SecretStr("canary"))
    try:
        await webhook.apply(MODEL, CONTENT)
        print("applied")
    except ApplyFailed as error:
        print(error)
    finally:
        await webhook.close()

asyncio.run(main())
"""


@asynccontextmanager
async def _receiver(context: ssl.SSLContext) -> AsyncIterator[tuple[list[str], str]]:
    """A receiver, the requests it has seen, and its URL."""
    seen: list[str] = []

    async def take(request: web.Request) -> web.Response:
        seen.append(request.method)
        return web.json_response({"sha256": "x"})

    app = web.Application()
    app.router.add_route("*", "/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield seen, f"https://localhost:{runner.addresses[0][1]}/hook?token=canary"
    await runner.cleanup()


async def _apply(url: str, ca_file: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _APPLY, url, env={**os.environ, "SSL_CERT_FILE": str(ca_file)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    return said.decode().strip().splitlines()[-1]


async def test_a_receiver_with_a_good_certificate_gets_the_model(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with _receiver(certificates.good()) as (seen, url):
        assert await _apply(url, certificates.ca_file) == "applied"
        assert seen == ["POST"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Certificates.self_signed, "unable to get local issuer certificate"),
        (Certificates.of_another_host, "certificate is not valid for 'localhost'"),
        (Certificates.expired, "certificate has expired"),
    ],
)
async def test_one_with_a_bad_certificate_gets_nothing_and_the_cause_is_told(
    tmp_path: Path, kind: Callable[[Certificates], ssl.SSLContext], words: str
) -> None:
    certificates = Certificates(tmp_path)
    async with _receiver(kind(certificates)) as (seen, url):
        said = await _apply(url, certificates.ca_file)
        assert words in said
        assert "cannot be trusted" in said
        assert "canary" not in said
        assert seen == []
