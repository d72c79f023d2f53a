"""Adapters over the webhook: told apart from offline models, probed where the receiver says where it serves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.contract.adapter_building import BASE_ANSWER, register
from tests.contract.fake_receiver import FakeReceiver
from worker.client.adapters import AdapterPointer
from worker.errors import ApplyFailed
from worker.models.applicators.adapter_webhook import AdapterWebhookApplicator
from worker.models.applicators.endpoint import CurrentDocuments
from worker.models.applicators.webhook import WebhookApplicator
from worker.wire.served import Endpoint


@pytest.fixture
async def receiver() -> AsyncIterator[FakeReceiver]:
    receiver = FakeReceiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def applicator(receiver: FakeReceiver, tmp_path: Path) -> AsyncIterator[AdapterWebhookApplicator]:
    webhook = WebhookApplicator(SecretStr(f"{receiver.url}/hook"), kind="lora", attempts=1)
    made = AdapterWebhookApplicator(webhook, tmp_path)
    yield made
    await made.close()


async def test_the_endpoint_that_the_receiver_names_is_probed_and_told_to_nodes(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    one = register(tmp_path, 1)
    assert "1 of 1 probes" in str(await applicator.apply(one.model, one.content))
    current = AdapterPointer(tmp_path, "S").current()
    assert current is not None
    assert current.endpoint == Endpoint(url=receiver.url, model="S")
    assert receiver.kinds == {"lora"}
    await applicator.withdraw("S")
    assert AdapterPointer(tmp_path, "S").current() is None
    assert receiver.kinds == {"lora"}


async def test_without_an_endpoint_the_receivers_word_is_taken_and_that_is_said(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    """The files' place is in the document all the same."""
    receiver.names_endpoint = False
    one = register(tmp_path, 1)
    assert "no endpoint" in str(await applicator.apply(one.model, one.content))
    current = AdapterPointer(tmp_path, "S").current()
    assert current is not None
    assert (current.endpoint, current.directory) == (None, tmp_path / "models/S/1/adapter")


async def test_an_endpoint_that_wants_a_key_is_not_probed_and_that_is_said(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    """Its key is the nodes' business; the receiver has vouched for the hash."""
    receiver.api_key = "theirs"
    one = register(tmp_path, 1)
    assert "wants a key" in str(await applicator.apply(one.model, one.content))
    assert AdapterPointer(tmp_path, "S").current() is not None


async def test_an_endpoint_that_answers_otherwise_is_told_to_nobody(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    one = register(tmp_path, 1, expected="stay where you are")
    with pytest.raises(ApplyFailed, match="does not answer"):
        await applicator.apply(one.model, one.content)
    assert AdapterPointer(tmp_path, "S").current() is None


@pytest.mark.parametrize("damage", ["lost", "torn", "an older one"])
async def test_a_document_that_nodes_cannot_go_by_is_seen_and_written_again(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path, damage: str
) -> None:
    """Deleted, or out of a backup: the receiver serves the right one all the while."""
    pointer = CurrentDocuments(tmp_path, "lora").path("S")
    one, two = register(tmp_path, 1), register(tmp_path, 2)
    await applicator.apply(one.model, one.content)
    older = pointer.read_bytes()
    await applicator.apply(two.model, two.content)
    match damage:
        case "lost":
            pointer.unlink()
        case "torn":
            pointer.write_bytes(older[:100])
        case _:
            pointer.write_bytes(older)
    assert await applicator.served("S") != two.model.sha256
    await applicator.apply(two.model, two.content)
    assert await applicator.served("S") == two.model.sha256
    current = AdapterPointer(tmp_path, "S").current()
    assert current is not None
    assert (current.version, current.endpoint) == (2, Endpoint(url=receiver.url, model="S"))


async def test_a_receiver_that_serves_it_elsewhere_now_is_seen(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    """Nodes would ask where nobody answers any more."""
    one = register(tmp_path, 1)
    receiver.endpoint_url = f"{receiver.url}/"
    await applicator.apply(one.model, one.content)
    assert await applicator.served("S") == one.model.sha256
    receiver.endpoint_url = receiver.url
    assert await applicator.served("S") != one.model.sha256
    await applicator.apply(one.model, one.content)
    assert await applicator.served("S") == one.model.sha256


@pytest.mark.parametrize("url", ["file:///etc/passwd", "unix:/run/x", ""])
async def test_an_endpoint_is_a_web_address(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path, url: str
) -> None:
    receiver.endpoint_url = url
    one = register(tmp_path, 1)
    with pytest.raises(ApplyFailed, match=r"no http\(s\) URL"):
        await applicator.apply(one.model, one.content)


async def test_an_endpoint_with_a_password_is_not_told_to_everybody(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    receiver.endpoint_url = "http://node:s3cret@127.0.0.1:8000"
    one = register(tmp_path, 1)
    with pytest.raises(ApplyFailed, match="user or password") as refused:
        await applicator.apply(one.model, one.content)
    assert "s3cret" not in str(refused.value)
    assert AdapterPointer(tmp_path, "S").current() is None


async def test_a_receiver_that_keeps_the_old_one_is_refused(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    """It said 200 and serves what it served."""
    one, two = register(tmp_path, 1), register(tmp_path, 2)
    await applicator.apply(one.model, one.content)
    receiver.stuck = True
    with pytest.raises(ApplyFailed, match=f"serves {one.model.sha256}"):
        await applicator.apply(two.model, two.content)
    current = AdapterPointer(tmp_path, "S").current()
    assert current is not None
    assert current.version == 1


async def test_an_endpoint_that_answers_otherwise_later_or_not_at_all_is_seen(
    applicator: AdapterWebhookApplicator, receiver: FakeReceiver, tmp_path: Path
) -> None:
    """The receiver vouches for it all the while; neither health window nor keeper looked there again."""
    one = register(tmp_path, 1)
    await applicator.apply(one.model, one.content)
    receiver.served["S"] = (one.model.sha256, BASE_ANSWER)
    assert str(await applicator.served("S")).startswith("something else (0 of 1 probes")
    receiver.endpoint_down = True
    with pytest.raises(ApplyFailed, match="HTTP 503"):
        await applicator.served("S")
    receiver.endpoint_down = False
    await applicator.apply(one.model, one.content)
    assert await applicator.served("S") == one.model.sha256
    receiver.api_key = "theirs"
    assert await applicator.served("S") == one.model.sha256
