"""What the client library raises, sorted into what may pass and what will not."""

from __future__ import annotations

import re
import ssl

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

from worker.errors import BrokerRefused

#: Everything a broker call may raise; `OSError` includes `TimeoutError`, `RuntimeError` the client's "channel closed".
BROKER_ERRORS = (AMQPError, OSError, RuntimeError, PAMQPException)

_NOT_ALLOWED = re.compile(r"NOT_ALLOWED - |ACCESS_REFUSED - ")
_CHANNEL_REFUSALS = (ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed)


def describe(error: BaseException) -> str:
    """One line for people: the broker's own words where it said some."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    texts = [str(part) for part in error.args if part not in (None, "")]
    return ", ".join(texts) or type(error).__name__


def connection_refusal(error: BaseException, masked: str) -> BrokerRefused | None:
    """`BrokerRefused` where connecting again cannot help (credentials, virtual host, certificate), else None."""
    cause = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError) or isinstance(cause, ssl.SSLCertVerificationError):
        return BrokerRefused(
            f"the certificate of {masked} cannot be trusted: {describe(error)}; name its CA with SWARM_AMQP_CA_FILE"
        )
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
