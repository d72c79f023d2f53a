"""The broker's address: parsed, checked, and shown without its password.

aio-pika reads whatever stands in the query of the URL and takes some of it the wrong way round: `no_verify_ssl=false`
turns verification off, `heartbeat=10s` turns heartbeats off (measured, aiormq 7.2.4). So the query is an allow-list
here, and what aio-pika gets is built anew from what was understood.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from yarl import URL

from worker.errors import ConfigurationError
from worker.hosts import is_loopback
from worker.settings import Settings

#: RabbitMQ's heartbeats guide calls 5-20 s best; the client gives a silent peer up after (heartbeat + 1) * 3 s.
DEFAULT_HEARTBEAT = 10
DEFAULT_CONNECTION_TIMEOUT = 10.0
#: What AMQP 0-9-1 allows.
_LONGEST_VHOST = 127
_PORTS = {"amqp": 5672, "amqps": 5671}
_ALLOWED = ("heartbeat", "name", "connection_timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """Where the broker is and how to speak with it. `repr` hides the password."""

    scheme: str
    host: str
    port: int
    login: str
    password: str = field(repr=False)
    vhost: str
    heartbeat: int = DEFAULT_HEARTBEAT
    name: str = "swarm-worker"
    connection_timeout: float = DEFAULT_CONNECTION_TIMEOUT
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def masked(self) -> str:
        """For logs and messages: everything but the password; the default virtual host as people write it."""
        shown = self._url("***")
        return str(shown.with_path("/") if self.vhost == "/" else shown)

    def dial(self, role: str) -> URL:
        """What aio-pika connects to; `role` (consume, publish, control) becomes part of the connection's name."""
        return self._url(self.password).with_query(heartbeat=str(self.heartbeat), name=f"{self.name}-{role}")

    def _url(self, password: str) -> URL:
        path = "/" + self.vhost
        return URL.build(
            scheme=self.scheme, user=self.login, password=password, host=self.host, port=self.port, path=path
        )


def parse_amqp_url(
    text: str,
    *,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    allow_plaintext: bool = False,
) -> BrokerUrl:
    """The checked address, or `ConfigurationError` that names the part at fault and never shows the password.

    `cert_file` is our own certificate, for a broker that asks for one; its key is in `key_file`, else beside it in the
    same file.
    """
    try:
        parts = urlsplit(text)
    except ValueError:  # a [ that no IPv6 address follows; what Python says of it may hold the password
        raise _wrong("it is no URL; write [ and ] in a password as %5B and %5D") from None
    if parts.scheme not in _PORTS:
        raise _wrong(f"{parts.scheme or 'an empty'!s} scheme is no AMQP; write amqp://user:password@host:5672/vhost")
    try:
        host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
    except ValueError:
        raise _wrong("the port is no number from 1 to 65535") from None
    if not host:
        raise _wrong("the host is missing; write amqp://user:password@host:5672/vhost")
    if parts.fragment:
        raise _wrong("a # stands in it; write # in a password as %23")
    if parts.scheme == "amqp" and not allow_plaintext and not is_loopback(host):
        raise _wrong(
            f"amqp:// would send password and records to {host} unencrypted; use amqps://, "
            "or set SWARM_AMQP_ALLOW_PLAINTEXT=true on a network you trust"
        )
    query = _checked_query(parts.query)
    path = unquote(parts.path)
    if len(path[1:]) > _LONGEST_VHOST:
        # The client library refuses it too, but only once connected, and then tries again for ever.
        raise _wrong(f"the virtual host has {len(path[1:])} characters, at most {_LONGEST_VHOST} are possible")
    if "%00" in text or "\0" in text:
        raise _wrong("it holds a NUL, which separates user and password when they are sent")
    return BrokerUrl(
        scheme=parts.scheme,
        host=host,
        port=port,
        login=unquote(parts.username) if parts.username is not None else "guest",
        password=unquote(parts.password) if parts.password is not None else "guest",
        vhost=path[1:] or "/",
        heartbeat=_number(query, "heartbeat", DEFAULT_HEARTBEAT, least=1, most=600, unit="seconds"),
        name=query.get("name") or "swarm-worker",
        connection_timeout=_number(
            query,
            "connection_timeout",
            round(DEFAULT_CONNECTION_TIMEOUT * 1000),
            least=100,
            most=600_000,
            unit="milliseconds",
        )
        / 1000,
        tls=_tls(ca_file, cert_file, key_file) if parts.scheme == "amqps" else None,
    )


def broker_url(settings: Settings) -> BrokerUrl:
    """Where the broker is, checked; `ConfigurationError` names the part at fault."""
    return parse_amqp_url(
        settings.amqp_url.get_secret_value(),
        ca_file=settings.amqp_ca_file,
        cert_file=settings.amqp_cert_file,
        key_file=settings.amqp_key_file,
        allow_plaintext=settings.amqp_allow_plaintext,
    )


def _wrong(text: str) -> ConfigurationError:
    return ConfigurationError(f"SWARM_AMQP_URL: {text}")


def _checked_query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in _ALLOWED:
            cure = (
                "; certificates are always verified, name your CA with SWARM_AMQP_CA_FILE"
                if "ssl" in name or "ca" in name
                else ""
            )
            raise _wrong(f"parameter {name!r} is not allowed; allowed are {', '.join(_ALLOWED)}{cure}")
        if name in query:
            raise _wrong(f"parameter {name!r} stands there twice")
        query[name] = value
    return query


def _number(query: dict[str, str], name: str, default: int, *, least: int, most: int, unit: str) -> int:
    text = query.get(name)
    if text is None:
        return default
    # Python refuses to read thousands, with an error of its own.
    if not re.fullmatch(r"[0-9]{1,6}", text) or not least <= int(text) <= most:
        raise _wrong(f"parameter {name}={text!r} is no whole number of {unit} from {least} to {most}")
    return int(text)


def _tls(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"SWARM_AMQP_CA_FILE: cannot read certificates from {ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert_file is not None:
        try:
            # Without the callback OpenSSL asks the terminal for the password of an encrypted key, and waits.
            context.load_cert_chain(cert_file, key_file, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigurationError(
                f"SWARM_AMQP_CERT_FILE: cannot use the certificate in {cert_file} with the key in "
                f"{key_file or cert_file}: {error}; both must be PEM, the key without a password"
            ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")
