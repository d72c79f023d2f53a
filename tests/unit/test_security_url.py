"""S2 and S3: what stands in a URL cannot turn safety off, and nothing leaves this machine in plain text unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from worker.broker.url import parse_amqp_url
from worker.errors import ConfigurationError
from worker.settings import load_settings


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
@pytest.mark.parametrize(
    ("query", "named"),
    [
        # aiormq turns verification off for each of these; anything but "0" does.
        ("no_verify_ssl=false", "no_verify_ssl"),
        ("no_verify_ssl=", "no_verify_ssl"),
        ("no_verify_ssl", "no_verify_ssl"),
        ("no_verify_ssl=1", "no_verify_ssl"),
        ("no_verify_ssl=0", "no_verify_ssl"),
        ("%6eo_verify_ssl=1", "no_verify_ssl"),
        ("NO_VERIFY_SSL=1", "NO_VERIFY_SSL"),
        ("heartbeat=10&no_verify_ssl=1", "no_verify_ssl"),
        ("heartbeat=10;no_verify_ssl=1", "heartbeat"),
        # These turn heartbeats off, so that a half-open connection is never noticed.
        ("heartbeat=10s", "heartbeat"),
        ("heartbeat=abc", "heartbeat"),
        ("heartbeat=70000", "heartbeat"),
        ("heartbeat=0", "heartbeat"),
        ("heartbeat=-5", "heartbeat"),
        ("heartbeat=1e1", "heartbeat"),
        ("heartbeat=%EF%BC%91%EF%BC%90", "heartbeat"),  # full-width digits
        ("heartbeat=" + "9" * 5000, "heartbeat"),  # Python refuses to read so many with an error of its own
        # These become no timeout at all.
        ("timeout=abc", "timeout"),
        ("connection_timeout=abc", "connection_timeout"),
        ("connection_timeout=0", "connection_timeout"),
        # Whom to trust and who we are come from settings, where they are checked.
        ("cafile=/tmp/x", "cafile"),
        ("capath=/tmp", "capath"),
        ("cadata=aGk=", "cadata"),
        ("certfile=/tmp/x", "certfile"),
        ("keyfile=/tmp/x", "keyfile"),
        ("auth=external", "auth"),
        ("reconnect_interval=0", "reconnect_interval"),
        ("fail_fast=0", "fail_fast"),
    ],
)
def test_each_trap_of_the_query_is_refused_by_name(scheme: str, query: str, named: str) -> None:
    """S2: three parameters are taken, each in one form; exit 78 names any other."""
    with pytest.raises(ConfigurationError, match=rf"SWARM_AMQP_URL: parameter '?{named}") as refused:
        parse_amqp_url(f"{scheme}://me:s3cret@localhost/?{query}")
    assert refused.value.exit_code == 78
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "place",
    [
        "broker.example",
        "127.0.0.1.example",
        "localhost.example",
        "localhost@broker.example",  # localhost is the user here
        "127.0.0.1:1@broker.example",
        "me:x@10.0.0.7",
        "0.0.0.0",  # noqa: S104 - refused
        "[2001:db8::1]",
        "127.1",  # a resolver may take it for this machine; whoever means it can write 127.0.0.1
    ],
)
def test_plaintext_amqp_stays_on_this_machine(place: str) -> None:
    """S3: who reads the wire would read the password and the records."""
    with pytest.raises(ConfigurationError, match="unencrypted; use amqps://, or set SWARM_AMQP_ALLOW_PLAINTEXT=true"):
        parse_amqp_url(f"amqp://{place}/")
    parse_amqp_url(f"amqp://{place}/", allow_plaintext=True)
    parse_amqp_url(f"amqps://{place}/")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("localhost/" + "v" * 128, "the virtual host has 128 characters"),
        ("gu%00est:x@localhost/", "it holds a NUL"),
        ("guest:x%00y@localhost/", "it holds a NUL"),
    ],
)
def test_what_no_broker_can_be_told_is_refused_before_it_is_tried(place: str, words: str) -> None:
    """The client library would try a virtual host that is too long for ever, and a NUL moves the password's border."""
    with pytest.raises(ConfigurationError, match=words):
        parse_amqp_url(f"amqp://{place}")
    assert parse_amqp_url("amqp://localhost/" + "v" * 127).vhost == "v" * 127


@pytest.mark.parametrize("url", ["http://receiver.example/models", "http://10.0.0.7", "http://127.0.0.1@example.org/"])
def test_a_plaintext_webhook_stays_on_this_machine(url: str) -> None:
    """S3: what it posts becomes the model that agents follow."""
    with pytest.raises(ConfigurationError, match=r"unencrypted; .* SWARM_WEBHOOK_ALLOW_PLAINTEXT=true"):
        load_settings(webhook_url=url)
    assert load_settings(webhook_url=url, webhook_allow_plaintext=True).webhook_url is not None
    assert load_settings(webhook_url=url.replace("http:", "https:")).webhook_url is not None
    for here in ("http://127.0.0.1:8000/x", "http://localhost/x", "http://[::1]:8000/"):
        assert load_settings(webhook_url=here).webhook_url is not None


@pytest.mark.parametrize("url", ["https://", "https:///x", "https://[half", "receiver.example"])
def test_a_webhook_without_a_host_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="SWARM_WEBHOOK_URL: it "):
        load_settings(webhook_url=url)


def test_our_own_certificate_is_read_at_the_start_and_its_faults_are_told(tmp_path: Path) -> None:
    """S1: a missing file, a key of another certificate, a key nobody gave, an encrypted key."""
    authority = trustme.CA()
    one, other = authority.issue_cert("one@swarm"), authority.issue_cert("other@swarm")
    chain, key, foreign = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "foreign.pem"
    one.cert_chain_pems[0].write_to_path(str(chain))
    one.private_key_pem.write_to_path(str(key))
    other.private_key_pem.write_to_path(str(foreign))
    locked = tmp_path / "locked.pem"
    locked.write_bytes(_locked_key())
    assert parse_amqp_url("amqps://h/", cert_file=chain, key_file=key).tls is not None
    mistakes: list[dict[str, Any]] = [
        {"cert_file": tmp_path / "none"},
        {"cert_file": chain},
        {"cert_file": chain, "key_file": foreign},
        {"cert_file": chain, "key_file": locked},
    ]
    for wrong in mistakes:
        with pytest.raises(ConfigurationError, match="SWARM_AMQP_CERT_FILE: cannot use the certificate in"):
            parse_amqp_url("amqps://h/", **wrong)
    with pytest.raises(ConfigurationError, match="set SWARM_AMQP_CERT_FILE"):
        load_settings(amqp_key_file=key)


def _locked_key() -> Any:
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - slow, and only for this test
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key  # noqa: PLC0415

    return generate_private_key(SECP256R1()).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"password")
    )
