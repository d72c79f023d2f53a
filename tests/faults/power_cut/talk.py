"""What a traced worker and its broker said to each other: AMQP frames, as they went over its sockets.

Frames by the AMQP 0-9-1 specification, 2.3.5 and 1.8: type, channel, size, payload, 0xCE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

_METHOD, _HEADER, _BODY = 1, 2, 3
_PUBLISH, _DELIVER, _ACK = (60, 40), (60, 60), (60, 80)
_PROTOCOL = b"AMQP\0\0\x09\x01"

Frame: TypeAlias = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """A message with where it was published."""

    exchange: str
    key: str
    body: bytes


@dataclass(slots=True)
class Direction:
    """One way of a connection."""

    waiting: bytes = b""
    #: Messages that are under way, by channel: exchange, key, bytes still to come, and those that came.
    open: dict[int, tuple[str, str, int, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Connection:
    """A socket that began with AMQP's greeting."""

    sent: Direction = field(default_factory=Direction)
    heard: Direction = field(default_factory=Direction)
    #: Deliveries that are not acknowledged, by channel and tag.
    unacked: dict[tuple[int, int], Message] = field(default_factory=dict)
    tags: dict[int, int] = field(default_factory=dict)


class Talk:
    """All connections of a process, by the name of their socket."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}

    def about_to_send(self, socket: str, data: bytes) -> tuple[list[Message], list[Message]]:
        """Deliveries that these bytes acknowledge, and messages that they publish, were they sent now."""
        if data.startswith(_PROTOCOL):
            self._connections[socket] = Connection()
            data = data[len(_PROTOCOL) :]
        connection = self._connections.get(socket)
        if connection is None:
            return [], []
        frames, _ = _split(connection.sent.waiting + data)
        acked: list[Message] = []
        for kind, channel, payload in frames:
            if kind == _METHOD and _method(payload) == _ACK:
                acked += _acked(connection, channel, payload)
        trial = Direction(open=dict(connection.sent.open))
        return acked, [message for _, message in _messages(trial, frames, _PUBLISH)]

    def sent(self, socket: str, data: bytes) -> None:
        """These bytes went out."""
        connection = self._connections.get(socket)
        if connection is not None:
            frames, connection.sent.waiting = _split(connection.sent.waiting + data.removeprefix(_PROTOCOL))
            list(_messages(connection.sent, frames, _PUBLISH))

    def heard(self, socket: str, data: bytes) -> None:
        """These bytes came in."""
        connection = self._connections.get(socket)
        if connection is None:
            return
        frames, connection.heard.waiting = _split(connection.heard.waiting + data)
        for frame in frames:
            kind, channel, payload = frame
            if kind == _METHOD and _method(payload) == _DELIVER:
                _, rest = _short(payload[4:])
                connection.tags[channel] = int.from_bytes(rest[:8], "big")
            for on, message in _messages(connection.heard, [frame], _DELIVER):
                connection.unacked[on, connection.tags[on]] = message


def _acked(connection: Connection, channel: int, payload: bytes) -> Iterator[Message]:
    tag, multiple = int.from_bytes(payload[4:12], "big"), payload[12] & 1
    covered = [
        place
        for place in connection.unacked
        if place[0] == channel and (place[1] <= tag if multiple else place[1] == tag)
    ]
    for place in covered:
        yield connection.unacked.pop(place)


def _messages(direction: Direction, frames: list[Frame], method: tuple[int, int]) -> Iterator[tuple[int, Message]]:
    for kind, channel, payload in frames:
        if kind == _METHOD and _method(payload) == method:
            rest = payload[6:]  # after a reserved short
            if method == _DELIVER:
                _, rest = _short(payload[4:])
                rest = rest[9:]  # after tag and redelivered
            exchange, rest = _short(rest)
            direction.open[channel] = (exchange, _short(rest)[0], -1, b"")
            continue
        if channel not in direction.open or kind not in (_HEADER, _BODY):
            continue
        exchange, key, size, body = direction.open[channel]
        if kind == _HEADER:
            size = int.from_bytes(payload[4:12], "big")
        else:
            body += payload
        direction.open[channel] = (exchange, key, size, body)
        if len(body) == size:
            del direction.open[channel]
            yield channel, Message(exchange, key, body)


def _split(data: bytes) -> tuple[list[Frame], bytes]:
    """Whole frames, and what is left."""
    frames, at = [], 0
    while len(data) - at >= 7:
        size = int.from_bytes(data[at + 3 : at + 7], "big")
        if len(data) - at < size + 8:
            break
        assert data[at + size + 7] == 0xCE, "no AMQP frame"
        frames.append((data[at], int.from_bytes(data[at + 1 : at + 3], "big"), data[at + 7 : at + 7 + size]))
        at += size + 8
    return frames, data[at:]


def _method(payload: bytes) -> tuple[int, int]:
    return int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")


def _short(data: bytes) -> tuple[str, bytes]:
    return data[1 : 1 + data[0]].decode(), data[1 + data[0] :]
