"""A port that stays free for whom it was chosen: one that was only looked up is given away on a busy machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A loopback port that the system gives to nobody meanwhile; a server that names it may listen there.

    Bound and not listened at: who connects before the server is there is refused. Servers set SO_REUSEADDR, asyncio's
    and llama-server too, and so may bind what is bound.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port
