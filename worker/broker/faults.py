"""What the client library raises, sorted into what may pass and what will not."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp.exceptions import PAMQPException

from worker.errors import BrokerRefused, BrokerUntrusted

#: Everything a broker call may raise; `OSError` includes `TimeoutError`, `RuntimeError` the client's "channel closed".
BROKER_ERRORS = (AMQPError, OSError, RuntimeError, PAMQPException)

_NOT_ALLOWED = re.compile(r"NOT_ALLOWED - |ACCESS_REFUSED - ")
#: OpenSSL's X509_V_ERR_...: not yet valid, expired, host and address mismatch.
_CERTIFICATE_CURES = {
    9: "check the clocks of both machines",
    10: "renew it at the broker",
    62: "connect by a name that stands in it, or have it made for this one",
    64: "connect by a name that stands in it, or have it made for this address",
}
_OLD_TLS = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION")
_CHANNEL_REFUSALS = (ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed)


@contextmanager
def broker_call() -> Iterator[None]:
    """Around every wait for the broker: that the connection was lost is an error there, and never a cancellation.

    aiormq 7.2.4 ends with `CancelledError` what waits on a channel that is closed, or on a connection that was silent
    for too long. Nobody has cancelled us then; but taken for that, it ended the relay of events and the senders of a
    node in silence, since a task that was cancelled is no failure to asyncio. Raises `ConnectionError` instead.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the connection or its channel was given up meanwhile") from error


def describe(error: BaseException) -> str:
    """One line for people: the broker's own words where it said some."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    texts = [str(part) for part in error.args if part not in (None, "")]
    return ", ".join(texts) or type(error).__name__


def connection_refusal(error: BaseException, masked: str) -> BrokerRefused | None:
    """`BrokerRefused` where connecting again cannot help (credentials, virtual host, certificate), else None."""
    for one in (error, error.__cause__):
        if isinstance(one, ssl.SSLError):
            return _tls_refusal(one, masked)
    text = describe(error)
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return BrokerRefused(
            f"the broker refuses the credentials of {masked}: {text}; check user and password in SWARM_AMQP_URL"
        )
    if isinstance(error, ConnectionNotAllowed) or _NOT_ALLOWED.search(text):
        return BrokerRefused(
            f"the broker refuses {masked}: {text}; check the virtual host in SWARM_AMQP_URL and the user's permissions"
        )
    return None


def _tls_refusal(error: ssl.SSLError, masked: str) -> BrokerRefused | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        cure = _CERTIFICATE_CURES.get(error.verify_code, "name its CA with SWARM_AMQP_CA_FILE")
        return BrokerUntrusted(
            f"the certificate of {masked} cannot be trusted: {error.verify_message.rstrip('.')}; {cure}"
        )
    if error.reason == "WRONG_VERSION_NUMBER":
        return BrokerUntrusted(f"{masked} speaks no TLS there; check the port (usually 5671) in SWARM_AMQP_URL")
    if error.reason in _OLD_TLS:
        return BrokerUntrusted(f"{masked} speaks no TLS that is safe; let the broker speak TLS 1.2 or 1.3")
    return None


def unreachable_hint(error: BaseException, *, tls: bool) -> str:
    """What else may be wrong where something answered and hung up at once."""
    if "Read 0 bytes" not in describe(error):
        return ""
    if tls:
        return "; it may ask for a certificate of ours, which SWARM_AMQP_CERT_FILE names"
    return "; it may expect TLS, amqps://"


def hides_the_reason(error: BaseException | None) -> bool:
    """Whether the broker closed the connection at the virtual host: aiormq 7.2.4 drops what it said there."""
    return isinstance(error, InvalidFrameError) and "Connection.Close " in str(error)


def channel_refusal(error: BaseException, doing: str) -> BrokerRefused | None:
    """`BrokerRefused` where the broker closed the channel with 403, 404 or 406, else None."""
    if isinstance(error, _CHANNEL_REFUSALS):
        cure = {
            ChannelAccessRefused: "give the user of SWARM_AMQP_URL the permission",
            ChannelNotFoundEntity: "create it, or let SWARM_TOPOLOGY=auto do so",
            ChannelPreconditionFailed: "make both sides agree",
        }[type(error)]
        return BrokerRefused(f"{doing}: {describe(error)}; {cure}")
    return None
