"""Serves the current model through somebody else's HTTP endpoint: `SWARM_WEBHOOK_URL`.

POST <url>, body = the `ServedModel` document, headers:
  X-Swarm-Scenario     the scenario
  X-Swarm-Kind         `offline`, or `lora` for an adapter: a scenario may have one of each
  X-Swarm-Event        `apply` or `withdraw` (a withdrawal's body is `{"scenario": "...", "kind": "..."}`)
  X-Swarm-Signature    `sha256=<hex HMAC-SHA256 of the body>`, where SWARM_WEBHOOK_KEY is set
A 2xx answer accepts it. What is served is then verified: `GET <url>` with X-Swarm-Scenario and X-Swarm-Kind answers
`{"sha256": "<hash of the model bytes>"}` (404: none is served). A receiver without GET (405, 501) may say the same in
its answer to the POST; it is told again after each start of the worker. A receiver that does neither cannot be
verified, and the apply fails. Of an adapter, either answer may hold
`{"endpoint": {"url": "http://...", "model": "<name there>"}}` as well (see `adapter_webhook`).
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import hashlib
import hmac
import ssl
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from msgspec import Struct
from pydantic import SecretStr
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from worker.errors import ApplyFailed
from worker.models.applicators.port import served_document
from worker.store.port import Model, ModelKind
from worker.wire.served import Endpoint

log = structlog.get_logger(__name__)

#: Most bytes of an answer that are read.
_ANSWER_LIMIT = 65_536
_NO_GET = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})


class _Answer(Struct):
    sha256: str | None = None
    endpoint: Endpoint | None = None


class _TransientError(Exception):
    """Worth another try: no connection, timeout, 429 or 5xx."""


class WebhookApplicator:
    """POSTs models and verifies them by asking back."""

    name = "webhook"

    def __init__(
        self, url: SecretStr, *, key: SecretStr | None = None, kind: ModelKind = "offline", seconds: float = 10.0,
        attempts: int = 4, first_wait: float = 0.5,
    ) -> None:  # fmt: skip
        self._url = url
        self._key = key
        self._kind = kind
        self._seconds = seconds
        self._attempts = attempts
        self._first_wait = first_wait
        self._session: aiohttp.ClientSession | None = None
        self._echoed: dict[str, str | None] = {}  # by scenario that was told in this life
        self._endpoints: dict[str, Endpoint] = {}

    def target(self, scenario: str) -> str:
        """Scheme and host alone: user, path and query of the URL may hold a token."""
        parts = urlsplit(self._url.get_secret_value())
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}/... ({scenario})"

    async def apply(self, model: Model, content: bytes) -> None:
        self._forget(model.scenario)
        status, answer = await self._send("POST", model.scenario, "apply", served_document(model, content))
        self._require_accepted(status, model.scenario)
        self._echoed[model.scenario] = answer.sha256
        self._note_endpoint(model.scenario, answer)

    async def served(self, scenario: str) -> str | None:
        status, answer = await self._send("GET", scenario, "ask", None)
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status in _NO_GET:
            if scenario not in self._echoed:
                return None  # what an earlier life of ours was answered is forgotten: telling it again is how to know
            if (echoed := self._echoed[scenario]) is None:
                raise ApplyFailed(
                    f"{self.target(scenario)} cannot be verified: it answers {status} to GET and its answer to POST "
                    "had no sha256; let it answer one of them with the hash of the model it serves"
                )
            return echoed
        self._require_accepted(status, scenario)
        if answer.sha256 is None:
            raise ApplyFailed(f"{self.target(scenario)} cannot be verified: its answer to GET holds no sha256")
        self._note_endpoint(scenario, answer)
        return answer.sha256

    def endpoint(self, scenario: str) -> Endpoint | None:
        """Where the receiver said, last, that it serves the scenario's adapter."""
        return self._endpoints.get(scenario)

    async def withdraw(self, scenario: str) -> None:
        self._forget(scenario)
        body = msgspec.json.encode({"scenario": scenario, "kind": self._kind})
        status, _ = await self._send("POST", scenario, "withdraw", body)
        self._require_accepted(status, scenario)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _note_endpoint(self, scenario: str, answer: _Answer) -> None:
        if answer.endpoint is not None:
            self._endpoints[scenario] = answer.endpoint

    def _forget(self, scenario: str) -> None:
        self._echoed.pop(scenario, None)
        self._endpoints.pop(scenario, None)

    def _require_accepted(self, status: int, scenario: str) -> None:
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise ApplyFailed(f"{self.target(scenario)} refused with HTTP {status}; see the receiver's own log")

    async def _send(self, method: str, scenario: str, event: str, body: bytes | None) -> tuple[int, _Answer]:
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_TransientError),
                stop=stop_after_attempt(self._attempts),
                wait=wait_exponential(multiplier=self._first_wait, max=10),
                reraise=True,
            ):
                with attempt:
                    return await self._send_once(method, scenario, event, body)
        except _TransientError as error:
            raise ApplyFailed(
                f"{self.target(scenario)} did not answer {method} in {self._attempts} tries: {error}; "
                "check SWARM_WEBHOOK_URL"
            ) from None  # the cause's own text would show the whole URL
        raise AssertionError("unreachable: the last try either returns or raises")

    async def _send_once(self, method: str, scenario: str, event: str, body: bytes | None) -> tuple[int, _Answer]:
        headers = {"X-Swarm-Scenario": scenario, "X-Swarm-Kind": self._kind, "X-Swarm-Event": event}
        if body is not None:
            headers["Content-Type"] = "application/json"
            if self._key is not None:
                digest = hmac.new(self._key.get_secret_value().encode(), body, hashlib.sha256).hexdigest()
                headers["X-Swarm-Signature"] = f"sha256={digest}"
        try:
            # No redirects: they would carry the model, and the signature, to a place nobody configured.
            async with self._open().request(
                method, self._url.get_secret_value(), data=body, headers=headers, allow_redirects=False
            ) as response:
                text = await _read(response.content)
                status = response.status
        except aiohttp.ClientConnectorCertificateError as error:
            raise ApplyFailed(
                f"the certificate of {self.target(scenario)} cannot be trusted: "
                f"{_why(error.certificate_error)}; nothing was sent. SSL_CERT_FILE names authorities of one's own"
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _TransientError(type(error).__name__) from None
        if status == HTTPStatus.TOO_MANY_REQUESTS or (
            status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _NO_GET
        ):
            raise _TransientError(f"HTTP {status}")
        return status, _parse(text)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._seconds))
        return self._session


def _why(error: Exception) -> str:
    return error.verify_message.rstrip(".") if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The answer's first bytes; one `read` may give less than there is."""
    text = bytearray()
    while len(text) < _ANSWER_LIMIT and (chunk := await content.read(_ANSWER_LIMIT - len(text))):
        text += chunk
    return bytes(text)


def _parse(text: bytes) -> _Answer:
    try:
        return msgspec.json.decode(text, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Answer()  # an answer in prose says nothing of what is served
