"""S1: amqps is verified, by the worker itself, and nothing is said to who cannot prove to be the broker."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.foreign_node import body, episode, line, node_at
from tests.integration.tls_door import Certificates, tls_door
from tests.integration.worker_process import NewWorker, WorkerProcess, until
from worker.broker.private_server import free_port
from worker.broker.probe import handshake
from worker.broker.session import Session
from worker.broker.url import parse_amqp_url
from worker.client.connect import connect_publisher
from worker.errors import BrokerUnreachable, BrokerUntrusted
from worker.wire.records import ActionRecord

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """An authority of this test's own."""
    return Certificates(tmp_path)


async def _store_one(url: str, scenario: str, number: int) -> bytes:
    record = episode(number, success=True)[0]
    async with node_at(url) as node:
        await node.publish(scenario, body([record], producer_id="node", batch_seq=number))
    return line(record)


async def test_records_come_over_tls_and_a_certificate_that_goes_bad_makes_the_worker_red_not_dead(
    new_worker: NewWorker, amqp_url: str, scenario: str, certificates: Certificates
) -> None:
    """While it is bad nothing is sent, and /ready says why; once it is renewed, records flow again by themselves."""
    async with tls_door(amqp_url, certificates.good()) as (door, url):
        worker = new_worker(scenario, amqp_url=url, amqp_ca_file=certificates.ca_file)
        await worker.start()
        stored = [await _store_one(amqp_url, scenario, 0)]
        await until(worker.exported, lambda found: found == stored)
        assert len(door.versions) >= 3
        assert set(door.versions) <= {"TLSv1.2", "TLSv1.3"}

        before = door.received
        await door.change(certificates.expired())
        problems = await until(worker.problems, lambda found: any("certificate" in one for one in found or []))
        assert any("certificate has expired; renew it at the broker" in problem for problem in problems or [])
        stored.append(await _store_one(amqp_url, scenario, 1))
        turned_away = await _times_turned_away(worker)
        await until(partial(_times_turned_away, worker), (turned_away + 3).__le__, within=15)
        # The last bytes of before the change may have been on their way.
        assert door.received - before < 4096
        assert worker.running

        await door.change(certificates.good())
        await worker.wait_ready(within=30)
        await until(worker.exported, lambda found: sorted(found) == sorted(stored))
        assert await worker.stop() == 0


async def _times_turned_away(worker: WorkerProcess) -> int:
    return sum(one["event"] == "broker_not_trusted" for one in worker.log())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Certificates.self_signed, "name its CA with SWARM_AMQP_CA_FILE"),
        (
            Certificates.of_another_host,
            "Hostname mismatch, certificate is not valid for 'localhost'; connect by a name",
        ),
        (Certificates.expired, "certificate has expired; renew it at the broker"),
    ],
)
async def test_a_bad_certificate_at_the_start_is_refused_with_its_cause_and_no_byte_is_sent(
    amqp_url: str, certificates: Certificates, kind: Callable[[Certificates], ssl.SSLContext], words: str
) -> None:
    async with tls_door(amqp_url, kind(certificates)) as (door, url):
        target = parse_amqp_url(url, ca_file=certificates.ca_file)
        with pytest.raises(BrokerUntrusted) as refused:
            await Session("consume", target, start_timeout=30).start()
        assert words in str(refused.value)
        assert refused.value.exit_code == 78
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(handshake, target)
        assert (door.versions, door.received) == ([], 0)


async def test_a_worker_that_cannot_trust_its_broker_ends_with_78_and_check_says_why(
    new_worker: NewWorker, amqp_url: str, scenario: str, certificates: Certificates
) -> None:
    words = "name its CA with SWARM_AMQP_CA_FILE"
    async with tls_door(amqp_url, certificates.self_signed()) as (door, url):
        worker = new_worker(scenario, amqp_url=url, amqp_ca_file=certificates.ca_file)
        await worker.start(ready=False)
        assert await worker.wait() == 78
        assert words in worker.log_tail()
        found = (await worker.cli("check", "--json", code=78)).json["findings"]
        assert [words in one["detail"] for one in found if one["what"] == "broker"] == [True]
        assert door.received == 0


async def test_the_systems_own_authorities_are_trusted_where_none_is_named(
    amqp_url: str, certificates: Certificates
) -> None:
    """Without SWARM_AMQP_CA_FILE a certificate of an authority of one's own is as bad as any."""
    async with tls_door(amqp_url, certificates.good()) as (door, url):
        with pytest.raises(BrokerUntrusted, match="name its CA with SWARM_AMQP_CA_FILE"):
            await Session("consume", parse_amqp_url(url), start_timeout=5).start()
        assert door.received == 0


async def test_an_address_must_stand_in_the_certificate_like_a_name(amqp_url: str, certificates: Certificates) -> None:
    async with tls_door(amqp_url, certificates.of_another_host(), host="127.0.0.1") as (door, url):
        with pytest.raises(BrokerUntrusted, match=r"not valid for '127.0.0.1'; connect by a name that stands in it"):
            await Session("consume", parse_amqp_url(url, ca_file=certificates.ca_file), start_timeout=5).start()
        assert door.received == 0


async def test_tls_1_1_is_not_spoken(amqp_url: str, certificates: Certificates) -> None:
    """Who would speak it gets as far as a handshake; we do not."""
    async with tls_door(amqp_url, certificates.old_tls()) as (door, url):
        target = parse_amqp_url(url, ca_file=certificates.ca_file)
        with pytest.raises((BrokerUntrusted, BrokerUnreachable)):
            await Session("consume", target, start_timeout=0.5).start()
        assert door.versions == []
        careless = ssl.create_default_context(cafile=str(certificates.ca_file))
        careless.set_ciphers("DEFAULT@SECLEVEL=0")
        careless.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        _, writer = await asyncio.open_connection("localhost", door.port, ssl=careless)
        writer.close()
        assert door.versions == ["TLSv1.1"]


async def test_a_port_without_tls_and_a_port_with_it_are_told_apart(amqp_url: str, certificates: Certificates) -> None:
    plain = amqp_url.replace("amqp://", "amqps://")
    with pytest.raises(BrokerUntrusted, match=r"speaks no TLS there; check the port \(usually 5671\)"):
        await Session("consume", parse_amqp_url(plain), start_timeout=5).start()
    async with tls_door(amqp_url, certificates.good()) as (_, url):
        with pytest.raises(BrokerUnreachable, match="it may expect TLS, amqps://"):
            await Session("consume", parse_amqp_url(url.replace("amqps://", "amqp://")), start_timeout=0.5).start()


async def test_a_broker_that_asks_for_our_certificate_gets_it_from_workers_and_nodes(
    amqp_url: str, scenario: str, certificates: Certificates, tmp_path: Path
) -> None:
    async with tls_door(amqp_url, certificates.asking_for_ours()) as (door, url):
        with pytest.raises(BrokerUnreachable, match="SWARM_AMQP_CERT_FILE"):
            await Session("consume", parse_amqp_url(url, ca_file=certificates.ca_file), start_timeout=0.5).start()
        trust: dict[str, Any] = {"ca_file": certificates.ca_file, "cert_file": certificates.of_a_client()}
        session = Session("consume", parse_amqp_url(url, **trust), start_timeout=5)
        await session.start()
        assert session.connected
        await session.close()
        async with connect_publisher(
            url, scenario=scenario, producer_id="node", state_dir=tmp_path, **trust, close_timeout=0.1
        ) as publisher:
            await publisher.publish(ActionRecord(task_id="t", tick=0, worker_id=0, action="look"))
        assert door.received > 0


async def test_rabbitmqs_own_tls_is_verified_like_any(
    broker: Broker, amqp_url: str, certificates: Certificates, tmp_path: Path
) -> None:
    """A listener of the real server, Erlang's TLS and not Python's on the other side."""
    if broker.found.control[:1] == ("docker",):
        pytest.fail("a listener inside a container is not reached from here: apt-get install rabbitmq-server")
    port, file = free_port(), tmp_path / "server.pem"
    certificates.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(file))
    options = f'[{{certfile, "{file}"}}, {{keyfile, "{file}"}}, {{versions, [\'tlsv1.2\']}}]'
    told = broker.control(
        "eval", f"{{ok, _}} = application:ensure_all_started(ssl), rabbit_networking:start_ssl_listener("
        f'{{"127.0.0.1", {port}, inet}}, {options}, 2).',
    )  # fmt: skip
    assert told.strip() == "ok"
    url = amqp_url.replace("amqp://", "amqps://").replace(
        f"127.0.0.1:{parse_amqp_url(amqp_url).port}", f"localhost:{port}"
    )
    try:
        session = Session("consume", parse_amqp_url(url, ca_file=certificates.ca_file), start_timeout=10)
        await session.start()
        assert session.connected
        await session.close()
        with pytest.raises(BrokerUntrusted, match="SWARM_AMQP_CA_FILE"):
            await Session("consume", parse_amqp_url(url), start_timeout=5).start()
    finally:
        broker.control("eval", f'rabbit_networking:stop_tcp_listener({{"127.0.0.1", {port}, inet}}).')
