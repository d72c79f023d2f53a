"""SWARM_AMQP_URL: what is understood, what is refused, what is shown."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from worker.broker.url import parse_amqp_url
from worker.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "vhost"),
    [
        ("amqp://localhost", "/"),
        ("amqp://localhost/", "/"),
        ("amqp://localhost/%2F", "/"),
        ("amqp://localhost//", "/"),
        ("amqp://localhost/swarm", "swarm"),
        ("amqp://localhost/a%2Fb", "a/b"),
        ("amqp://localhost/50%25", "50%"),
    ],
)
def test_the_virtual_host_is_what_the_client_will_open(text: str, vhost: str) -> None:
    """The client library takes the decoded path without its first slash."""
    url = parse_amqp_url(text)
    assert url.vhost == vhost
    assert url.dial("consume").path[1:] == vhost


def test_defaults_and_names() -> None:
    url = parse_amqp_url("amqp://me:p%40ss%2Fword@127.0.0.1")
    assert (url.host, url.port, url.login, url.password, url.heartbeat) == ("127.0.0.1", 5672, "me", "p@ss/word", 10)
    dialled = url.dial("publish")
    assert dialled.password == "p@ss/word"
    assert dict(dialled.query) == {"heartbeat": "10", "name": "swarm-worker-publish"}


def test_allowed_parameters_are_taken() -> None:
    url = parse_amqp_url("amqp://localhost/?heartbeat=5&name=node-7&connection_timeout=2500")
    assert (url.heartbeat, url.name, url.connection_timeout) == (5, "node-7", 2.5)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("no_verify_ssl=false", "no_verify_ssl"),
        ("no_verify_ssl=", "no_verify_ssl"),
        ("verify=0", "verify"),
        ("cafile=/tmp/x", "cafile"),
        ("auth=external", "auth"),
        ("heartbeat=10s", "heartbeat"),
        ("heartbeat=abc", "heartbeat"),
        ("heartbeat=70000", "heartbeat"),
        ("heartbeat=0", "heartbeat"),
        ("heartbeat=", "heartbeat"),
        ("heartbeat=5&heartbeat=6", "heartbeat"),
        ("timeout=abc", "timeout"),
        ("connection_timeout=5", "connection_timeout"),
        ("reconnect_interval=0", "reconnect_interval"),
    ],
)
def test_a_parameter_the_client_would_misread_is_refused_by_name(query: str, named: str) -> None:
    """The client turns verification off for `no_verify_ssl=false`, heartbeats off for `heartbeat=10s` (measured)."""
    with pytest.raises(ConfigurationError, match=rf"SWARM_AMQP_URL.*{named}"):
        parse_amqp_url(f"amqp://localhost/?{query}")


@pytest.mark.parametrize(
    "text", ["", "http://localhost", "localhost:5672", "amqp://", "amqp://h:99999", "amqp://localhost/#x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="SWARM_AMQP_URL"):
        parse_amqp_url(text)


def test_plaintext_leaves_this_machine_only_where_that_is_said() -> None:
    with pytest.raises(ConfigurationError, match="SWARM_AMQP_ALLOW_PLAINTEXT"):
        parse_amqp_url("amqp://broker.example/")
    assert parse_amqp_url("amqp://broker.example/", allow_plaintext=True).host == "broker.example"
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]"):
        assert parse_amqp_url(f"amqp://{host}/").tls is None


def test_tls_verifies_and_says_which_file_it_cannot_read(tmp_path: Path) -> None:
    context = parse_amqp_url("amqps://broker.example").tls
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    with pytest.raises(ConfigurationError, match="SWARM_AMQP_CA_FILE"):
        parse_amqp_url("amqps://broker.example", ca_file=tmp_path / "none.pem")


def test_a_bracket_in_a_password_is_a_configuration_error_that_does_not_show_it() -> None:
    with pytest.raises(ConfigurationError, match="SWARM_AMQP_URL: it is no URL") as raised:
        parse_amqp_url("amqp://me:cana[ry@localhost/")
    assert "cana" not in str(raised.value)


def test_the_password_is_never_shown() -> None:
    url = parse_amqp_url("amqp://me:s3cret@localhost/v")
    assert "s3cret" not in url.masked
    assert "s3cret" not in repr(url)
    assert url.masked == "amqp://me:***@localhost:5672/v"
    assert parse_amqp_url("amqp://me:s3cret@localhost/").masked == "amqp://me:***@localhost:5672/"
    with pytest.raises(ConfigurationError) as refused:
        parse_amqp_url("amqp://me:s3cret@broker.example/v")
    assert "s3cret" not in str(refused.value)
