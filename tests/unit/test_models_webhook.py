"""The webhook applicator against a real HTTP server: signature, retries, verification, and no secret in any error."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from pydantic import SecretStr

from worker.errors import ApplyFailed
from worker.models.applicators.webhook import WebhookApplicator
from worker.store.port import Model

CONTENT = b'{"version": 1}'
MODEL = Model(
    model_id="m" * 32, scenario="S", version=3, kind="offline", run_id="r", created_at_ms=1, uri="file:///x",
    sha256=hashlib.sha256(CONTENT).hexdigest(), lineage={}, metrics={}, gate_verdict="blessed", gate_reasons=[],
)  # fmt: skip


class Receiver:
    """Somebody else's endpoint."""

    def __init__(self) -> None:
        self.failures = 0  # of the next POSTs
        self.status = 500
        self.get = True
        self.echo = False
        self.served: str | None = None
        self.seen: list[tuple[web.Request, bytes]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        """POST applies or withdraws, GET says what is served."""
        body = await request.read()
        self.seen.append((request, body))
        if request.method == "GET":
            if not self.get:
                return web.Response(status=405)
            return web.Response(status=404) if self.served is None else web.json_response({"sha256": self.served})
        if self.failures:
            self.failures -= 1
            return web.Response(status=self.status, headers={"Location": self.url + "/elsewhere"})
        document = json.loads(body)
        self.served = document.get("sha256")
        return web.json_response({"sha256": self.served}) if self.echo else web.Response(text="thanks")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/hook", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"http://user:canary@{host}:{port}/hook?token=canary"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def webhook(receiver: Receiver) -> AsyncIterator[WebhookApplicator]:
    applicator = WebhookApplicator(
        SecretStr(receiver.url), key=SecretStr("canary-key"), seconds=2, attempts=3, first_wait=0.01
    )
    yield applicator
    await applicator.close()


async def test_a_model_is_posted_signed_and_verified_by_asking(receiver: Receiver, webhook: WebhookApplicator) -> None:
    """The document of the files applicator, with a signature that the receiver can check."""
    assert await webhook.served("S") is None
    await webhook.apply(MODEL, CONTENT)
    request, body = receiver.seen[-1]
    digest = hmac.new(b"canary-key", body, hashlib.sha256).hexdigest()
    assert request.headers["X-Swarm-Signature"] == f"sha256={digest}"
    assert (request.headers["X-Swarm-Scenario"], request.headers["X-Swarm-Event"]) == ("S", "apply")
    assert CONTENT in body
    assert await webhook.served("S") == MODEL.sha256


async def test_a_receiver_without_get_may_echo(receiver: Receiver, webhook: WebhookApplicator) -> None:
    """One of the two is needed; a 200 alone verifies nothing."""
    receiver.get = False
    await webhook.apply(MODEL, CONTENT)
    with pytest.raises(ApplyFailed, match="cannot be verified"):
        await webhook.served("S")
    receiver.echo = True
    await webhook.apply(MODEL, CONTENT)
    assert await webhook.served("S") == MODEL.sha256


async def test_after_a_restart_a_receiver_without_get_is_told_again(receiver: Receiver) -> None:
    """What it answered in an earlier life of ours is forgotten, and there is no other way to hear it."""
    receiver.get, receiver.echo = False, True
    for _ in range(2):
        life = WebhookApplicator(SecretStr(receiver.url))
        assert await life.served("S") is None
        await life.apply(MODEL, CONTENT)
        assert await life.served("S") == MODEL.sha256
        await life.close()


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_trouble_that_passes_is_tried_again(receiver: Receiver, webhook: WebhookApplicator, status: int) -> None:
    """With a wait, and not for ever."""
    receiver.failures, receiver.status = 2, status
    await webhook.apply(MODEL, CONTENT)
    assert len(receiver.seen) == 3
    receiver.failures = 3
    with pytest.raises(ApplyFailed, match="3 tries"):
        await webhook.apply(MODEL, CONTENT)


@pytest.mark.parametrize("status", [400, 401, 302])
async def test_a_refusal_is_final_and_redirects_are_not_followed(
    receiver: Receiver, webhook: WebhookApplicator, status: int
) -> None:
    """A redirect would carry model and signature to a place nobody configured."""
    receiver.failures, receiver.status = 1, status
    with pytest.raises(ApplyFailed, match=f"HTTP {status}"):
        await webhook.apply(MODEL, CONTENT)
    assert len(receiver.seen) == 1


async def test_no_error_or_target_shows_the_urls_secrets(receiver: Receiver, webhook: WebhookApplicator) -> None:
    """User, password, path and query may hold a token."""
    texts = [webhook.target("S")]
    receiver.failures, receiver.status = 9, 500
    with pytest.raises(ApplyFailed) as raised:
        await webhook.apply(MODEL, CONTENT)
    texts.append(repr(raised.value))
    nowhere = WebhookApplicator(SecretStr("http://canary@127.0.0.1:1/canary"), attempts=1)
    with pytest.raises(ApplyFailed) as raised:
        await nowhere.apply(MODEL, CONTENT)
    await nowhere.close()
    texts.append(repr(raised.value) + repr(raised.value.__cause__))
    assert not [text for text in texts if "canary" in text]


async def test_a_withdrawal_says_so(receiver: Receiver, webhook: WebhookApplicator) -> None:
    """The way back from a failed first apply."""
    await webhook.apply(MODEL, CONTENT)
    await webhook.withdraw("S")
    assert receiver.seen[-1][0].headers["X-Swarm-Event"] == "withdraw"
    assert await webhook.served("S") is None
