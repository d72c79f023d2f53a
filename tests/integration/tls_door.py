"""TLS in front of a broker that has none: certificates of one's own, good and bad, and a count of what came in."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import trustme


class Certificates:
    """A certificate authority of a test's own; each kind of certificate as a server's TLS context."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        #: What a worker should be told to trust.
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca_file))

    def good(self) -> ssl.SSLContext:
        """For this machine, by the authority."""
        return _serving(self.authority.issue_cert("localhost", "127.0.0.1"))

    def expired(self) -> ssl.SSLContext:
        """It was good until an hour ago."""
        ended = datetime.now(UTC) - timedelta(hours=1)
        return _serving(
            self.authority.issue_cert("localhost", "127.0.0.1", not_before=ended - timedelta(days=1), not_after=ended)
        )

    def of_another_host(self) -> ssl.SSLContext:
        """By the authority, for somebody else."""
        return _serving(self.authority.issue_cert("broker.example"))

    def self_signed(self) -> ssl.SSLContext:
        """By an authority nobody told the worker of."""
        return _serving(trustme.CA().issue_cert("localhost", "127.0.0.1"))

    def old_tls(self) -> ssl.SSLContext:
        """A good certificate over TLS 1.1."""
        context = self.good()
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with warnings.catch_warnings(action="ignore"):  # that it is deprecated is the point
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        return context

    def asking_for_ours(self) -> ssl.SSLContext:
        """A good certificate, and it wants one of the client's too."""
        context = self.good()
        self.authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def of_a_client(self) -> Path:
        """A client's certificate and its key in one file."""
        place = self.directory / "client.pem"
        self.authority.issue_cert("worker@swarm").private_key_and_cert_chain_pem.write_to_path(str(place))
        return place


def _serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


class TlsDoor:
    """Ends TLS on a loopback port and hands what was inside to a broker."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self.port = 0
        #: Connections that came as far as a complete handshake, and the versions they speak.
        self.versions: list[str] = []
        #: Bytes that came in after a handshake: AMQP's, the credentials among them.
        self.received = 0
        self._target = (host, port)
        self._context = context
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; always on the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def change(self, context: ssl.SSLContext) -> None:
        """Show another certificate from now on; who is connected is cut off."""
        self._context = context
        self._close()
        await self.start()

    async def stop(self) -> None:
        """Listen no more, cut everybody off."""
        self._close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.versions.append(writer.get_extra_info("ssl_object").version())
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        for source, sink, counted in ((reader, far_writer, True), (far_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, sink, counted=counted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        self._writers.add(sink)
        try:
            while data := await source.read(65536):
                self.received += len(data) * counted
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # cut off, or the other side has gone: both happen here on purpose
        finally:
            self._writers.discard(sink)
            sink.transport.abort()


@contextlib.asynccontextmanager
async def tls_door(url: str, context: ssl.SSLContext, *, host: str = "localhost") -> AsyncIterator[tuple[TlsDoor, str]]:
    """A door in front of the broker at `url`, and the amqps:// URL of it."""
    parts = urlsplit(url)
    door = TlsDoor(parts.hostname or "localhost", parts.port or 5672, context)
    await door.start()
    try:
        netloc = f"{parts.username}:{parts.password}@{host}:{door.port}"
        yield door, urlunsplit(parts._replace(scheme="amqps", netloc=netloc))
    finally:
        await door.stop()
