"""A TCP proxy that can cut the wire, go half-open, delay, and slice: faults where they happen, not mocks of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Forwards a loopback port to a broker. Faults apply to all its connections, present and future."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        #: Seconds that each piece of data waits.
        self.delay = 0.0
        #: Largest piece forwarded at once; 0 for no slicing.
        self.slice = 0
        #: Connections accepted since the start.
        self.accepted = 0
        self._target = (host, port)
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a free loopback port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    def refuse(self, *, refusing: bool = True) -> None:
        """Reset new connections at once: the broker is down, as far as anybody sees."""
        self._refusing = refusing

    def freeze(self) -> None:
        """Half-open: connections stay, nothing passes."""
        self._open.clear()

    def thaw(self) -> None:
        """Let pass what was held up, and what comes."""
        self._open.set()

    async def stop(self) -> None:
        """Reset everything and listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
        for source, sink, other in ((reader, far_writer, writer), (far_reader, writer, far_writer)):
            task = asyncio.create_task(self._pump(source, sink, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, other: asyncio.StreamWriter
    ) -> None:
        self._writers.add(sink)
        try:
            while data := await source.read(65536):
                await self._open.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                size = self.slice or len(data)
                for start in range(0, len(data), size):
                    sink.write(data[start : start + size])
                    await sink.drain()
        except OSError:
            pass  # the wire was cut: that is what this is for
        finally:
            self._writers.discard(sink)
            sink.transport.abort()
            other.transport.abort()


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
