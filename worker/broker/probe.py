"""Does a broker answer there, and does it let us in? An AMQP handshake over a plain socket, without an event loop."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pamqp.frame
from pamqp import commands
from pamqp.header import ProtocolHeader

from worker.broker.url import BrokerUrl

_PAUSE = 0.1
#: Without it RabbitMQ hangs up on wrong credentials instead of saying so.
_CAPABILITIES: dict[str, Any] = {"capabilities": {"authentication_failure_close": True}}


def handshake(target: BrokerUrl, timeout: float = 3.0) -> str:
    """The broker's version, after a complete handshake as `target`'s user.

    Raises `PermissionError` with the broker's words where it refuses the user or the virtual host, another `OSError`
    where none answers.
    """
    plain = socket.create_connection((target.host, target.port), timeout)
    with target.tls.wrap_socket(plain, server_hostname=target.host) if target.tls else plain as link:
        link.sendall(ProtocolHeader().marshal())
        start = _receive(link)
        if not isinstance(start, commands.Connection.Start):
            raise ConnectionError(f"{target.host}:{target.port} speaks no AMQP 0-9-1")
        response = f"\0{target.login}\0{target.password}"
        _send(link, commands.Connection.StartOk(_CAPABILITIES, "PLAIN", response, "en_US"))
        tune = _receive(link)
        if not isinstance(tune, commands.Connection.Tune):
            raise PermissionError(str(getattr(tune, "reply_text", tune)))
        _send(link, commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        _send(link, commands.Connection.Open(target.vhost))
        opened = _receive(link)
        if not isinstance(opened, commands.Connection.OpenOk):
            raise PermissionError(str(getattr(opened, "reply_text", opened)))
        _send(link, commands.Connection.Close(200, "bye", 0, 0))
        _receive(link)
        return str((start.server_properties or {}).get("version", "unknown"))


def wait_until_up(target: BrokerUrl, *, timeout: float, still_alive: Callable[[], bool] = lambda: True) -> str:
    """Repeat the handshake until it succeeds; `TimeoutError` after `timeout` seconds or once `still_alive` denies."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return handshake(target)
        except OSError as error:
            if time.monotonic() > deadline or not still_alive():
                raise TimeoutError(f"no broker at {target.masked}: {error}") from error
        time.sleep(_PAUSE)


def _send(link: socket.socket, command: Any) -> None:
    link.sendall(pamqp.frame.marshal(command, 0))


def _receive(link: socket.socket) -> Any:
    head = _exactly(link, 7)
    kind, _, size = struct.unpack(">BHI", head)
    if kind != 1:
        raise ConnectionError("what answers speaks no AMQP 0-9-1")
    _, _, frame = pamqp.frame.unmarshal(head + _exactly(link, size + 1))
    return frame


def _exactly(link: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = link.recv(size - len(received))
        if not more:
            raise ConnectionError("the broker closed the connection during the handshake")
        received += more
    return received
