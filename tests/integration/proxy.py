"""A TCP proxy that can cut the wire, go half-open, delay, and slice: faults where they happen, not mocks of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

#: Towards the broker, and from it.
Direction = Literal["up", "down"]

_DIRECTIONS: tuple[Direction, Direction] = ("up", "down")
#: Class and method, as a frame's payload begins with them.
_ACK = b"\x00\x3c\x00\x50"
_CONSUME_OK = b"\x00\x3c\x00\x15"
#: What a client sends before its first frame.
_PROTOCOL_HEADER = 8
_ROLES = ("consume", "publish", "control")


class Frames:
    """Where in a stream of frames we are: 7 bytes of head, the last 4 of which are the size, payload, 1 byte of end."""

    def __init__(self, skip: int) -> None:
        self._left = skip
        self._head = b""

    @property
    def inside(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._left or self._head)

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        place = 0
        while place < len(data):
            if self._left:
                step = min(self._left, len(data) - place)
                self._left -= step
            else:
                step = min(7 - len(self._head), len(data) - place)
                self._head += data[place : place + step]
                if len(self._head) == 7:
                    self._left, self._head = int.from_bytes(self._head[3:]) + 1, b""
            place += step


class Trap:
    """A cut that waits for its moment: `where` says after how many bytes of a piece, or None to let all of it pass."""

    def __init__(self, direction: Direction, role: str | None, where: Callable[[bytes], int | None]) -> None:
        self.direction = direction
        self.role = role
        self.where = where
        self.fired = asyncio.Event()
        #: Whether the wire ended within a frame.
        self.mid_frame = False


class _Wire:
    """One connection through the proxy."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.ends = (near, far)
        self.sinks: dict[Direction, asyncio.StreamWriter] = {"up": far, "down": near}
        self.frames: dict[Direction, Frames] = {"up": Frames(_PROTOCOL_HEADER), "down": Frames(0)}
        self.frozen: set[Direction] = set()
        self.role = ""
        self.consuming = False

    def observe(self, direction: Direction, data: bytes) -> None:
        """Learn from what passes whose connection it is, and whether the broker has registered a consumer."""
        if direction == "down":
            self.consuming = self.consuming or _CONSUME_OK in data
        elif not self.role:
            self.role = next((role for role in _ROLES if f"-{role}".encode() in data), "")

    def reset(self) -> None:
        """End it, both ways, without a word."""
        for end in self.ends:
            end.transport.abort()


class Proxy:
    """Forwards a loopback port to a broker. Settings apply to all its connections, present and future.

    A `role` (consume, publish, control) means the connection that a worker or client uses for it.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        #: Seconds that each piece of data waits, and in which directions.
        self.delay = 0.0
        self.delayed: tuple[Direction, ...] = _DIRECTIONS
        #: Largest piece forwarded at once; 0 for no slicing.
        self.slice = 0
        #: Connections accepted since the start.
        self.accepted = 0
        #: Connections that were ended on purpose, by the kind of fault.
        self.faults: Counter[str] = Counter()
        self._target = (host, port)
        self._frozen: set[Direction] = set()
        self._thawed = asyncio.Event()
        self._refusing = False
        self._wires: set[_Wire] = set()
        self._traps: list[Trap] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def consuming(self) -> bool:
        """Whether a consumer is registered on a connection through which everything passes."""
        return any(wire.consuming and not (self._frozen | wire.frozen) for wire in self._wires)

    async def start(self) -> None:
        """Listen on a free loopback port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self, role: str | None = None) -> int:
        """Reset every connection, or those of one role; new ones are taken. How many there were."""
        chosen = self._chosen(role)
        for wire in chosen:
            wire.reset()
        self.faults["cut"] += len(chosen)
        return len(chosen)

    def cut_after(self, count: int, direction: Direction, role: str | None = None) -> Trap:
        """Let exactly `count` more bytes of any such connection arrive, and end it there."""
        left = count

        def where(data: bytes) -> int | None:
            nonlocal left
            if left <= len(data):
                return left
            left -= len(data)
            return None

        return self._arm(Trap(direction, role, where))

    def cut_in_ack(self, count: int, role: str | None = "consume") -> Trap:
        """Of the next acknowledgement, let `count` bytes arrive from its method on; it has 14."""

        def where(data: bytes) -> int | None:
            place = data.find(_ACK)
            return None if place < 0 else place + count

        return self._arm(Trap("up", role, where))

    def refuse(self, *, refusing: bool = True) -> None:
        """Reset new connections at once: the broker is down, as far as anybody sees."""
        self._refusing = refusing

    def freeze(self, *directions: Direction) -> None:
        """Half-open, in these directions or both: connections stay, nothing passes, not even their end."""
        self._frozen.update(directions or _DIRECTIONS)

    def half_open(self, *directions: Direction, role: str | None = None) -> int:
        """Likewise, for present connections only and for good: a router forgot them. How many there were."""
        chosen = self._chosen(role)
        for wire in chosen:
            wire.frozen.update(directions or _DIRECTIONS)
        self.faults["half-open"] += len(chosen)
        return len(chosen)

    def thaw(self) -> None:
        """Let pass what was held up by `freeze`, and what comes."""
        self._frozen.clear()
        self._thawed.set()
        self._thawed = asyncio.Event()

    async def stop(self) -> None:
        """Reset everything and listen no more."""
        if self._server is not None:
            self._server.close()
        for wire in list(self._wires):
            wire.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _chosen(self, role: str | None) -> list[_Wire]:
        return [wire for wire in self._wires if role in (None, wire.role)]

    def _arm(self, trap: Trap) -> Trap:
        self._traps.append(trap)
        return trap

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        wire = _Wire(writer, far_writer)
        self._wires.add(wire)
        for end in wire.ends:
            end.transport.set_write_buffer_limits(0)  # so that drain() waits until the kernel has all of it
        sources: dict[Direction, asyncio.StreamReader] = {"up": reader, "down": far_reader}
        for direction, source in sources.items():
            task = asyncio.create_task(self._pump(wire, direction, source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, wire: _Wire, direction: Direction, source: asyncio.StreamReader) -> None:
        sink = wire.sinks[direction]
        try:
            while data := await source.read(65536):
                await self._passage(wire, direction)
                wire.observe(direction, data)
                trap, end = self._sprung(wire, direction, data)
                await self._forward(sink, data[:end])
                wire.frames[direction].feed(data[:end])
                if trap is not None:
                    trap.mid_frame = wire.frames[direction].inside
                    trap.fired.set()
                    sink.close()  # what was let through arrives
                    break
            else:
                await self._passage(wire, direction)
        except OSError:
            pass  # the wire was cut: that is what this is for
        finally:
            self._wires.discard(wire)
            for other in wire.ends:
                if not other.is_closing():
                    other.transport.abort()

    async def _passage(self, wire: _Wire, direction: Direction) -> None:
        """Wait while nothing passes, then as long as everything takes."""
        while direction in self._frozen | wire.frozen:
            await self._thawed.wait()
        if self.delay and direction in self.delayed:
            await asyncio.sleep(self.delay)

    def _sprung(self, wire: _Wire, direction: Direction, data: bytes) -> tuple[Trap | None, int]:
        """The trap that this piece springs, and how much of it is let through."""
        for trap in self._traps:
            if trap.direction == direction and trap.role in (None, wire.role):
                place = trap.where(data)
                if place is not None:
                    self._traps.remove(trap)
                    self.faults["cut"] += 1
                    return trap, place
        return None, len(data)

    async def _forward(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        size = self.slice or len(data) or 1
        for start in range(0, len(data), size):
            sink.write(data[start : start + size])
            await sink.drain()


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy in front of the broker at `url`, and the URL through it."""
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "localhost", parts.port or 5672)
    await proxy.start()
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}"))
    finally:
        await proxy.stop()
