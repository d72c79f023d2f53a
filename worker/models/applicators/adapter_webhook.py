"""Serves adapters by somebody else's deployment, told over the webhook, and asked where it says that it serves them.

The receiver gets the document of the adapter, whose `uri` says where its files lie, and answers as `webhook` says. If
it names the endpoint at which it serves the adapter, that is probed, and nodes find it in the scenario's document. One
that it names later, in an answer to GET, takes its place. It is probed again at each look, once a minute: at most three
short completions.
"""

# ruff: noqa: D102 - the methods are the port's, documented there
from __future__ import annotations

import asyncio
import hashlib
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import UNSET

from worker.errors import ApplyFailed
from worker.models.adapter import AdapterUnreadable, decode
from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.models.applicators.inference_client import InferenceClient, ServerRefused
from worker.models.applicators.probe import ProbeResult, Probes, probe
from worker.models.applicators.webhook import WebhookApplicator
from worker.redaction import redact
from worker.store.port import Model
from worker.wire.served import Endpoint


class AdapterWebhookApplicator:
    """Hands adapters to a receiver, sees what it serves, and tells the nodes."""

    name = "webhook"

    def __init__(self, webhook: WebhookApplicator, data_dir: Path) -> None:
        """`webhook` is of kind lora."""
        self._webhook = webhook
        self._current = CurrentDocuments(data_dir, "lora")

    def target(self, scenario: str) -> str:
        return self._webhook.target(scenario)

    async def apply(self, model: Model, content: bytes) -> str | None:
        await self._webhook.apply(model, content)
        served = await self._webhook.served(model.scenario)
        if served != model.sha256:
            raise ApplyFailed(f"{self.target(model.scenario)} took {model.sha256} and serves {served or 'nothing'}")
        endpoint = self._webhook.endpoint(model.scenario)
        detail = "the receiver named no endpoint: its word was taken" if endpoint is None else None
        if endpoint is not None:
            detail = await self._probe(model, content, endpoint)
        await asyncio.to_thread(self._current.write, model, content, endpoint)
        return detail

    async def served(self, scenario: str) -> str | None:
        served = await self._webhook.served(scenario)
        if served is None:
            return None
        try:
            document = await asyncio.to_thread(self._current.read, scenario)
        except DocumentDamaged:
            return "unreadable"  # no hash equals it, so the live adapter is brought again
        named = self._webhook.endpoint(scenario)
        if (
            document is None  # it was lost
            or hashlib.sha256(bytes(document.model)).hexdigest() != served  # it came out of a backup
            or named not in (None, document.endpoint)  # the receiver has moved it
        ):
            return "an adapter of which nodes are told nothing, or something else"
        if document.endpoint == UNSET:
            return served
        try:
            probes = Probes(decode(bytes(document.model)).probes)
        except AdapterUnreadable:
            return "unreadable"
        answers = await _answers(document.endpoint, probes)
        return served if answers is None or answers.served else f"something else ({answers.detail})"

    async def withdraw(self, scenario: str) -> None:
        await asyncio.to_thread(self._current.remove, scenario)
        await self._webhook.withdraw(scenario)

    async def close(self) -> None:
        await self._webhook.close()

    async def _probe(self, model: Model, content: bytes, endpoint: Endpoint) -> str:
        url = urlsplit(endpoint.url)
        if url.scheme not in ("http", "https"):
            raise ApplyFailed(f"{self.target(model.scenario)} names an endpoint that is no http(s) URL")
        if "@" in url.netloc:  # it is told to everybody, in events and in the scenario's document
            raise ApplyFailed(
                f"{self.target(model.scenario)} names an endpoint with a user or password in its URL; "
                "let the receiver leave them out, and give nodes their key another way"
            )
        answers = await _answers(endpoint, await asyncio.to_thread(self._current.probes, model, content))
        shown = redact(endpoint.url)
        if answers is None:
            return f"{shown} wants a key, which is not ours: no answer was compared"
        if not answers.served:
            raise ApplyFailed(f"{shown} does not answer as {endpoint.model} does: {answers.detail}")
        return answers.detail


async def _answers(endpoint: Endpoint, probes: Probes) -> ProbeResult | None:
    """How the endpoint answers; None where it wants a key, which is not ours. Raises `ApplyFailed`."""
    client = InferenceClient(endpoint.url, None, setting="the endpoint in the receiver's answer")
    try:
        return await probe(client, probes, endpoint.model)
    except ServerRefused as error:
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return None
        raise
    finally:
        await client.close()
